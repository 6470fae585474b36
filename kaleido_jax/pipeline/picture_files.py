"""The files of pictures that FLUX made: the pictures, and last a record, which says that they are whole."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.media.storage import make_writable_folder, written_whole
from kaleido_jax.pipeline.outputs import Found, found_files, refuse_folders
from kaleido_jax.pipeline.record import FORMAT, file_sha256, made
from kaleido_jax.typing import UInt8

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_ENDS = 1 << 20


@dataclasses.dataclass(frozen=True)
class PictureFiles:
    """Where the pictures of one request go, by name, and their record."""

    pictures: Mapping[str, Path]
    record: Path

    @classmethod
    def single(cls, path: Path) -> "PictureFiles":
        """OUT.png with OUT.json beside it. Raises UsageError for a name that does not end in .png."""
        if path.suffix.lower() != ".png":
            raise UsageError(f"The output is {printable(str(path))!r}; the name of a picture must end in .png.")
        return cls({"picture": path}, path.with_suffix(".json"))

    @classmethod
    def group(cls, folder: Path, frames: int) -> "PictureFiles":
        """identity.png, frame_1.png, ... with a .mask.png each, and record.json in a folder."""
        names = ["identity", *(f"frame_{number}" for number in range(1, frames + 1))]
        both = [(ending, name) for name in names for ending in ("", ".mask")]
        return cls({f"{name}{ending}": folder / f"{name}{ending}.png" for ending, name in both}, folder / "record.json")

    def refuse_input(self, given: Path) -> None:
        """Raises UsageError if one of the outputs is this input, under whatever name."""
        for output in (*self.pictures.values(), self.record):
            same = False
            with contextlib.suppress(OSError, ValueError):  # one of them is not there
                same = output.samefile(given)
            if same:
                raise UsageError(f"{printable(str(output))} would overwrite an input; choose another output name.")

    def make_room(self, pixels: int) -> None:
        """Raises StorageError unless the folder can be made and takes pictures of so many pixels together."""
        make_writable_folder(self.record.parent, 4 * pixels)
        refuse_folders((*self.pictures.values(), self.record))

    def found(self, request: dict[str, Any]) -> tuple[Found, str]:
        """Whether these files are there and are those of `request`; and in words what is not as asked for."""
        return found_files(tuple(self.pictures.values()), self.record, request)

    def write(
        self, pictures: Mapping[str, UInt8[np.ndarray, "h w *c"]], request: dict[str, Any], command: Sequence[str]
    ) -> None:
        """Writes all; a file appears under its name only when it is whole, the record last."""
        hashes = {}
        for name, path in self.pictures.items():
            with written_whole(path) as temporary:
                Image.fromarray(pictures[name]).save(temporary)
                hashes[path.name] = file_sha256(temporary)
        document = {"format": FORMAT, "request": request, "command": shlex.join(command)} | made() | {"outputs": hashes}
        with written_whole(self.record) as temporary:
            temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_folder(folder: Path) -> int:
    """How many pixels a token of a FLUX.1 release is wide, after a look at whether all parts of it are there.

    Raises:
      UsageError: the folder is no release of FLUX.1. InputError: the VAE's config.json cannot be used.
    """
    missing = [name for name in PARTS if not (folder / name).is_dir()]
    if missing:
        raise UsageError(
            f"The model {printable(str(folder))} is no FLUX.1 release as diffusers lays it out: it has no folder "
            f"{', '.join(missing)}."
        )
    path = folder / "vae" / "config.json"
    try:
        return 2 ** len(json.loads(path.read_text())["block_out_channels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{printable(str(path))} does not say the VAE's sizes ({error}).") from None


def fingerprints(folder: Path) -> dict[str, str]:
    """For every weight file of a release, SHA-256 of its size, its first and its last mebibyte.

    All of FLUX.1's 34 GB would take longer to read than a picture takes to make.
    """
    files = sorted([*folder.glob("*/*.safetensors"), *folder.glob("*/*.json")])
    return {
        str(file.relative_to(folder)): _fingerprint(file, file.stat().st_size, file.stat().st_mtime_ns)
        for file in files
    }


@functools.cache
def _fingerprint(path: Path, size: int, stamp: int) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256(str(size).encode() + file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
    return digest.hexdigest()


def mask_picture(characters: np.ndarray, count: int, shape: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """A mask as a grey picture of (height, width) pixels: background black, the last of `count` characters white."""
    height, width = (size // tokens for size, tokens in zip(shape, characters.shape))
    grey = (characters * (255 // count)).astype(np.uint8)
    return np.repeat(np.repeat(grey, height, axis=0), width, axis=1)
