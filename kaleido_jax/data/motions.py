"""What subjects do: each motion is a path of (x, y, scale, angle) over the frames, and how the limbs go."""

from dataclasses import dataclass

import numpy as np

from kaleido_jax.data.drawing import between

MOTIONS = ("right", "left", "up", "down", "hop", "spin", "grow", "shrink", "still", "circle")
SIZES = (0.44, 0.62)  # of a subject that is alone, as a share of the frame's height


@dataclass(frozen=True, kw_only=True)
class Path:
    """A subject's path; arrays have one number per frame.

    Attributes:
        x, y: middle of the subject, as shares of the frame's width and height.
        height: size as a share of the frame's height.
        angle: radians, clockwise.
        gait: turns of the limbs' swing.
        reach: how far the limbs swing, 0 to 1.
        mirror: whether the subject is mirrored (side views look right otherwise).
    """

    x: np.ndarray
    y: np.ndarray
    height: np.ndarray
    angle: np.ndarray
    gait: np.ndarray
    reach: float
    mirror: bool


def draw_path(
    rng: np.random.Generator, motion: str, frames: int, *, aspect: float, lane: tuple[float, float],
    floor: tuple[float, float],
    grounded: bool, low: float, high: float
) -> Path:  # fmt: skip
    """A path for `motion`.

    Args:
        frames: number of frames; a motion is complete over all of them.
        aspect: width of the frame over its height.
        lane: the share of the width that the subject stands in, (left, right).
        floor: where the feet may stand, as shares of the frame's height from the top.
        grounded: whether growing and shrinking keeps the feet where they are.
        low, high: bounds of the subject's size as a share of the frame's height.
    """
    t = np.linspace(0, 1, frames)
    size = between(rng, low, high)
    half_x, half = size / 2 / aspect, size / 2
    centre = (lane[0] + lane[1]) / 2
    room = max(lane[1] - lane[0] - 2 * half_x, 0.0)
    x = np.full(frames, centre + between(rng, -0.25, 0.25) * room)
    feet = between(rng, *floor)
    y = np.full(frames, feet - half)
    height, angle = np.full(frames, size), np.zeros(frames)
    angle += between(rng, -0.12, 0.12)
    steps, reach = between(rng, 1.5, 3.0), 0.35
    mirror = motion == "left"
    if motion in ("right", "left"):
        travel = min(between(rng, 0.42, 0.62), 1.0 - 1.2 * half_x)
        start = between(rng, half_x * 0.7, max(1 - travel - half_x * 0.7, half_x * 0.7 + 0.01))
        x = start + travel * t
        if motion == "left":
            x = 1 - x
        reach = 1.0
        y = y - 0.02 * np.abs(np.sin(2 * np.pi * steps * t))
    elif motion in ("up", "down"):
        travel = min(between(rng, 0.4, 0.55), 1 - size)
        start = 1 - half - between(rng, 0.0, max(1 - size - travel, 0.01))
        y = start - travel * t if motion == "up" else start - travel * (1 - t)
    elif motion == "hop":
        hops, rise = 2, min(between(rng, 0.2, 0.34), feet - size - 0.01 if feet - size > 0.16 else 0.16)
        arc = np.abs(np.sin(np.pi * hops * t))
        y = y - rise * arc
        steps, reach = hops / 2, 0.8
    elif motion == "spin":
        angle = angle + 2 * np.pi * between(rng, 0.9, 1.3) * t
        y = np.full(frames, min(feet - half, 1 - size * 0.6))
        reach = 0.0
    elif motion in ("grow", "shrink"):
        small, large = size * between(rng, 0.42, 0.55), size * between(rng, 1.1, 1.3)
        height = small + (large - small) * (t if motion == "grow" else 1 - t)
        y = feet - height / 2 if grounded else np.full(frames, between(rng, 0.45, 0.6))
    elif motion == "circle":
        radius = between(rng, 0.14, 0.2)
        turn = 2 * np.pi * (between(rng, 0.9, 1.2) * t - 0.25)  # clockwise from the top
        centre_x = min(max(float(x[0]), half_x + radius / aspect), 1 - half_x - radius / aspect)
        centre_y = min(max(between(rng, 0.45, 0.6), half + radius * 0.9), 1 - half - radius * 0.9)
        x, y = centre_x + radius / aspect * np.cos(turn), centre_y + radius * 0.9 * np.sin(turn)
    elif motion == "still":
        angle = angle + 0.08 * np.sin(2 * np.pi * t * between(rng, 1, 2))
    else:
        raise ValueError(f"motion is {motion!r}; it must be one of {', '.join(MOTIONS)}.")
    return Path(x=x, y=y, height=height, angle=angle, gait=steps * t + rng.random(), reach=reach, mirror=mirror)
