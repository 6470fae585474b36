"""Photographs that are already on the machine: those that scikit-image carries inside its package.

Nothing is downloaded and scikit-image is not imported; its folder is found and the files are read. Some pictures are
only ever seen in the held-out split, so that "works on a photograph it has never seen" can be measured.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from kaleido_jax.data.drawing import between, chance, pick, whole
from kaleido_jax.errors import UsageError

TRAIN = (
    "brick.png", "camera.png", "cell.png", "clock_motion.png", "coins.png", "color.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "logo.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg",
)  # fmt: skip
HELDOUT = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
_LONG_SIDE = 400


@dataclass(frozen=True)
class Photographs:
    """Pictures of one split, uint8 `[height, width, 3]` each."""

    pictures: tuple[np.ndarray, ...]

    def crop(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """A random crop resized to uint8 `[height, width, 3]`, mirrored and with its colours moved about at random."""
        picture = pick(rng, self.pictures)
        tall, wide = picture.shape[:2]
        scale = between(rng, 0.3, 1.0) * min(tall / height, wide / width)
        h, w = max(int(height * scale), 8), max(int(width * scale), 8)
        y, x = whole(rng, 0, tall - h), whole(rng, 0, wide - w)
        part = Image.fromarray(picture[y : y + h, x : x + w])
        crop = np.asarray(part.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))
        if chance(rng, 0.5):
            crop = crop[:, ::-1]
        if chance(rng, 0.5):
            # Few pictures ship; a random mix of the channels makes many kinds of light out of them.
            mix = np.eye(3) * between(rng, 0.6, 1.0) + np.array(
                [[between(rng, -0.25, 0.45) for _ in range(3)] for _ in range(3)]
            )
            crop = np.clip(crop.astype(np.float32) @ mix.astype(np.float32) + between(rng, -20, 40), 0, 255).astype(
                np.uint8
            )
        return np.ascontiguousarray(crop)


@cache
def load(split: str) -> Photographs:
    """The photographs of `split`; UsageError where scikit-image is not installed."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            "The procedural world takes crops from scikit-image's pictures, and scikit-image is not installed: "
            "pip install 'kaleido_jax[data]', or, in Python, use World(photographs=False)."
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    pictures = []
    for name in HELDOUT if split == "heldout" else TRAIN:
        with Image.open(folder / name) as file:
            picture = file.convert("RGBA")
            canvas = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            canvas.alpha_composite(picture)
            canvas.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
            pictures.append(np.asarray(canvas.convert("RGB")))
    return Photographs(tuple(pictures))
