"""From pictures of any size to what each release of an image encoder was trained to read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from kaleido_jax.models.vision import resampling
from kaleido_jax.models.vision.modeling import VisionEncoder
from kaleido_jax.models.vision.resampling import Method

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize the shorter side, crop the middle, normalise.

    shorter_side: pixels of it after resizing; the longer one is rounded down.
    crop: side of the square that is cut from the middle, or None to keep the whole picture.
    method: the kernel of resizing. antialias: whether it averages where it shrinks, as Pillow does; some metrics were
      defined without.
    mean, std: of the channels of pixels in [0, 1].
    """

    shorter_side: int
    crop: int | None
    method: Method = "bicubic"
    antialias: bool = True
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self):
        if self.shorter_side < 1:
            raise ValueError(f"Preprocessing.shorter_side is {self.shorter_side}; expected a positive integer.")
        if self.crop is not None and not 1 <= self.crop <= self.shorter_side:
            raise ValueError(f"Preprocessing.crop is {self.crop}; expected 1 to shorter_side, {self.shorter_side}.")

    @classmethod
    def clip(cls, size: int = 224) -> Preprocessing:
        """CLIP's own, for all of its sizes (transformers' CLIPImageProcessor)."""
        return cls(shorter_side=size, crop=size, mean=CLIP_MEAN, std=CLIP_STD)

    @classmethod
    def dino(cls) -> Preprocessing:
        """DINO's and DINOv2's evaluation, and so DINO-I's."""
        return cls(shorter_side=256, crop=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @classmethod
    def vbench_clip(cls, size: int = 224) -> Preprocessing:
        """What VBench's background consistency gives CLIP ViT-B/32, and its overall consistency ViCLIP."""
        return dataclasses.replace(cls.clip(size), antialias=False)

    @classmethod
    def vbench_dino(cls) -> Preprocessing:
        """What VBench's subject consistency gives DINO ViT-B/16: the whole frame."""
        return cls(
            shorter_side=224, crop=None, method="bilinear", antialias=False, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )

    def __call__(self, pictures: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "b h w 3"]:
        """A batch for `VisionEncoder`, from pictures that have one size once they are resized and cropped."""
        ready = [self._one(picture) for picture in pictures]
        sizes = {picture.shape for picture in ready}
        if len(sizes) != 1:
            raise ValueError(f"pictures have the sizes {sorted(sizes)} after resizing; expected one and the same.")
        return np.stack(ready)

    def _one(self, picture: np.ndarray) -> np.ndarray:
        picture = self._resized(picture)
        if self.crop is not None:
            top, left = ((size - self.crop) // 2 for size in picture.shape[:2])
            picture = picture[top : top + self.crop, left : left + self.crop]
        # Rows of pixels with their channels side by side: over an axis of three, numpy takes several times as long.
        flat = picture.reshape(len(picture), -1).astype(np.float32)
        flat /= np.float32(255)
        flat -= np.tile(np.float32(self.mean), picture.shape[1])
        flat /= np.tile(np.float32(self.std), picture.shape[1])
        return flat.reshape(picture.shape)

    def _resized(self, picture: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """8-bit again, as the libraries that the releases used leave it."""
        height, width = picture.shape[:2]
        shorter = min(height, width)
        to = tuple(size * self.shorter_side // shorter for size in (height, width))
        if to == (height, width):
            return picture
        if self.antialias:
            return np.asarray(Image.fromarray(picture).resize(to[::-1], _PILLOW[self.method]))
        rows, columns = (_taps(n, m, self.method) for n, m in zip((height, width), to))
        resized = _summed(_summed(picture.astype(np.float32), rows).transpose(1, 0, 2), columns)
        np.clip(np.rint(resized, out=resized), 0, 255, out=resized)
        return resized.astype(np.uint8).transpose(1, 0, 2)


@functools.lru_cache(maxsize=64)
def _taps(size: int, to: int, method: Method) -> tuple[np.ndarray, np.ndarray]:
    """Of `resampling.weights` without antialiasing, what is not 0: places and weights `[to, k]`."""
    matrix = resampling.weights(size, to, method=method)
    count = int((matrix != 0).sum(1).max())
    places = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count]
    return places, np.take_along_axis(matrix, places, axis=1)


def _summed(x: np.ndarray, taps: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """A picture float32 `[n, m, 3]` resized along its first axis: a few sums of whole lines cost less than a product of
    matrices, and leave the other cores alone."""
    places, weights = taps
    lines = x.reshape(len(x), -1)
    total = np.take(lines, places[:, 0], axis=0)
    total *= weights[:, 0, None]
    part = np.empty_like(total)
    for i in range(1, places.shape[1]):
        np.take(lines, places[:, i], axis=0, out=part, mode="clip")  # without a mode it goes through a buffer
        part *= weights[:, i, None]
        total += part
    return total.reshape(-1, *x.shape[1:])


def wan_image(pictures: Float[Array, "b y x 3"]) -> Float32[Array, "b 224 224 3"]:
    """What Wan's image-to-video models give CLIP ViT-H/14 of pictures in [-1, 1]: all of them, squeezed into a square.

    Bicubic without antialiasing and on the pixels as they are, as the original code has it. (diffusers' pipeline
    resizes the shorter side and crops, as `Preprocessing.clip` does.)
    """
    rows, columns = (resampling.weights(size, 224) for size in pictures.shape[1:3])
    pixels = resampling.resize(pictures.astype(jnp.float32), rows, columns) * 0.5 + 0.5
    mean, std = (jnp.asarray(values, jnp.float32)[None, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def wan_image_tokens(encoder: VisionEncoder, pictures: Float[Array, "b y x 3"]) -> Float[Array, "b n d"]:
    """The tokens that WanTransformer reads as `image`, of first frames in [-1, 1]: CLIP's, before its last block.

    Of `VisionConfig.clip_h14` they are [b, 257, 1280].
    """
    return encoder.stream(wan_image(pictures), skip=1)
