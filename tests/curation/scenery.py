"""Tiny videos whose truth is known, and a detector and segmenter that see it: a coloured ball before a grey scene."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kaleido_jax.curation import pictures
from kaleido_jax.curation.models.protocol import Found
from kaleido_jax.curation.settings import Curation, Filters, Frames, Models, Pairs, Slicing
from kaleido_jax.media.video import write_mp4

SIZE, FRAMES, FPS = 48, 9, 8
COLOURS = ((220, 40, 40), (40, 200, 40), (50, 60, 230))


def ball_video(number: int, radius: int = 9, step: int = 3) -> np.ndarray:
    """A ball that rolls before a scene of its own: each number has other greys, so that scenes can be told apart."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    grey = 60 + 15 * (number % 8) + 20 * np.sin(x / (3 + number % 5)) + 20 * np.cos(y / (2 + number % 7))
    video = np.repeat(np.repeat(grey.astype(np.uint8)[None, ..., None], 3, -1), FRAMES, 0)
    for frame in range(FRAMES):
        inside = (x - 12 - step * frame) ** 2 + (y - 24) ** 2 < radius**2
        stripes = np.where((x + y)[inside] % 6 < 3, 1.0, 0.7)[:, None]
        video[frame][inside] = (np.array(COLOURS[number % 3]) * stripes).astype(np.uint8)
    return video


def write_balls(folder: Path, count: int) -> None:
    """Videos 0 ... count - 1 with captions, and one file that is cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_mp4(folder / f"{number:02d}.mp4", ball_video(number), FPS)
        (folder / f"{number:02d}.txt").write_text("two balls" if number == 1 else "A striped ball rolls along.")
    (folder / "damaged.mp4").write_bytes((folder / "00.mp4").read_bytes()[:900])


def colourful(picture: np.ndarray) -> np.ndarray:
    return picture.max(-1).astype(int) - picture.min(-1) > 60


@dataclass(frozen=True)
class Colourful:
    """Finds and cuts out what is colourful."""

    def load(self) -> "Colourful":
        return self

    def detect(self, frames, keys, phrases):
        boxes = tuple(pictures.box_of(colourful(frames[key])) for key in keys)
        return [Found(boxes=boxes, scores=(0.9,) * len(keys)), *[None] * (len(phrases) - 1)]

    def segment(self, frames, keys, found):
        return np.stack([[colourful(frames[key]) for key in keys] for _ in found])

    def paint(self, picture, hole):
        return np.where(hole[..., None], np.uint8(picture[~hole].mean()), picture)


def tiny(**changes) -> Curation:
    """A curation of the balls."""
    return Curation(
        name="tiny",
        slicing=Slicing(method="histogram", seconds=(0.5, 5.0), margin=0.0, side=32),
        frames=Frames(fps=float(FPS), count=FRAMES, height=SIZE, width=SIZE, keys=3),
        filters=Filters(blur=1.0, subject_blur=1.0),
        models=Models(detector=Colourful(), segmenter=Colourful(), inpainter=Colourful()),
        pairs=Pairs(cross=0.7),
        shards=2,
        **changes,
    )
