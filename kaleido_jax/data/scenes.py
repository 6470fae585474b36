"""Where things happen: named scenes drawn with variations, and plates cut from photographs or noise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from kaleido_jax.data.drawing import (
    Colour,
    Number,
    between,
    chance,
    ellipse,
    generator,
    hsv,
    mixed,
    pick,
    varied,
    whole,
)
from kaleido_jax.data.photographs import Photographs
from kaleido_jax.data.textures import smooth_noise


@dataclass(frozen=True)
class Plate:
    """A painted scene: the RGB picture, its name, and the horizon's y as a share of the height (None: no floor)."""

    picture: Image.Image
    name: str
    ground: Number | None


class _Brush:
    """Draws in shares of the frame (x and y from 0 to 1) on a canvas of twice the resolution."""

    def __init__(self, width: int, height: int):
        self.width, self.height = 2 * width, 2 * height
        self.aspect = width / height
        self.image = Image.new("RGB", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.image)

    def gradient(self, top: Colour, bottom: Colour, y0: Number = 0.0, y1: Number = 1.0) -> None:
        rows = max(round((y1 - y0) * self.height), 1)
        share = np.linspace(0, 1, rows)[:, None]
        colours = np.asarray(top) * (1 - share) + np.asarray(bottom) * share
        strip = Image.fromarray(colours[:, None].round().astype(np.uint8)).resize(
            (self.width, rows), Image.Resampling.NEAREST
        )
        self.image.paste(strip, (0, round(y0 * self.height)))
        if y1 < 1:  # the last colour goes on, so that hills drawn over it leave no gap
            self.rectangle(0, y1, 1, 1, bottom)

    def polygon(self, outline: np.ndarray, fill: Colour) -> None:
        self.draw.polygon((outline * [self.width, self.height]).ravel().tolist(), fill=fill)

    def rectangle(self, x0: Number, y0: Number, x1: Number, y1: Number, fill: Colour) -> None:
        self.polygon(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), fill)

    def disc(self, x: Number, y: Number, radius: Number, fill: Colour, flat: Number = 1.0) -> None:
        """A disc whose radius is a share of the height; `flat` shrinks it vertically."""
        self.polygon(ellipse(x, y, radius / self.aspect, radius * flat, count=22), fill)

    def hills(
        self, rng: np.random.Generator, y: Number, height: Number, bumps: Number, fill: Colour, sharp: bool = False
    ) -> None:
        x = np.linspace(0, 1, 33)
        wave = np.sin(2 * np.pi * (bumps * x + rng.random())) + 0.5 * np.sin(
            2 * np.pi * (2.3 * bumps * x + rng.random())
        )
        if sharp:
            wave = (
                2 * np.abs((bumps * x + rng.random()) % 1 - 0.5) * 2
                - 1
                + 0.4 * (2 * np.abs((2.7 * bumps * x) % 1 - 0.5) * 2 - 1)
            )
        top = y - height * (wave + 1.5) / 3
        self.polygon(np.concatenate([np.stack([x, top], 1), [[1, 1], [0, 1]]]), fill)

    def cloud(self, rng: np.random.Generator, x: Number, y: Number, size: Number, fill: Colour) -> None:
        for i in range(4):
            self.disc(
                x + (i - 1.5) * size * 0.8 / self.aspect,
                y + between(rng, -0.3, 0.2) * size,
                size * between(rng, 0.5, 0.9),
                fill,
                0.7,
            )


def _sky(rng: np.random.Generator, brush: _Brush, bottom: Number, clouds: bool = True, sun: bool = True) -> None:
    kind = pick(rng, ("day", "day", "day", "dusk", "pale"))
    if kind == "day":
        hue = between(rng, 0.53, 0.6)
        brush.gradient(
            hsv(hue, between(rng, 0.45, 0.75), between(rng, 0.8, 1)), hsv(hue, between(rng, 0.1, 0.3), 1), 0, bottom
        )
    elif kind == "dusk":
        brush.gradient(hsv(between(rng, 0.65, 0.8), 0.45, 0.7), hsv(between(rng, 0.02, 0.1), 0.5, 1), 0, bottom)
    else:
        brush.gradient(hsv(0.56, 0.12, 0.86), hsv(0.56, 0.05, 0.97), 0, bottom)
    if sun and chance(rng, 0.5):
        brush.disc(
            between(rng, 0.1, 0.9),
            between(rng, 0.08, 0.3) * bottom * 1.5,
            between(rng, 0.05, 0.09),
            hsv(0.13, between(rng, 0.1, 0.6), 1),
        )
    if clouds:
        for _ in range(whole(rng, 0, 3)):
            brush.cloud(
                rng,
                rng.random(),
                between(rng, 0.05, 0.7) * bottom,
                between(rng, 0.04, 0.08),
                mixed((255, 255, 255), hsv(0.6, 0.2, 0.8), rng.random() * 0.5),
            )


