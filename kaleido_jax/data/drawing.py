"""Small helpers shared by the procedural world: draws from a generator, outlines as point arrays, colours.

Points are float arrays `[n, 2]` of (x, y) with y pointing down. Every draw goes through `Generator.random`, whose
stream numpy keeps stable between versions, so that a seed means the same picture everywhere.
"""

import colorsys
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Points = np.ndarray
Number = int | float
Colour = tuple[int, int, int]


def generator(*entropy: int) -> np.random.Generator:
    """A generator that depends on all of `entropy` (non-negative integers of any size) and on nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, all equally likely."""
    return items[int(rng.random() * len(items))]


def weighted(rng: np.random.Generator, weights: dict[T, Number]) -> T:
    """One key, likely in proportion to its value."""
    point = rng.random() * sum(weights.values())
    for item, weight in weights.items():
        point -= weight
        if point < 0:
            return item
    return next(reversed(weights))


def between(rng: np.random.Generator, low: Number, high: Number) -> float:
    """A uniform draw from [low, high)."""
    return low + (high - low) * rng.random()


def chance(rng: np.random.Generator, probability: Number) -> bool:
    return bool(rng.random() < probability)


def whole(rng: np.random.Generator, low: int, high: int) -> int:
    """A uniform integer from low to high, both included."""
    return low + int(rng.random() * (high - low + 1))


def points(*pairs: tuple[Number, Number]) -> Points:
    return np.asarray(pairs, np.float64)


def ellipse(
    x: Number, y: Number, rx: Number, ry: Number, angle: Number = 0.0, count: int = 28, power: Number = 2.0
) -> Points:
    """A closed superellipse outline; power 2 is an ellipse, larger is boxier, 1 a diamond."""
    circle = _circle(count)
    if power != 2.0:
        circle = np.sign(circle) * np.abs(circle) ** (2 / power)
    outline = circle * [rx, ry]
    return (rotated(outline, angle) if angle else outline) + [x, y]


@cache
def _circle(count: int) -> Points:
    turn = np.arange(count) * (2 * np.pi / count)
    return np.stack([np.cos(turn), np.sin(turn)], 1)


def box(x0: Number, y0: Number, x1: Number, y1: Number) -> Points:
    return points((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def rotated(outline: Points, angle: Number, pivot: tuple[Number, Number] = (0.0, 0.0)) -> Points:
    """`outline` turned clockwise on the screen by `angle` radians about `pivot`."""
    cosine, sine = np.cos(angle), np.sin(angle)
    centre = np.asarray(pivot)
    return (outline - centre) @ np.array([[cosine, sine], [-sine, cosine]]) + centre


def thick(line: Points, start: Number, end: Number, cap: bool = True) -> Points:
    """The closed outline of a line whose width goes from `start` to `end`, with a round tip if `cap`."""
    step = np.gradient(line, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], 1) / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-9)
    half = (np.linspace(start, end, len(line)) / 2)[:, None]
    left, right = line + normal * half, (line - normal * half)[::-1]
    if not cap:
        return np.concatenate([left, right])
    direction = step[-1] / max(float(np.linalg.norm(step[-1])), 1e-9)
    turn = np.linspace(-np.pi / 2, np.pi / 2, 7)[1:-1][::-1]
    tip = line[-1] + half[-1] * (np.cos(turn)[:, None] * direction + np.sin(turn)[:, None] * normal[-1])
    return np.concatenate([left, tip, right])


def curve(
    start: tuple[Number, Number], middle: tuple[Number, Number], end: tuple[Number, Number], count: int = 9
) -> Points:
    """A quadratic Bezier curve."""
    t = np.linspace(0, 1, count)[:, None]
    return (1 - t) ** 2 * np.asarray(start) + 2 * t * (1 - t) * np.asarray(middle) + t**2 * np.asarray(end)


def hsv(hue: Number, saturation: Number, value: Number) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(r * 255), round(g * 255), round(b * 255)


def mixed(first: Colour, second: Colour, share: Number) -> Colour:
    """`first` with `share` of `second` in it."""
    r, g, b = (round(a + (c - a) * share) for a, c in zip(first, second))
    return r, g, b


def varied(rng: np.random.Generator, colour: Colour, amount: Number) -> Colour:
    """`colour` moved by up to `amount` levels in each channel."""
    r, g, b = (min(max(round(c + between(rng, -amount, amount)), 0), 255) for c in colour)
    return r, g, b


# Anchors of the colour words; several anchors may carry one word.
_COLOUR_ANCHORS: tuple[tuple[str, Colour], ...] = (
    ("red", (205, 35, 40)), ("red", (150, 20, 30)), ("orange", (240, 130, 25)), ("yellow", (245, 215, 50)),
    ("green", (55, 165, 60)), ("green", (25, 95, 40)), ("green", (150, 215, 80)), ("teal", (30, 150, 150)),
    ("blue", (45, 85, 205)), ("blue", (25, 40, 120)), ("blue", (100, 175, 240)), ("purple", (125, 55, 175)),
    ("purple", (80, 30, 110)), ("pink", (240, 125, 185)), ("pink", (215, 50, 140)), ("brown", (125, 75, 35)),
    ("brown", (85, 50, 30)), ("black", (25, 25, 28)), ("gray", (128, 128, 128)), ("gray", (80, 80, 84)),
    ("white", (240, 240, 240)), ("gray", (180, 180, 180)),
)  # fmt: skip
COLOUR_WORDS = tuple(dict.fromkeys(word for word, _ in _COLOUR_ANCHORS))
_ANCHORS = np.array([colour for _, colour in _COLOUR_ANCHORS], np.float32)
_ANCHOR_WORD = np.array([COLOUR_WORDS.index(word) for word, _ in _COLOUR_ANCHORS])


def colour_indices(rgb: np.ndarray) -> np.ndarray:
    """For pixels `[..., 3]`, the index into COLOUR_WORDS of the nearest anchor."""
    pixels = np.asarray(rgb, np.float32)
    # |p - a|^2 up to a term that does not depend on the anchor: one small matrix product.
    distance = (_ANCHORS**2).sum(1) - 2 * pixels @ _ANCHORS.T
    return _ANCHOR_WORD[np.argmin(distance, -1)]


def colour_word(colour: Colour) -> str:
    """The word for a colour: that of the nearest anchor."""
    return COLOUR_WORDS[int(colour_indices(np.asarray([colour]))[0])]
