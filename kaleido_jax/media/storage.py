"""Files that are either whole or absent: written under a temporary name beside the final one and renamed."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from kaleido_jax.errors import StorageError, printable

PROBE_BYTES = 64 << 20  # more than this is only asked for, not tried

# Temporary files of this process that are being written now, for `remove_temporaries` when it must end at once.
_open_temporaries: set[Path] = set()


def storage_error(path: str | os.PathLike[str], error: OSError) -> StorageError:
    """The sentence for an operating-system error met while `path` was written."""
    reason = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
        errno.EFBIG: "files of this size are not allowed here; raise the limit or choose another folder",
        errno.EACCES: "no permission to write there; choose another folder",
        errno.EPERM: "no permission to write there; choose another folder",
        errno.EROFS: "the disk is read-only; choose another folder",
        errno.ENOTDIR: "a part of that path is a file, not a folder; choose another path",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }.get(error.errno or 0, f"{error.strerror or error}; choose another folder")
    return StorageError(f"Cannot write {printable(str(path))}: {reason}.")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the folder of `path`; when the block ends well, the file there becomes `path`.

    If the block raises anything, Ctrl-C included, the temporary file is removed and `path` stays as it was. The
    temporary name keeps the ending, which tells writers the format.

    Raises:
      StorageError: for any operating-system error in the block.
    """
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(6)}.partial{path.suffix}")
    _open_temporaries.add(temporary)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _open_temporaries.discard(temporary)


def remove_temporaries() -> None:
    """Removes every temporary file that is being written, for a process that ends without unwinding."""
    for temporary in list(_open_temporaries):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_writable_folder(folder: Path, needed_bytes: int) -> None:
    """Makes `folder` if it is missing and proves that `needed_bytes` can be written in it, by writing as many.

    Raises:
      StorageError: the folder cannot be made or written, or has no room; asked for before anything expensive starts.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed_bytes:
            raise StorageError(
                f"Cannot write in {printable(str(folder))}: about {needed_bytes / 1e6:.1f} MB are needed and "
                f"{free / 1e6:.1f} MB are free; free some space or choose another folder."
            )
        probe = folder / f".{secrets.token_hex(6)}.partial"
        _open_temporaries.add(probe)
        try:
            with open(probe, "xb") as file:
                for start in range(0, min(needed_bytes, PROBE_BYTES), 1 << 20):
                    file.write(b"\0" * min(1 << 20, needed_bytes - start))
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
            _open_temporaries.discard(probe)
    except FileExistsError as error:
        raise storage_error(folder, NotADirectoryError(errno.ENOTDIR, "")) from error
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(folder, error) from error
