"""Writing weights tensor by tensor: safetensors files whose header is known before the first tensor is.

Nothing appears under its own name until all of it is written: files are made in a folder beside the destination, which
is renamed at the end.
"""

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from kaleido_jax.errors import StorageError, UsageError, printable
from kaleido_jax.porting.safetensors import CODES, METADATA, TensorInfo

# What a folder that was ported may hold.
_OURS = re.compile(r"(config|manifest)\.json|arrays|latest|1|.*\.safetensors(\.index\.json)?")


@contextlib.contextmanager
def replacing(destination: Path, *, overwrite: bool) -> Iterator[Path]:
    """A path beside `destination` for a file or a folder to be made; becomes `destination` when the block ends well.

    If the block raises anything, Ctrl-C included, what was made is removed and `destination` stays as it was.

    Raises:
      UsageError: the destination exists and `overwrite` is False.
      StorageError: for any error of the operating system in the block.
    """
    destination = Path(os.path.abspath(destination))
    if os.path.lexists(destination) and not overwrite:
        raise UsageError(f"{printable(str(destination))} exists; choose another destination, or --overwrite it")
    _check_replaceable(destination)
    temporary = destination.with_name(f".{destination.name[:40]}.{secrets.token_hex(6)}.partial")
    previous = temporary.with_suffix(".previous")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if destination.is_dir() and not destination.is_symlink():
            destination.rename(previous)  # a folder is not replaced by a rename
            try:
                temporary.rename(destination)
            except BaseException:
                previous.rename(destination)
                raise
        else:
            os.replace(temporary, destination)
    except StorageError:
        raise
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise StorageError(f"cannot write {printable(str(destination))}: {reason}") from error
    finally:
        for rest in (temporary, previous):
            if rest.is_dir():
                shutil.rmtree(rest, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # it may never have been made
                    rest.unlink()


def _check_replaceable(destination: Path) -> None:
    """Raises UsageError for a folder that holds more than a checkpoint: replacing it would remove the rest."""
    if not destination.is_dir():
        return
    strange = [path.name for path in sorted(destination.iterdir()) if not _OURS.fullmatch(path.name)]
    if strange:
        shown = f"{printable(str(destination))} also holds {printable(strange[0])}"
        raise UsageError(f"{shown}, which is no part of a checkpoint; it is not replaced")


def header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The header of a file, and its tensors' names in the order of their bytes: wide dtypes first, then by name."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    document: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        info = tensors[name]
        start, end = end, end + info.nbytes
        document[name] = {"dtype": CODES[info.dtype], "shape": list(info.shape), "data_offsets": [start, end]}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def write_file(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    chunks: Callable[[str], Iterable[np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file. `chunks(name)` gives the tensor's elements in order, in pieces of any size."""
    begin, order = header(tensors, metadata or {"format": "pt"})
    with path.open("wb", buffering=0) as file:
        write_all(file.fileno(), memoryview(begin))
        for name in order:
            written = 0
            for chunk in chunks(name):
                write_all(file.fileno(), memoryview(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)))
                written += chunk.nbytes
            if written != tensors[name].nbytes:
                raise AssertionError(f"{name} was written with {written} bytes instead of {tensors[name].nbytes}")
        os.fsync(file.fileno())


def write_all(descriptor: int, buffer: memoryview) -> None:
    """Write all bytes to a file; the system may take them in several goes."""
    while buffer:
        buffer = buffer[os.write(descriptor, buffer) :]


def shards(tensors: Mapping[str, TensorInfo], shard_bytes: int) -> list[list[str]]:
    """Names in the order given, cut into runs of at most `shard_bytes` (a larger tensor stands alone)."""
    runs: list[list[str]] = [[]]
    size = 0
    for name, info in tensors.items():
        if runs[-1] and size + info.nbytes > shard_bytes:
            runs.append([])
            size = 0
        runs[-1].append(name)
        size += info.nbytes
    return runs


def write_folder(
    folder: Path,
    name: str,
    tensors: Mapping[str, TensorInfo],
    chunks: Callable[[str], Iterable[np.ndarray]],
    *,
    shard_bytes: int,
) -> None:
    """Write weights in `folder` as `name`.safetensors, or as shards with an index, named as diffusers names them."""
    runs = shards(tensors, shard_bytes)
    if len(runs) == 1:
        write_file(folder / f"{name}.safetensors", tensors, chunks)
        return
    places = {}
    for number, run in enumerate(runs, 1):
        shard = f"{name}-{number:05d}-of-{len(runs):05d}.safetensors"
        write_file(folder / shard, {key: tensors[key] for key in run}, chunks)
        places |= dict.fromkeys(run, shard)
    index = {"metadata": {"total_size": sum(info.nbytes for info in tensors.values())}, "weight_map": places}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def rows_of(shape: tuple[int, ...], itemsize: int, chunk_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, stop) on the first axis, for pieces of about `chunk_bytes`; (0, 1) for a scalar."""
    count = shape[0] if shape else 1
    step = max(1, chunk_bytes // max(math.prod(shape[1:]) * itemsize, 1))
    for start in range(0, count, step):
        yield start, min(start + step, count)