def _beach(rng: np.random.Generator, brush: _Brush) -> float:
    horizon, shore = between(rng, 0.3, 0.42), between(rng, 0.52, 0.66)
    _sky(rng, brush, horizon)
    brush.gradient(hsv(between(rng, 0.5, 0.58), 0.75, 0.65), hsv(0.5, 0.5, 0.85), horizon, shore + 0.06)
    sand = varied(rng, (232, 205, 148), 14)
    brush.hills(rng, shore + 0.05, 0.05, between(rng, 0.5, 1.2), (245, 248, 250))
    brush.hills(rng, shore + 0.08, 0.05, between(rng, 0.5, 1.2), sand)
    for _ in range(whole(rng, 8, 20)):
        brush.disc(rng.random(), between(rng, shore + 0.1, 1), 0.008, mixed(sand, (90, 70, 40), 0.35))
    if chance(rng, 0.5):
        x, y = pick(rng, (between(rng, 0.03, 0.15), between(rng, 0.85, 0.97))), shore + 0.1
        brush.polygon(np.array([[x - 0.02, y], [x, 0.2], [x + 0.02, 0.2], [x + 0.03, y]]), (120, 85, 50))
        for i in range(5):
            brush.polygon(
                ellipse(x + 0.1 * np.cos(i * 1.3), 0.2 + 0.06 * np.sin(i * 1.3), 0.12, 0.03, i * 1.3),
                hsv(0.33, 0.7, between(rng, 0.4, 0.6)),
            )
    return shore


def _meadow(rng: np.random.Generator, brush: _Brush) -> float:
    horizon = between(rng, 0.45, 0.6)
    _sky(rng, brush, horizon)
    green = hsv(between(rng, 0.24, 0.35), between(rng, 0.5, 0.8), between(rng, 0.5, 0.75))
    brush.hills(rng, horizon + 0.05, between(rng, 0.08, 0.22), between(rng, 0.7, 1.6), mixed(green, (30, 80, 60), 0.3))
    brush.hills(rng, horizon + 0.12, 0.08, between(rng, 0.5, 1.2), green)
    for _ in range(whole(rng, 10, 26)):
        brush.disc(
            rng.random(),
            between(rng, horizon + 0.12, 1),
            between(rng, 0.008, 0.016),
            hsv(rng.random(), between(rng, 0.2, 0.9), 1),
        )
    return horizon + 0.08


def _snow(rng: np.random.Generator, brush: _Brush) -> float:
    horizon = between(rng, 0.45, 0.6)
    brush.gradient(hsv(0.58, between(rng, 0.2, 0.45), between(rng, 0.7, 0.9)), hsv(0.58, 0.1, 0.95), 0, horizon)
    if chance(rng, 0.5):
        brush.hills(rng, horizon + 0.05, between(rng, 0.2, 0.4), between(rng, 1, 2), hsv(0.6, 0.2, 0.75), sharp=True)
    snow = varied(rng, (240, 245, 252), 6)
    for _ in range(whole(rng, 2, 5)):
        x, size = rng.random(), between(rng, 0.1, 0.25)
        for k in range(3):
            y = horizon + 0.03 - size * (0.25 * k)
            w = size * (0.4 - 0.1 * k)
            brush.polygon(
                np.array([[x - w, y], [x, y - size * 0.55], [x + w, y]]), hsv(0.42, 0.4, between(rng, 0.3, 0.45))
            )
    brush.hills(rng, horizon + 0.08, 0.08, between(rng, 0.6, 1.3), snow)
    brush.hills(rng, horizon + 0.25, 0.08, between(rng, 0.6, 1.3), mixed(snow, (190, 210, 240), 0.4))
    for _ in range(whole(rng, 15, 50)):
        brush.disc(rng.random(), rng.random(), between(rng, 0.006, 0.013), (255, 255, 255))
    return horizon + 0.08


