"""References that a data pipeline never made: photographs as people have them, each fault in three strengths.

For the study of how a method fails on them (`tools/reference_failures.py`), and as an augmentation of training
(`data.perturbed`). A picture is a reference as the world draws them: its content fitted and centred on white.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from kaleido_jax.data.drawing import chance, generator, pick, whole
from kaleido_jax.data.world import BACKGROUND, Sample, World
from kaleido_jax.errors import UsageError
from kaleido_jax.names import lookup
from kaleido_jax.typing import UInt8

STRENGTHS = (1, 2, 3)
Picture = UInt8[np.ndarray, "h w 3"]
_AnySize = UInt8[np.ndarray, "_ _ 3"]
# (picture, number from 0 for the strength, generator, other pictures) -> picture
_Fault = Callable[[Picture, int, np.random.Generator, Sequence[Picture]], Picture]


def _jpeg(picture: Picture, level: int, rng: np.random.Generator, others: Sequence[Picture]) -> Picture:
    """Saved at a quality of 30, 12 or 4."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=(30, 12, 4)[level])
    return np.asarray(Image.open(file).convert("RGB"))


def _blur(picture: Picture, level: int, rng: np.random.Generator, others: Sequence[Picture]) -> Picture:
    """Out of focus: a Gaussian whose deviation is 1, 2.5 or 5 in a hundred of the shorter side."""
    radius = (0.01, 0.025, 0.05)[level] * min(picture.shape[:2])
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _lighting(picture: Picture, level: int, rng: np.random.Generator, others: Sequence[Picture]) -> Picture:
    """Light from one side, of another colour: the far side has 60, 35 or 15 in a hundred of it."""
    across = np.linspace(1.0, (0.6, 0.35, 0.15)[level], picture.shape[1])[None, :, None]
    if chance(rng, 0.5):
        across = across[:, ::-1]
    cast = (0.1, 0.25, 0.45)[level]
    tint = 1.0 - cast * np.array(pick(rng, ((0.0, 0.5, 1.0), (1.0, 0.5, 0.0))))  # warm, cold
    return np.round(picture * across * tint).astype(np.uint8)


def _crop(picture: Picture, level: int, rng: np.random.Generator, others: Sequence[Picture]) -> Picture:
    """What is left of the content has 80, 60 or 40 in a hundred of its height and width, as large as it was whole."""
    top, left, bottom, right = _content(picture)
    share = (0.8, 0.6, 0.4)[level]
    tall, wide = max(1, round((bottom - top) * share)), max(1, round((right - left) * share))
    y, x = whole(rng, top, bottom - tall), whole(rng, left, right - wide)
    return _fitted(picture[y : y + tall, x : x + wide], *picture.shape[:2])


def _occlusion(picture: Picture, level: int, rng: np.random.Generator, others: Sequence[Picture]) -> Picture:
    """Something grey before it, over 15, 35 or 60 in a hundred of its content's box."""
    top, left, bottom, right = _content(picture)
    side = (0.15, 0.35, 0.6)[level] ** 0.5
    tall, wide = max(1, round((bottom - top) * side)), max(1, round((right - left) * side))
    y, x = whole(rng, top, bottom - tall), whole(rng, left, right - wide)
    found = picture.copy()
    found[y : y + tall, x : x + wide] = whole(rng, 60, 180)
    return found


def _pose(picture: Picture, level: int, rng: np.random.Generator, others: Sequence[Picture]) -> Picture:
    """Turned by 45, 90 or 180 degrees."""
    angle = (45, 90, 180)[level] * pick(rng, (-1, 1))
    top, left, bottom, right = _content(picture)
    turned = Image.fromarray(picture[top:bottom, left:right]).rotate(
        angle, resample=Image.Resampling.BICUBIC, expand=True, fillcolor=(255, 255, 255)
    )
    return _fitted(np.asarray(turned), *picture.shape[:2])


