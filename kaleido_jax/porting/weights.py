"""A checkpoint on disk as one set of tensors, whatever files it is made of."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.porting.safetensors import SafetensorsFile, refused
from kaleido_jax.porting.torch_files import LATEST, SUFFIXES, TorchFile

INDEX = ".safetensors.index.json"
INDEX_BYTES = 16 << 20
SHARDS = 10_000


class ShardedWeights:
    """The shards that an index file lists, as one checkpoint."""

    def __init__(self, index: Path):
        """Raises InputError that lists every problem of the index and of the shards."""
        self.path = index
        document = read_json(index, INDEX_BYTES)
        places = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(places, dict) or not places or not all(isinstance(x, str) for x in places.values()):
            raise refused(index, ["has no weight_map from tensors to files"])
        names = sorted(set(places.values()))
        problems = [problem for name in names[:SHARDS] for problem in _wrong_shard(index.parent, name)]
        if len(names) > SHARDS:
            problems.append(f"lists {len(names)} files; at most {SHARDS} are read")
        if problems:
            raise refused(index, problems)
        self._files: dict[str, SafetensorsFile] = {}
        try:
            for name in names:
                try:
                    self._files[name] = SafetensorsFile(index.parent / name)
                except InputError as error:
                    problems.append(str(error).removesuffix("."))
            for name, place in places.items():
                if place in self._files and name not in self._files[place].tensors:
                    problems.append(f"{name!r} is not in {place}, where the index puts it")
            for place, file in self._files.items():
                problems += [
                    f"{name!r} of {place} is not in the index" for name in file.tensors if places.get(name) != place
                ]
            if problems:
                raise refused(index, problems)
        except BaseException:
            self.close()
            raise
        self._places = places
        self.tensors = {name: self._files[place].tensors[name] for name, place in places.items()}

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self._files.values())

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """As `SafetensorsFile.read`."""
        return self._files[self._places[name]].read(name, index)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


# An open checkpoint: `tensors` by name, `read` for their elements, `bytes_read`, `path`, and `close`.
Weights = SafetensorsFile | ShardedWeights | TorchFile


def open_weights(source: str | os.PathLike[str]) -> Weights:
    """Open a safetensors file, an index of shards, a .pth file, or a folder that holds one checkpoint.

    Raises:
      InputError: naming what is wrong with the files, or with the folder.
    """
    path = Path(source)
    if path.is_dir():
        path = _of_folder(path)
    if path.name.endswith(INDEX):
        return ShardedWeights(path)
    if path.suffix in SUFFIXES:
        return TorchFile(path)
    if not path.exists():
        raise UsageError(f"there is no {printable(str(path))}")
    if path.suffix != ".safetensors" and not path.name.startswith("."):
        kinds = ".safetensors, .safetensors.index.json, .pth or .pt"
        raise UsageError(f"{printable(str(path))} is not a file of weights by its name; those end with {kinds}")
    return SafetensorsFile(path)


def config_beside(path: Path) -> Mapping[str, Any] | None:
    """The config.json in the folder of a checkpoint, if there is one."""
    path = (path if path.is_dir() else path.parent) / "config.json"
    if not path.is_file():
        return None
    document = read_json(path, INDEX_BYTES)
    if not isinstance(document, dict):
        raise refused(path, ["is not a JSON object"])
    return document


def read_json(path: Path, limit: int) -> Any:
    """A JSON file of at most `limit` bytes. Raises InputError."""
    try:
        with path.open("rb") as file:
            text = file.read(limit + 1)
        if len(text) > limit:
            raise refused(path, [f"has more than {limit} bytes"])
        return json.loads(text)
    except OSError as error:
        raise refused(path, [f"cannot be read: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise refused(path, [f"is not JSON: {error}"]) from error


def _of_folder(folder: Path) -> Path:
    """The one file of a folder that stands for its checkpoint."""
    latest = folder / LATEST
    if latest.is_file():  # of the libraries that keep several iterations
        with latest.open("rb") as file:
            name = file.read(65).strip().decode(errors="replace")
        if not re.fullmatch(r"[\w-]{1,64}", name) or not (folder / name).is_dir():
            raise refused(latest, [f"names {name!r}, which is no folder beside it"])
        folder = folder / name
    indices = sorted(folder.glob("*" + INDEX))
    files = sorted(folder.glob("*.safetensors"))
    if indices:
        files = indices
    elif not files:
        files = sorted(file for suffix in SUFFIXES for file in folder.glob("*" + suffix))
    if len(files) == 1:
        return files[0]
    shown = printable(str(folder))
    if files:
        raise UsageError(f"{shown} holds several checkpoints; name one of {', '.join(f.name for f in files[:20])}")
    inside = sorted(child.name for child in folder.iterdir() if child.is_dir() and any(child.glob("*.safetensors*")))
    hint = f"; name one of its folders {', '.join(inside[:20])}" if inside else ""
    raise UsageError(f"{shown} holds no safetensors and no .pth file{hint}")


def _wrong_shard(folder: Path, name: str) -> list[str]:
    """What is wrong with a shard's name: it must be a file of this folder, or of its cache if it is a link there."""
    shown = printable(name)
    if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name or "\\" in name:
        return [f"the file {shown!r} is not a plain name in the folder of the index"]
    if not name.endswith(".safetensors"):
        return [f"the file {shown!r} is not a safetensors file by its name"]
    if not (folder / name).is_file():
        return [f"the file {shown!r} is missing"]
    # Hugging Face's cache keeps snapshots/REVISION/... as links to blobs/ beside snapshots/; no other link may leave.
    root = folder.resolve()
    snapshots = [parent for parent in root.parents if parent.name == "snapshots"]
    if (folder / name).resolve().parent not in [root, *(parent.parent / "blobs" for parent in snapshots[:1])]:
        return [f"the file {shown!r} is a link that leaves the folder"]
    return []