def _night(rng: np.random.Generator, brush: _Brush) -> float:
    horizon = between(rng, 0.55, 0.7)
    brush.gradient(
        hsv(between(rng, 0.62, 0.72), 0.8, between(rng, 0.1, 0.22)),
        hsv(between(rng, 0.62, 0.75), 0.6, between(rng, 0.25, 0.42)),
        0,
        horizon,
    )
    for _ in range(whole(rng, 15, 40)):
        brush.disc(
            rng.random(),
            between(rng, 0, horizon),
            between(rng, 0.005, 0.011),
            mixed((255, 255, 255), (255, 230, 150), rng.random()),
        )
    x, y, r = between(rng, 0.12, 0.88), between(rng, 0.1, 0.25), between(rng, 0.05, 0.09)
    brush.disc(x, y, r, (250, 244, 210))
    ground = hsv(between(rng, 0.3, 0.72), 0.5, between(rng, 0.12, 0.24))
    brush.hills(rng, horizon + 0.1, between(rng, 0.1, 0.25), between(rng, 0.6, 1.5), mixed(ground, (40, 40, 90), 0.5))
    brush.hills(rng, horizon + 0.15, 0.08, between(rng, 0.6, 1.3), ground)
    return horizon + 0.1


def _city(rng: np.random.Generator, brush: _Brush) -> float:
    road = between(rng, 0.68, 0.78)
    _sky(rng, brush, road, sun=False)
    x = -0.05
    while x < 1:
        wide, top = between(rng, 0.1, 0.24), between(rng, 0.1, 0.5)
        wall = hsv(rng.random(), between(rng, 0.08, 0.4), between(rng, 0.35, 0.75))
        brush.rectangle(x, top, x + wide, road, wall)
        glass = mixed((255, 240, 170), (120, 160, 200), rng.random())
        for wy in np.arange(top + 0.04, road - 0.06, 0.08):
            for wx in np.arange(x + 0.02, x + wide - 0.03, 0.055):
                brush.rectangle(wx, wy, wx + 0.03, wy + 0.045, glass)
        x += wide + between(rng, 0.0, 0.02)
    brush.rectangle(0, road, 1, 1, hsv(0.6, 0.05, between(rng, 0.3, 0.45)))
    brush.rectangle(0, road, 1, road + 0.04, (150, 150, 152))
    for i in range(4):
        brush.rectangle(0.05 + 0.27 * i, 0.89, 0.18 + 0.27 * i, 0.91, (235, 230, 210))
    return road


def _desert(rng: np.random.Generator, brush: _Brush) -> float:
    horizon = between(rng, 0.45, 0.6)
    brush.gradient(
        hsv(between(rng, 0.5, 0.6), between(rng, 0.3, 0.6), 0.95), hsv(0.1, between(rng, 0.15, 0.4), 1), 0, horizon
    )
    brush.disc(between(rng, 0.1, 0.9), between(rng, 0.1, 0.3), between(rng, 0.05, 0.1), (255, 245, 190))
    sand = hsv(between(rng, 0.06, 0.11), between(rng, 0.5, 0.7), between(rng, 0.8, 0.95))
    brush.hills(rng, horizon + 0.08, between(rng, 0.1, 0.22), between(rng, 0.8, 1.6), mixed(sand, (120, 60, 30), 0.3))
    brush.hills(rng, horizon + 0.2, 0.12, between(rng, 0.6, 1.3), sand)
    for _ in range(whole(rng, 1, 3)):
        x, y, size = rng.random(), between(rng, horizon + 0.05, horizon + 0.18), between(rng, 0.12, 0.24)
        green = hsv(0.36, 0.6, between(rng, 0.35, 0.55))
        brush.rectangle(x - 0.018, y - size, x + 0.018, y, green)
        brush.rectangle(x - 0.07, y - size * 0.7, x - 0.045, y - size * 0.4, green)
        brush.rectangle(x - 0.07, y - size * 0.48, x, y - size * 0.4, green)
        brush.rectangle(x, y - size * 0.6, x + 0.06, y - size * 0.52, green)
        brush.rectangle(x + 0.04, y - size * 0.85, x + 0.065, y - size * 0.52, green)
    return horizon + 0.14


