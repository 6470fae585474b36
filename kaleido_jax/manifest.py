"""Whether a folder of files is whole: `manifest.json`, written last, holds the size and SHA-256 of every other file.

orbax restores arrays with flipped bits without a word, so checkpoints are checked against their manifest before they
are read, those of training runs and those that were ported alike.
"""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kaleido_jax.errors import StorageError

MANIFEST = "manifest.json"
THREADS = 4


class DamagedCheckpoint(StorageError):
    """A checkpoint's files are not those that its manifest lists."""


def write_manifest(folder: Path, **said: Any) -> None:
    """Write the manifest of all files of a folder, and put them on the disk before it. said: what else it says."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, _digests(paths))
    }
    for name in files:
        sync(folder / name)
    path = folder / MANIFEST
    path.write_text(json.dumps({"format": 1, **said, "files": files}, indent=1))
    sync(path)
    sync(folder)


def verify(folder: Path, *, read: Iterable[str] | None = None, **said: Any) -> None:
    """Raise DamagedCheckpoint unless the folder's files are those of its manifest, with their sizes and SHA-256.

    Args:
      read: names of the files that are going to be read; of others only the size is checked. None: all of them.
      said: what else the manifest has to say.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedCheckpoint(f"there is no complete checkpoint in {folder}: {MANIFEST} is missing")
    try:
        manifest = json.loads(path.read_text())
        listed = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        found = {key: manifest[key] for key in said}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} cannot be read: {error}") from error
    for key, value in said.items():
        if found[key] != value:
            raise DamagedCheckpoint(f"{path} is of {key} {found[key]}, not {value}")
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p != path}
    for name in sorted(present ^ set(listed)):
        raise DamagedCheckpoint(f"{folder / name} is {'not in the manifest' if name in present else 'missing'}")
    for name, (size, _) in listed.items():
        there = (folder / name).stat().st_size
        if there != size:
            raise DamagedCheckpoint(f"{folder / name} has {there} bytes, not {size}")
    names = sorted(listed if read is None else set(read) & set(listed))
    for name, digest in zip(names, _digests([folder / name for name in names])):
        sha256 = listed[name][1]
        if digest != sha256:
            raise DamagedCheckpoint(f"{folder / name} has SHA-256 {digest[:12]}..., not {sha256[:12]}...")


def sync(path: Path) -> None:
    """Have the system put a file or a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digests(paths: Sequence[Path]) -> Iterator[str]:
    """SHA-256 of files, several at a time."""

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(digest, paths)
