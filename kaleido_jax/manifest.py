"""Whether a folder of files is whole: `manifest.json`, written last, holds the size and SHA-256 of every other file.

orbax restores arrays with flipped bits without a word, so checkpoints are checked against their manifest before they
are read, those of training runs and those that were ported alike.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kaleido_jax.errors import StorageError

MANIFEST = "manifest.json"
FORMAT = 2
THREADS = 4


class DamagedCheckpoint(StorageError):
    """A checkpoint's files are not those that its manifest lists."""


def file_entries(
    folder: Path, part: tuple[int, int] = (0, 1), written: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every n-th file of a folder from the i-th, part (i, n), which are put on the disk before.

    Args:
      written: entries, by name in the folder, of files that were put on the disk and hashed when they were made.
    """
    known = written or {}
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in known)
    paths = paths[part[0] :: part[1]]
    for path in paths:
        sync(path)
    return dict(known) | {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, _digests(paths))
    }


def write_manifest(folder: Path, files: Mapping[str, Any] | None = None, **said: Any) -> None:
    """Write the manifest of a folder, whose files are on the disk before it.

    Args:
      files: the entries of all of them, as `file_entries` gives them; None: made here.
      said: what else it says.
    """
    path = folder / MANIFEST
    document = {"format": FORMAT, **said, "files": file_entries(folder) if files is None else files}
    path.write_text(json.dumps(document | {"sha256": _sha256(document)}, indent=1))
    sync(path)
    sync(folder)


def verify(
    folder: Path, *, read: Iterable[str] | None = None, part: tuple[int, int] = (0, 1), **said: Any
) -> dict[str, Any]:
    """The manifest. Raises DamagedCheckpoint unless the folder's files are those that it lists, with size and SHA-256.

    Args:
      read: names of the files that are going to be read; of others only the size is checked. None: all of them.
      part: (i, n): of the files to be read, the SHA-256 of every n-th from the i-th is checked here.
      said: what else the manifest has to say.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedCheckpoint(f"there is no complete checkpoint in {folder}: {MANIFEST} is missing")
    try:
        manifest = json.loads(path.read_text())
        listed = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        found = {key: manifest[key] for key in said}
        # Those of format 1 say nothing of themselves.
        own = manifest.pop("sha256") if manifest["format"] == FORMAT else None
        if manifest["format"] not in (1, FORMAT):
            raise ValueError(f"it is of format {manifest['format']}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error
    for key, value in said.items():
        if found[key] != value:
            raise DamagedCheckpoint(f"{path} is of {key} {found[key]}, not {value}")
    if own is not None and own != _sha256(manifest):
        raise DamagedCheckpoint(f"{path} is damaged: its own SHA-256 is another")
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir() and p != path}
    for name in sorted(present ^ set(listed)):
        raise DamagedCheckpoint(f"{folder / name} is {'not in the manifest' if name in present else 'missing'}")
    for name in listed:
        if (folder / name).is_symlink():
            raise DamagedCheckpoint(f"{folder / name} is a link")
    for name, (size, _) in listed.items():
        there = (folder / name).stat().st_size
        if there != size:
            raise DamagedCheckpoint(f"{folder / name} has {there} bytes, not {size}")
    names = sorted(listed if read is None else set(read) & set(listed))[part[0] :: part[1]]
    for name, digest in zip(names, _digests([folder / name for name in names])):
        sha256 = listed[name][1]
        if digest != sha256:
            raise DamagedCheckpoint(f"{folder / name} has SHA-256 {digest[:12]}..., not {sha256[:12]}...")
    return manifest


def sync(path: Path) -> None:
    """Have the system put a file or a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _digests(paths: Sequence[Path]) -> Iterator[str]:
    """SHA-256 of files, several at a time."""

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(digest, paths)