def _forest(rng: np.random.Generator, brush: _Brush) -> float:
    floor = between(rng, 0.6, 0.72)
    hue = between(rng, 0.25, 0.4)
    brush.gradient(hsv(hue, between(rng, 0.15, 0.5), between(rng, 0.6, 0.9)), hsv(hue, 0.5, 0.45), 0, floor)
    for depth in range(3):
        trunk = hsv(between(rng, 0.05, 0.09), 0.5, 0.5 - 0.12 * depth)
        leaf = hsv(hue + between(rng, -0.04, 0.04), 0.65, 0.62 - 0.14 * depth)
        for _ in range(whole(rng, 2, 4)):
            x, w = rng.random(), 0.012 + 0.012 * depth
            brush.rectangle(x - w, 0.15, x + w, floor + 0.05 * depth, trunk)
            for _ in range(3):
                brush.disc(x + between(rng, -0.07, 0.07), between(rng, 0.02, 0.3), between(rng, 0.07, 0.12), leaf)
    brush.hills(rng, floor + 0.08, 0.06, between(rng, 1, 2), hsv(hue - 0.03, 0.6, between(rng, 0.25, 0.42)))
    return floor


def _sea(rng: np.random.Generator, brush: _Brush) -> None:
    hue = between(rng, 0.5, 0.6)
    brush.gradient(
        hsv(hue, between(rng, 0.4, 0.7), between(rng, 0.75, 0.95)), hsv(hue + 0.04, 0.85, between(rng, 0.25, 0.5))
    )
    for _ in range(whole(rng, 2, 4)):
        x, w = rng.random(), between(rng, 0.03, 0.08)
        brush.polygon(
            np.array([[x, 0], [x + w, 0], [x + w * 2.5 - 0.2, 0.8], [x - 0.2, 0.8]]),
            hsv(hue, 0.45, between(rng, 0.75, 0.9)),
        )
    brush.hills(rng, 1.0, between(rng, 0.08, 0.16), between(rng, 0.8, 1.6), hsv(0.1, 0.4, between(rng, 0.5, 0.75)))
    for _ in range(whole(rng, 2, 6)):
        x, colour = rng.random(), hsv(pick(rng, (0.35, 0.9, 0.02, 0.4)), 0.7, between(rng, 0.4, 0.8))
        for k in range(5):
            brush.disc(x + 0.02 * np.sin(k * 1.6), 0.97 - 0.05 * k, 0.025 - 0.003 * k, colour)
    for _ in range(whole(rng, 6, 16)):
        brush.disc(rng.random(), rng.random(), between(rng, 0.007, 0.018), hsv(hue, 0.2, 1))


def _room(rng: np.random.Generator, brush: _Brush) -> float:
    floor = between(rng, 0.64, 0.74)
    wall = hsv(rng.random(), between(rng, 0.1, 0.45), between(rng, 0.65, 0.95))
    brush.rectangle(0, 0, 1, floor, wall)
    if chance(rng, 0.4):
        for x in np.arange(0, 1, 0.1):
            brush.rectangle(x, 0, x + 0.05, floor, mixed(wall, (255, 255, 255), 0.25))
    x, w = between(rng, 0.08, 0.5), between(rng, 0.2, 0.34)
    brush.rectangle(x - 0.02, 0.1, x + w + 0.02, 0.44, (245, 240, 230))
    brush.rectangle(x, 0.125, x + w, 0.415, hsv(0.57, between(rng, 0.2, 0.5), 0.95))
    brush.rectangle(x + w / 2 - 0.01, 0.12, x + w / 2 + 0.01, 0.42, (245, 240, 230))
    wood = hsv(between(rng, 0.05, 0.1), between(rng, 0.35, 0.65), between(rng, 0.4, 0.7))
    brush.gradient(wood, mixed(wood, (255, 220, 180), 0.2), floor, 1)
    brush.rectangle(0, floor - 0.02, 1, floor, mixed(wall, (255, 255, 255), 0.6))
    if chance(rng, 0.6):
        brush.disc(
            between(rng, 0.3, 0.7),
            between(rng, 0.85, 0.92),
            between(rng, 0.2, 0.35),
            hsv(rng.random(), 0.5, between(rng, 0.4, 0.8)),
            0.3,
        )
    if chance(rng, 0.6):
        at = pick(rng, (0.0, 0.72))
        brush.rectangle(at, 0.3, at + 0.26, floor + 0.03, mixed(wood, (40, 20, 10), 0.3))
        for k in range(3):
            brush.rectangle(at + 0.03, 0.34 + 0.12 * k, at + 0.23, 0.42 + 0.12 * k, hsv(rng.random(), 0.5, 0.7))
    return floor


