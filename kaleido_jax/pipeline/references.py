"""Reference pictures and clips of a request: read, fitted to the video's frame, and known by their content."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kaleido_jax.errors import InputError
from kaleido_jax.media.clips import is_clip, read_clip
from kaleido_jax.media.images import MAX_PIXELS, MAX_SIDE, read_image
from kaleido_jax.media.references import fill, fit_on_white
from kaleido_jax.pipeline.request import shown

# A path, a Pillow picture, or an array uint8 [h, w, 3].
Picture = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """One picture (a single frame) or clip of a subject, as the model gets it.

    pixels: fitted on white to the video's frame. subject: number of the subject that it shows, from 0.
    name: the file as given, or "" for what came from memory. sha256: of the pixels.
    """

    pixels: UInt8[np.ndarray, "f h w 3"]
    subject: int
    name: str

    @property
    def sha256(self) -> str:
        header = "x".join(map(str, self.pixels.shape)).encode()
        return hashlib.sha256(header + self.pixels.tobytes()).hexdigest()


def read_references(
    references: Sequence[Picture | Sequence[Picture]],
    *,
    height: int,
    width: int,
    frames: int,
    frames_per_second: int,
    show: Literal["subjects", "frames"] = "subjects",
) -> tuple[Reference, ...]:
    """All references in their order, fitted to `height` x `width`.

    Args:
      references: one entry a subject: a picture, a clip, or a sequence of pictures and clips that all show it.
      frames, frames_per_second: a clip gives at most so many frames, sampled at this rate.
      show: whether they are subjects, on white, or frames of the video: pictures that fill it, cut off at the sides.

    Raises:
      InputError: names the first file that cannot be used, and what would be right.
    """
    if isinstance(references, str | bytes | os.PathLike | Image.Image | np.ndarray):
        raise InputError(f"references is {_kind(references)}; give a list with one entry for each subject.")
    fit = fit_on_white if show == "subjects" else fill
    read = lambda picture: _pixels(picture, height, width, frames, frames_per_second, fit)
    result = []
    for subject, entry in enumerate(references):
        pictures = list(entry) if isinstance(entry, Sequence) and not isinstance(entry, str | bytes) else [entry]
        if not pictures:
            raise InputError(f"Subject {subject + 1} has an empty list of reference pictures; give it at least one.")
        for picture in pictures:
            name = os.fspath(picture) if isinstance(picture, str | os.PathLike) else ""
            result.append(Reference(pixels=read(picture), subject=subject, name=os.fsdecode(name)))
    return tuple(result)


def _pixels(
    picture: Any, height: int, width: int, frames: int, rate: int, fit: Callable[..., np.ndarray]
) -> UInt8[np.ndarray, "f h w 3"]:
    if isinstance(picture, str | os.PathLike):
        if is_clip(picture):
            if fit is fill:
                raise InputError(f"{shown(os.fsdecode(picture))} is a clip; give pictures of the frames.")
            clip = read_clip(picture, frames=frames, height=height, width=width, frames_per_second=rate)
            if len(clip) == 1 and frames > 1:
                raise InputError(
                    f"{shown(os.fsdecode(picture))}: the clip has fewer than 5 frames at {rate} a second, not even one "
                    "latent frame after its first; give a longer clip, or a picture."
                )
            return clip
        return fit(read_image(picture), height, width)[None]
    if isinstance(picture, Image.Image):
        rgba = np.array(picture.convert("RGBA"))
        alpha = rgba[..., 3:].astype(np.float32) / 255
        picture = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(f"A reference is {_kind(picture)}; give a path, a Pillow picture, or a uint8 array [h, w, 3].")
    tall, wide = picture.shape[:2]
    if not (tall and wide) or max(tall, wide) > MAX_SIDE or tall * wide > MAX_PIXELS:
        raise InputError(f"A reference has {wide} x {tall} pixels; give 1 x 1 to {MAX_PIXELS // 10**6} megapixels.")
    return fit(picture, height, width)[None]


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {list(value.shape)}"
    return (
        f"a {type(value).__name__} ({shown(value)})"
        if isinstance(value, str | int | float)
        else f"a {type(value).__name__}"
    )
