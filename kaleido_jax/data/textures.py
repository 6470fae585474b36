"""Textures: what covers a silhouette. Procedural patterns over drawn colours, and crops of photographs."""

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
    weighted,
    whole,
)
from kaleido_jax.data.photographs import Photographs

# Kinds with their share of all identities, and the word a person would use ("" for none).
KINDS = {
    "plain": 1.6, "shaded": 1.2, "stripes": 1.6, "dots": 1.4, "checker": 1.0, "plaid": 0.8, "rings": 0.7, "zigzag": 0.8,
    "patches": 1.3, "mosaic": 0.7, "gradient": 0.9, "cloudy": 1.0, "sprinkles": 0.9, "halves": 0.7, "photo": 2.4,
}  # fmt: skip
WORDS = {
    "plain": "plain", "stripes": "striped", "dots": "dotted", "checker": "checkered", "plaid": "plaid",
    "rings": "ringed",
    "zigzag": "zigzag", "patches": "spotted", "mosaic": "mosaic", "cloudy": "cloudy", "sprinkles": "speckled",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Texture:
    """A pattern: `kind` of KINDS, its colours (`colours[0]` covers most of it) and the seed of everything else."""

    kind: str
    colours: tuple[Colour, ...]
    seed: int


def draw_colours(rng: np.random.Generator) -> tuple[Colour, ...]:
    """Three colours that go with, and stand out from, each other."""
    if chance(rng, 0.14):  # black, white, gray
        value = pick(rng, (between(rng, 0.05, 0.25), between(rng, 0.4, 0.65), between(rng, 0.85, 1.0)))
        first, hue = hsv(0.6, 0.06, value), rng.random()
    else:
        hue = rng.random()
        first = hsv(hue, between(rng, 0.45, 1.0), between(rng, 0.4, 1.0))
    value = sum(first) / 765
    relation = weighted(rng, {"opposite": 2, "neighbour": 2, "any": 2, "light": 2, "dark": 2})
    if relation == "light":
        second = hsv(hue + between(rng, -0.08, 0.08), between(rng, 0.0, 0.35), between(rng, 0.85, 1.0))
    elif relation == "dark":
        second = hsv(hue + between(rng, -0.08, 0.08), between(rng, 0.4, 1.0), between(rng, 0.12, 0.35))
    else:
        shift = {"opposite": 0.5, "neighbour": pick(rng, (-0.14, 0.14)), "any": rng.random()}[relation]
        second = hsv(
            hue + shift, between(rng, 0.4, 1.0), between(rng, 0.35, 0.65) if value > 0.5 else between(rng, 0.75, 1.0)
        )
    if abs(sum(second) / 765 - value) < 0.14:  # too close in brightness to read as a pattern
        second = mixed(second, (255, 255, 255) if value < 0.5 else (0, 0, 0), 0.45)
    third = hsv(rng.random(), between(rng, 0.3, 1.0), between(rng, 0.3, 1.0))
    return first, second, third


def draw_texture(rng: np.random.Generator, photographs: bool) -> Texture:
    kind = weighted(rng, KINDS if photographs else {k: v for k, v in KINDS.items() if k != "photo"})
    return Texture(kind=kind, colours=draw_colours(rng), seed=int(rng.random() * 2**52))


def _grid(size: int, angle: Number, cx: Number = 0.0, cy: Number = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Rotated coordinates in [-1, 1] as float32 `[size, size]` each."""
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :] - np.float32(cx), axis[:, None] - np.float32(cy)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * c + y * s, y * c - x * s


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: Number) -> np.ndarray:
    """Smooth noise in [0, 1], float32 `[height, width]`, with about `cells` bumps along the height."""
    ny = max(int(cells) + 1, 2)
    nx = max(int(cells * width / height) + 1, 2)
    small = Image.fromarray(rng.random((ny, nx), dtype=np.float32))
    return np.clip(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)


def _blend(masks: np.ndarray, first: Colour, second: Colour) -> np.ndarray:
    """`first` where `masks` is 0, `second` where it is 1."""
    if masks.dtype == bool:
        return np.asarray([first, second], np.uint8)[masks.view(np.uint8)]
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return a + masks[..., None].astype(np.float32) * (b - a)


def _canvas(rng: np.random.Generator, kind: str, colours: tuple[Colour, ...], size: int) -> np.ndarray:
    """Patterns made of drawn shapes."""
    image = Image.new("RGB", (size, size), colours[0])
    draw = ImageDraw.Draw(image)

    def polygon(outline: np.ndarray, fill: Colour) -> None:
        draw.polygon(((outline + 1) * (size / 2)).ravel().tolist(), fill=fill)

    if kind == "dots":
        step, radius = between(rng, 0.22, 0.5), between(rng, 0.25, 0.42)
        lean, jitter = between(rng, 0, 0.5), pick(rng, (0.0, 0.0, 0.25))
        for j, y in enumerate(np.arange(-1, 1 + step, step)):
            for x in np.arange(-1, 1 + step, step) + (j % 2) * lean * step:
                r = radius * step * (1 + between(rng, -jitter, jitter))
                outline = ellipse(x + between(rng, -jitter, jitter) * step, y, r, r, count=14)
                polygon(outline, colours[1] if chance(rng, 0.8) else colours[2])
    elif kind == "patches":
        for _ in range(whole(rng, 5, 12)):
            r, squash = between(rng, 0.1, 0.34), between(rng, 0.6, 1.2)
            turn = np.linspace(0, 2 * np.pi, 18, endpoint=False)
            wave = r * (1 + 0.3 * np.cos(3 * turn + between(rng, 0, 6)) + 0.15 * np.cos(5 * turn + between(rng, 0, 6)))
            centre = [between(rng, -0.8, 0.8), between(rng, -0.8, 0.8)]
            polygon(np.stack([np.cos(turn) * wave, np.sin(turn) * wave * squash], 1) + centre, colours[1])
    else:  # sprinkles
        long, wide = between(rng, 0.08, 0.2), between(rng, 0.025, 0.06)
        for _ in range(whole(rng, 40, 90)):
            x, y, turn = between(rng, -1, 1), between(rng, -1, 1), between(rng, 0, 3.2)
            polygon(ellipse(x, y, long / 2, wide, turn, count=8), colours[1 + whole(rng, 0, 1)])
    return np.asarray(image)


def paint_texture(texture: Texture, size: int, photographs: Photographs | None) -> np.ndarray:
    """The texture as uint8 `[size, size, 3]`; `photographs` is read by the kind "photo" only."""
    rng = generator(texture.seed)
    kind, (first, second, third) = texture.kind, texture.colours
    angle = pick(rng, (0.0, np.pi / 2, between(rng, 0, np.pi)))
    if kind == "photo":
        if photographs is None:
            raise ValueError('a texture of kind "photo" needs the photographs: make the World with photographs=True.')
        return photographs.crop(rng, size, size)
    if kind in ("dots", "patches", "sprinkles"):
        rgb = _canvas(rng, kind, texture.colours, size)
    elif kind == "stripes":
        x, y = _grid(size, angle)
        wave = between(rng, 0.05, 0.15) * np.sin(y * between(rng, 3, 8)) if chance(rng, 0.35) else 0.0
        duty = between(rng, 0.4, 0.65)
        phase = ((x + wave) * between(rng, 1.8, 5.0) + rng.random()) % 1.0
        rgb = _blend(phase > duty, first, second)
        if chance(rng, 0.3):
            rgb[(phase > duty + 0.12) & (phase < 0.92)] = third
    elif kind == "checker":
        x, y = _grid(size, angle)
        density = between(rng, 1.8, 4.5)
        rgb = _blend(
            (np.floor(x * density + rng.random()) + np.floor(y * density + rng.random())) % 2 == 1, first, second
        )
    elif kind == "plaid":
        x, y = _grid(size, angle)
        density, duty = between(rng, 1.5, 3.5), between(rng, 0.55, 0.75)
        across = (x * density + rng.random()) % 1.0 > duty
        along = (y * density + rng.random()) % 1.0 > duty
        rgb = _blend(across * 0.5 + along * 0.5, first, second)
    elif kind == "rings":
        x, y = _grid(size, 0.0, between(rng, -0.4, 0.4), between(rng, -0.4, 0.4))
        rgb = _blend(
            (np.hypot(x, y) * between(rng, 2.0, 5.0) + rng.random()) % 1.0 > between(rng, 0.45, 0.6), first, second
        )
    elif kind == "zigzag":
        x, y = _grid(size, angle)
        teeth = np.abs((x * between(rng, 1.5, 3.5)) % 1.0 - 0.5) * between(rng, 0.3, 0.8)
        rgb = _blend((y * between(rng, 2.0, 4.0) + teeth * 2) % 1.0 > 0.55, first, second)
    elif kind == "mosaic":
        cells = whole(rng, 5, 10)
        colours = np.asarray(texture.colours, np.float32)[(rng.random((cells, cells)) * 3).astype(int)]
        colours = np.clip(colours + (rng.random((cells, cells, 1)) - 0.5) * 60, 0, 255).astype(np.uint8)
        rgb = np.asarray(Image.fromarray(colours).resize((size, size), Image.Resampling.NEAREST))
    elif kind == "gradient":
        x, _ = _grid(size, between(rng, 0, 2 * np.pi))
        rgb = _blend(np.clip(0.5 + 0.75 * x, 0, 1), first, second)
    elif kind == "cloudy":
        noise = smooth_noise(rng, size, size, between(rng, 3, 8))
        rgb = _blend(np.clip((noise - 0.5) * between(rng, 1.5, 4) + 0.4, 0, 1), first, second)
    elif kind == "halves":
        x, _ = _grid(size, angle)
        rgb = _blend(x > between(rng, -0.15, 0.3), first, second)
    else:  # plain, shaded
        rgb = np.broadcast_to(np.asarray(first, np.uint8), (size, size, 3))
    if kind == "shaded" or chance(rng, 0.35):  # light from above
        x, y = _grid(size, 0.0, between(rng, -0.4, 0.1), between(rng, -0.5, -0.2))
        light = 1.18 - between(rng, 0.25, 0.42) * np.hypot(x, y)
        rgb = rgb * light.astype(np.float32)[..., None]
    if chance(rng, 0.25):  # grain
        rgb = rgb + (smooth_noise(rng, size, size, size / 5)[..., None] - 0.5) * np.float32(between(rng, 15, 45))
    return rgb if rgb.dtype == np.uint8 else np.clip(rgb, 0, 255).astype(np.uint8)


def repainted(rng: np.random.Generator, texture: Texture, colour: Colour) -> Texture:
    """Another texture in which `colour` dominates (for look-alikes): never a photograph, whose colours are its own."""
    kinds = {
        k: v for k, v in KINDS.items() if k not in ("photo", "checker", "halves", "mosaic", "gradient", texture.kind)
    }
    first, second, third = varied(rng, colour, 10), *draw_colours(rng)[1:]
    return Texture(kind=weighted(rng, kinds), colours=(first, second, third), seed=int(rng.random() * 2**52))