def _space(rng: np.random.Generator, brush: _Brush) -> None:
    hue = between(rng, 0.6, 0.9)
    brush.gradient(
        hsv(hue, 0.7, between(rng, 0.04, 0.14)), hsv(hue + between(rng, -0.1, 0.1), 0.8, between(rng, 0.08, 0.3))
    )
    for _ in range(whole(rng, 30, 60)):
        brush.disc(rng.random(), rng.random(), between(rng, 0.004, 0.01), hsv(rng.random(), 0.2, between(rng, 0.6, 1)))
    for _ in range(whole(rng, 1, 3)):
        x, y, r = rng.random(), rng.random(), between(rng, 0.05, 0.16)
        colour = hsv(rng.random(), between(rng, 0.3, 0.8), between(rng, 0.5, 0.9))
        if chance(rng, 0.4):
            brush.polygon(
                ellipse(x, y, r * 1.9 / brush.aspect, r * 0.4, between(rng, -0.5, 0.5)),
                mixed(colour, (255, 255, 255), 0.5),
            )
        brush.disc(x, y, r, colour)
        brush.disc(x - r * 0.25, y - r * 0.25, r * 0.45, mixed(colour, (255, 255, 255), 0.25))


def _clouds(rng: np.random.Generator, brush: _Brush) -> None:
    hue = between(rng, 0.53, 0.62)
    brush.gradient(hsv(hue, between(rng, 0.5, 0.8), between(rng, 0.7, 0.95)), hsv(hue, 0.2, 1))
    for _ in range(whole(rng, 4, 8)):
        brush.cloud(
            rng,
            rng.random(),
            rng.random(),
            between(rng, 0.05, 0.12),
            mixed((255, 255, 255), hsv(hue, 0.3, 0.85), rng.random() * 0.7),
        )


def _road(rng: np.random.Generator, brush: _Brush) -> float:
    horizon = between(rng, 0.4, 0.52)
    _sky(rng, brush, horizon)
    brush.rectangle(0, horizon, 1, 1, hsv(between(rng, 0.15, 0.35), between(rng, 0.3, 0.6), between(rng, 0.45, 0.65)))
    brush.hills(
        rng, horizon + 0.02, between(rng, 0.05, 0.15), between(rng, 1, 2), hsv(between(rng, 0.3, 0.6), 0.3, 0.6)
    )
    brush.rectangle(
        0, horizon + 0.02, 1, 1, hsv(between(rng, 0.2, 0.32), between(rng, 0.4, 0.65), between(rng, 0.45, 0.65))
    )
    at, gray = between(rng, 0.35, 0.65), whole(rng, 70, 120)
    brush.polygon(
        np.array([[at - 0.02, horizon + 0.02], [at + 0.02, horizon + 0.02], [1.05, 1], [-0.05, 1]]),
        (gray, gray, gray + 4),
    )
    for k in range(4):
        y0, y1 = horizon + 0.05 + 0.13 * k, horizon + 0.1 + 0.15 * k
        brush.polygon(
            np.array(
                [
                    [at - 0.005 - 0.006 * k, y0],
                    [at + 0.005 + 0.006 * k, y0],
                    [at + 0.01 + 0.008 * k, y1],
                    [at - 0.01 - 0.008 * k, y1],
                ]
            ),
            (240, 225, 150),
        )
    return horizon + 0.15


def _stage(rng: np.random.Generator, brush: _Brush) -> float:
    floor = between(rng, 0.66, 0.76)
    hue = pick(rng, (0.98, 0.0, between(rng, 0, 1)))
    for i in range(14):
        brush.rectangle(i / 14, 0, (i + 1) / 14, floor, hsv(hue, 0.8, 0.42 + 0.16 * (i % 2)))
    brush.gradient(hsv(0.08, 0.6, 0.5), hsv(0.08, 0.5, 0.7), floor, 1)
    for i in range(8):
        brush.disc((i + 0.5) / 8, 0.02, 0.07, hsv(hue, 0.8, 0.7))
    for x in (between(rng, 0.15, 0.4), between(rng, 0.6, 0.85)):
        brush.disc(x, between(rng, 0.85, 0.92), 0.2, hsv(0.12, 0.35, 0.95), 0.3)
    return floor