def _crowded(picture: Picture, level: int, rng: np.random.Generator, others: Sequence[Picture]) -> Picture:
    """Among 1, 2 or 4 others: it has 75, 60 or 45 in a hundred of the room in the middle, they are behind it."""
    height, width = picture.shape[:2]
    canvas = np.full_like(picture, 255)
    count = (1, 2, 4)[level]
    if len(others) < count:
        raise UsageError(f"A crowd of strength {level + 1} takes {count} other pictures; {len(others)} are given.")
    corners = ((0, 0), (1, 1), (0, 1), (1, 0))
    for other, (down, along) in zip(others[:count], corners):
        _paste(canvas, other, 0.5, down * (height - height // 2), along * (width - width // 2))
    share = (0.75, 0.6, 0.45)[level]
    _paste(canvas, picture, share, round(height * (1 - share) / 2), round(width * (1 - share) / 2))
    return canvas


def _cartoon(picture: Picture, level: int, rng: np.random.Generator, others: Sequence[Picture]) -> Picture:
    """Flat colours with dark outlines: 6, 4 or 3 steps of each colour."""
    steps = (6, 4, 3)[level] - 1
    smooth = Image.fromarray(picture).filter(ImageFilter.MedianFilter(3 if level < 2 else 5))
    flat = np.round(np.asarray(smooth) / 255 * steps) / steps * 255
    grey = np.asarray(smooth.convert("L"), np.float64)
    rows, columns = np.gradient(grey)
    edge = np.hypot(rows, columns) > (40, 30, 20)[level]
    return np.where(edge[..., None], 20, np.round(flat)).astype(np.uint8)


FAULTS: Mapping[str, _Fault] = {
    "jpeg": _jpeg,
    "blur": _blur,
    "lighting": _lighting,
    "crop": _crop,
    "occlusion": _occlusion,
    "unusual pose": _pose,
    "crowded": _crowded,
    "cartoon": _cartoon,
}


def perturbed(picture: Picture, fault: str, strength: int, seed: int, others: Sequence[Picture] = ()) -> Picture:
    """The picture with a fault of `FAULTS` in a strength of `STRENGTHS`; the same arguments give the same pixels.

    others: for "crowded", pictures of other subjects, as large as this one.

    Raises:
      UsageError: there is no such fault (says the nearest) or strength, or too few others.
    """
    make = lookup(FAULTS, fault, "fault of a reference")
    if strength not in STRENGTHS:
        raise UsageError(f"The strength of {fault} is {strength}; it must be one of 1, 2, 3.")
    return make(picture, strength - 1, generator(0xFA17, seed, list(FAULTS).index(fault)), others)


def strangers(world: World, seed: int, split: str, count: int = 4) -> list[Picture]:
    """Pictures of other subjects of a split, cut out."""
    rng = generator(0x57A6, seed)
    draw = lambda: world.identity(2 * int(rng.random() * 2**52) + (split == "heldout"))
    return [world.picture(draw(), whole(rng, 0, 2**52), split=split, style="white") for _ in range(count)]


def augmented(world: World, sample: Sample, seed: int, share: float, split: str = "train") -> Sample:
    """The sample of `seed`, each reference of a subject with any fault in any strength at a chance of `share`."""
    rng = generator(0xA06, seed)
    references = []
    for index, (picture, subject) in enumerate(sample.references):
        if subject != BACKGROUND and chance(rng, share):
            fault, strength = pick(rng, tuple(FAULTS)), pick(rng, STRENGTHS)
            others = strangers(world, seed, split) if fault == "crowded" else ()
            picture = perturbed(picture, fault, strength, 8 * seed + index, others)
        references.append((picture, subject))
    return replace(sample, references=references)


def _content(picture: _AnySize) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what is not white; all of a picture that is white."""
    seen = (picture < 250).any(axis=-1)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not rows.size:
        return 0, 0, picture.shape[0], picture.shape[1]
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _fitted(content: _AnySize, height: int, width: int) -> _AnySize:
    """Content as large as fits nine tenths of a white canvas, in its middle."""
    canvas = np.full((height, width, 3), 255, np.uint8)
    _paste(canvas, content, 0.9, round(0.05 * height), round(0.05 * width))
    return canvas


def _paste(canvas: _AnySize, picture: _AnySize, share: float, top: int, left: int) -> None:
    """Puts what is not white of a picture into a part of a canvas, fitted and centred."""
    room_h, room_w = max(1, round(canvas.shape[0] * share)), max(1, round(canvas.shape[1] * share))
    scale = min(room_h / picture.shape[0], room_w / picture.shape[1])
    tall, wide = max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))
    small = np.asarray(Image.fromarray(picture).resize((wide, tall), Image.Resampling.BICUBIC))
    y, x = top + (room_h - tall) // 2, left + (room_w - wide) // 2
    y, x = min(y, canvas.shape[0] - tall), min(x, canvas.shape[1] - wide)
    place = canvas[y : y + tall, x : x + wide]
    place[...] = np.where((small < 250).any(axis=-1, keepdims=True), small, place)