def _mountains(rng: np.random.Generator, brush: _Brush) -> float:
    horizon = between(rng, 0.6, 0.7)
    _sky(rng, brush, horizon)
    hue = between(rng, 0.55, 0.75)
    for k in range(3):
        brush.hills(
            rng,
            horizon - 0.05 + 0.06 * k,
            0.5 - 0.12 * k,
            between(rng, 0.8, 1.8),
            hsv(hue, 0.2 + 0.1 * k, 0.8 - 0.17 * k),
            sharp=True,
        )
    brush.hills(
        rng, horizon + 0.12, 0.08, between(rng, 0.6, 1.3), hsv(between(rng, 0.2, 0.4), 0.45, between(rng, 0.35, 0.55))
    )
    return horizon + 0.05


def _garden(rng: np.random.Generator, brush: _Brush) -> float:
    fence = between(rng, 0.55, 0.66)
    _sky(rng, brush, fence)
    colour = pick(rng, ((235, 232, 225), (150, 105, 65), (190, 210, 220)))
    brush.rectangle(0, fence - 0.12, 1, fence - 0.08, mixed(colour, (60, 50, 40), 0.2))
    for x in np.arange(-0.02, 1, 0.085):
        brush.polygon(
            np.array(
                [
                    [x, fence + 0.06],
                    [x, fence - 0.16],
                    [x + 0.03, fence - 0.21],
                    [x + 0.06, fence - 0.16],
                    [x + 0.06, fence + 0.06],
                ]
            ),
            colour,
        )
    brush.rectangle(0, fence + 0.04, 1, 1, hsv(between(rng, 0.26, 0.36), 0.6, between(rng, 0.45, 0.7)))
    for _ in range(whole(rng, 5, 10)):
        x, y = rng.random(), between(rng, fence + 0.05, fence + 0.12)
        petal = hsv(pick(rng, (0.0, 0.9, 0.15, 0.8)), 0.7, 0.95)
        for k in range(4):
            brush.disc(x + 0.018 * np.cos(k * 1.57), y + 0.018 * np.sin(k * 1.57), 0.017, petal)
        brush.disc(x, y, 0.012, (250, 220, 90))
    return fence + 0.1


def _plain(rng: np.random.Generator, brush: _Brush) -> None:
    colour = hsv(rng.random(), between(rng, 0.05, 0.7), between(rng, 0.4, 1.0))
    brush.gradient(colour, mixed(colour, (255, 255, 255), between(rng, 0, 0.5)))


SCENES: dict[str, Callable[[np.random.Generator, _Brush], float | None]] = {
    "beach": _beach, "meadow": _meadow, "snow": _snow, "night": _night, "city": _city, "desert": _desert,
    "forest": _forest, "sea": _sea, "room": _room, "space": _space, "clouds": _clouds, "road": _road, "stage": _stage,
    "mountains": _mountains,
    "garden": _garden, "plain": _plain,
}  # fmt: skip
PHOTO = "photo"


def paint_scene(name: str, seed: int, height: int, width: int, photographs: Photographs | None) -> Plate:
    """The scene `name` (of SCENES or PHOTO) as drawn from `seed`: an RGB picture of `height` x `width` pixels."""
    rng = generator(0x5CE, seed)
    if name == PHOTO:
        if photographs is not None and chance(rng, 0.7):
            pixels = photographs.crop(rng, height, width)
        else:  # coloured clouds that no name describes
            noise = np.stack([smooth_noise(rng, height, width, between(rng, 2, 9)) for _ in range(3)], -1)
            tint = np.array([between(rng, 40, 255) for _ in range(3)])
            pixels = np.clip(noise * tint + between(rng, 0, 60), 0, 255).astype(np.uint8)
        return Plate(Image.fromarray(pixels), name, None)
    brush = _Brush(width, height)
    ground = SCENES[name](rng, brush)
    picture = brush.image.reduce(2)
    if chance(rng, 0.4):  # a little grain, so that flat areas are not all alike
        grain = (smooth_noise(rng, height, width, height / 4) - 0.5)[..., None] * between(rng, 6, 22)
        picture = Image.fromarray(np.clip(np.asarray(picture, np.float32) + grain, 0, 255).astype(np.uint8))
    return Plate(picture, name, ground)
