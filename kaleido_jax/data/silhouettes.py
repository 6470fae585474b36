"""Silhouettes: what an identity is cut out of. Each is a list of parts, back to front, that can move about pivots.

Families are wide on purpose (creatures with drawn proportions and organs, Fourier blobs, polygons, stars, strokes,
objects): a model must learn to copy a shape it has never seen, not to look one up.
"""

from dataclasses import KW_ONLY, dataclass

import numpy as np

from kaleido_jax.data.drawing import (
    Number,
    Points,
    between,
    box,
    chance,
    curve,
    ellipse,
    pick,
    points,
    rotated,
    thick,
    weighted,
    whole,
)

# What fills a part. BODY and SECOND carry textures, the others are flat colours of the identity.
CLEAR, BODY, SECOND, ACCENT, LIGHT, DARK, OUTLINE = range(7)


@dataclass(frozen=True, eq=False)
class Part:
    """One closed outline.

    Attributes:
        outline: points `[n, 2]` of the rest pose.
        fill: BODY, SECOND, ACCENT, LIGHT or DARK.
        pivot: what the part turns about when its limb swings.
        swing: how far it turns, in radians, when the limb is fully out; 0 for parts that are fixed.
        phase: where in the gait the limb is, in turns: 0 and 0.5 are opposite.
        inner: drawn without an outline of its own (eyes, patches).
    """

    outline: Points
    fill: int = BODY
    _: KW_ONLY
    pivot: tuple[Number, Number] = (0.0, 0.0)
    swing: Number = 0.0
    phase: Number = 0.0
    inner: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Silhouette:
    """Parts in the square [-1, 1]^2 (most of it within 0.8), and what a person would call the thing."""

    family: str
    noun: str
    parts: tuple[Part, ...]


def _eyes(rng: np.random.Generator, x: Number, y: Number, spread: Number, radius: Number, count: int) -> list[Part]:
    style = whole(rng, 0, 2)
    look = between(rng, -0.35, 0.35) * radius
    parts = []
    for i in range(count):
        ex = x + (i - (count - 1) / 2) * spread
        if style == 0:
            parts.append(Part(outline=ellipse(ex, y, radius * 0.62, radius * 0.75, count=14), fill=DARK, inner=True))
            parts.append(
                Part(
                    outline=ellipse(ex - radius * 0.2, y - radius * 0.3, radius * 0.22, radius * 0.22, count=8),
                    fill=LIGHT,
                    inner=True,
                )
            )
        else:
            tall = 1.0 if style == 1 else 1.3
            parts.append(Part(outline=ellipse(ex, y, radius, radius * tall, count=16), fill=LIGHT, inner=True))
            parts.append(
                Part(
                    outline=ellipse(ex + look, y + radius * 0.1, radius * 0.5, radius * 0.55, count=12),
                    fill=DARK,
                    inner=True,
                )
            )
    return parts


def _ears(rng: np.random.Generator, x: Number, y: Number, rx: Number, ry: Number) -> tuple[list[Part], str]:
    """Organs on top of a head of radii (rx, ry), and which kind they are."""
    kind = weighted(rng, {"cat": 3, "bear": 2, "rabbit": 2, "dog": 2, "horns": 1, "antennae": 1, "crest": 1, "none": 1})
    parts: list[Part] = []
    size = between(rng, 0.55, 1.1)
    at = between(rng, 0.5, 0.75)
    fill = pick(rng, (BODY, BODY, SECOND, ACCENT))
    for side in (-1, 1):
        base = (x + side * rx * at, y - ry * np.sqrt(1 - at * at) * 0.9)
        if kind == "cat":
            tip = (base[0] + side * rx * 0.25, base[1] - ry * size)
            ear = points((base[0] - rx * 0.38, base[1] + ry * 0.15), tip, (base[0] + rx * 0.38, base[1] + ry * 0.15))
            parts.append(Part(outline=ear, fill=fill, pivot=base, swing=0.12, phase=0.25 * side))
            centre = ear.mean(0)
            parts.append(
                Part(
                    outline=centre + (ear - centre) * 0.5,
                    fill=ACCENT,
                    inner=True,
                    pivot=base,
                    swing=0.12,
                    phase=0.25 * side,
                )
            )
        elif kind == "bear":
            parts.append(Part(outline=ellipse(*base, rx * 0.42 * size, rx * 0.42 * size), fill=fill))
            parts.append(
                Part(outline=ellipse(*base, rx * 0.22 * size, rx * 0.22 * size, count=14), fill=ACCENT, inner=True)
            )
        elif kind == "rabbit":
            lean = side * between(rng, 0.05, 0.35)
            ear = rotated(ellipse(base[0], base[1] - ry * size, rx * 0.24, ry * size * 1.1), lean, base)
            parts.append(Part(outline=ear, fill=fill, pivot=base, swing=0.2, phase=0.25 * side))
            inner = rotated(ellipse(base[0], base[1] - ry * size, rx * 0.11, ry * size * 0.75, count=14), lean, base)
            parts.append(Part(outline=inner, fill=ACCENT, inner=True, pivot=base, swing=0.2, phase=0.25 * side))
        elif kind == "dog":
            ear = rotated(
                ellipse(base[0] + side * rx * 0.2, base[1] + ry * 0.5 * size, rx * 0.26, ry * 0.7 * size),
                -side * 0.3,
                base,
            )
            parts.append(
                Part(outline=ear, fill=fill if fill != BODY else SECOND, pivot=base, swing=0.25, phase=0.25 * side)
            )
        elif kind == "horns":
            horn = curve(
                base,
                (base[0] + side * rx * 0.5, base[1] - ry * 0.2),
                (base[0] + side * rx * 0.45, base[1] - ry * 0.9 * size),
            )
            parts.append(Part(outline=thick(horn, rx * 0.34, rx * 0.06), fill=pick(rng, (LIGHT, ACCENT, DARK))))
        elif kind == "antennae":
            end = (base[0] + side * rx * 0.3, base[1] - ry * size)
            stalk = curve(base, (base[0], base[1] - ry * 0.6), end)
            parts.append(
                Part(outline=thick(stalk, rx * 0.12, rx * 0.1), fill=DARK, pivot=base, swing=0.25, phase=0.3 * side)
            )
            parts.append(
                Part(
                    outline=ellipse(*end, rx * 0.16, rx * 0.16, count=14),
                    fill=ACCENT,
                    pivot=base,
                    swing=0.25,
                    phase=0.3 * side,
                )
            )
    if kind == "crest":
        for i in range(whole(rng, 3, 5)):
            turn = -0.6 + 0.3 * i
            spike = points(
                (x - rx * 0.16, y - ry * 0.85), (x, y - ry * (1.2 + 0.6 * size)), (x + rx * 0.16, y - ry * 0.85)
            )
            parts.append(Part(outline=rotated(spike, turn, (x, y)), fill=ACCENT))
    return parts, kind


def _face(rng: np.random.Generator, x: Number, y: Number, rx: Number, ry: Number) -> list[Part]:
    parts = []
    count = weighted(rng, {1: 1, 2: 8, 3: 1})
    radius = rx * between(rng, 0.16, 0.27) * (1.5 if count == 1 else 1.0)
    eye_y = y - ry * between(rng, 0.05, 0.3)
    mouth = weighted(rng, {"smile": 3, "beak": 2, "snout": 3, "teeth": 1, "none": 1})
    if mouth == "snout":
        parts.append(
            Part(
                outline=ellipse(x, y + ry * 0.42, rx * 0.45, ry * 0.32),
                fill=pick(rng, (LIGHT, SECOND, ACCENT)),
                inner=True,
            )
        )
        parts.append(Part(outline=ellipse(x, y + ry * 0.3, rx * 0.15, ry * 0.11, count=12), fill=DARK, inner=True))
    parts += _eyes(rng, x, eye_y, rx * between(rng, 0.65, 0.9), radius, count)
    if mouth == "smile":
        lip = curve((x - rx * 0.35, y + ry * 0.3), (x, y + ry * 0.75), (x + rx * 0.35, y + ry * 0.3), 7)
        parts.append(Part(outline=thick(lip, rx * 0.09, rx * 0.09, cap=False), fill=DARK, inner=True))
    elif mouth == "beak":
        length = between(rng, 0.25, 0.6)
        beak = points((x - rx * 0.24, y + ry * 0.12), (x + rx * 0.24, y + ry * 0.12), (x, y + ry * (0.2 + length)))
        parts.append(Part(outline=beak, fill=ACCENT, inner=True))
    elif mouth == "teeth":
        parts.append(Part(outline=box(x - rx * 0.45, y + ry * 0.3, x + rx * 0.45, y + ry * 0.6), fill=DARK, inner=True))
        for i in range(3):
            tooth = x - rx * 0.3 + rx * 0.3 * i
            parts.append(
                Part(
                    outline=points(
                        (tooth - rx * 0.12, y + ry * 0.3), (tooth + rx * 0.12, y + ry * 0.3), (tooth, y + ry * 0.5)
                    ),
                    fill=LIGHT,
                    inner=True,
                )
            )
    return parts


def _tail(rng: np.random.Generator, x: Number, y: Number, reach: Number, side: int) -> list[Part]:
    kind = whole(rng, 0, 3)
    swing = between(rng, 0.25, 0.6)
    fill = pick(rng, (BODY, BODY, SECOND, ACCENT))
    if kind == 0:  # a long curl
        line = curve(
            (x, y), (x + side * reach, y + reach * 0.3), (x + side * reach * 0.9, y - reach * between(rng, 0.2, 1.0))
        )
        parts = [Part(outline=thick(line, 0.16, 0.1), fill=fill, pivot=(x, y), swing=swing)]
        if chance(rng, 0.4):
            parts.append(Part(outline=ellipse(*line[-1], 0.11, 0.11, count=14), fill=ACCENT, pivot=(x, y), swing=swing))
        return parts
    if kind == 1:  # a bush
        tail = rotated(ellipse(x + side * reach * 0.45, y, reach * 0.55, 0.17), -side * between(rng, 0.2, 1.0), (x, y))
        return [Part(outline=tail, fill=fill, pivot=(x, y), swing=swing)]
    if kind == 2:  # a dinosaur's wedge
        tail = points((x, y - 0.2), (x + side * reach, y + between(rng, -0.2, 0.15)), (x, y + 0.2))
        return [Part(outline=tail, fill=BODY, pivot=(x, y), swing=swing * 0.6)]
    return [Part(outline=ellipse(x + side * 0.06, y, 0.15, 0.15, count=16), fill=pick(rng, (LIGHT, SECOND)))]


_NOUN_OF_EARS = {
    "cat": "cat",
    "rabbit": "rabbit",
    "dog": "dog",
    "bear": "bear",
    "horns": "monster",
    "antennae": "bug",
    "crest": "dragon",
}


def front_creature(rng: np.random.Generator) -> Silhouette:
    """A creature that faces us: body, head (or none of its own), ears, face, arms, legs, belly, tail."""
    parts: list[Part] = []
    single = chance(rng, 0.35)
    bx, by = between(rng, 0.34, 0.55), between(rng, 0.34, 0.58)
    power = between(rng, 1.7, 4.0)
    if single:
        bx, by = between(rng, 0.42, 0.66), between(rng, 0.42, 0.7)
    if chance(rng, 0.6):
        parts += _tail(rng, bx * 0.8, by * 0.3, between(rng, 0.35, 0.7), 1)
    leg_fill = pick(rng, (BODY, BODY, SECOND, ACCENT, DARK))
    legs = weighted(rng, {0: 1, 2: 6, 3: 1, 4: 1})
    length, width = between(rng, 0.15, 0.45), between(rng, 0.12, 0.26)
    for i in range(legs):
        x = bx * 1.2 * (i - (legs - 1) / 2) / max(legs - 1, 1)
        leg = thick(points((x, by * 0.7), (x, by * 0.85 + length * 0.5), (x, by * 0.9 + length)), width, width * 0.9)
        parts.append(Part(outline=leg, fill=leg_fill, pivot=(x, by * 0.7), swing=0.5, phase=0.5 * (i % 2)))
    if chance(rng, 0.2):  # wings behind the body
        span, fill = between(rng, 0.45, 0.8), pick(rng, (SECOND, ACCENT, LIGHT))
        for side in (-1, 1):
            wing = points(
                (side * bx * 0.6, 0),
                (side * (bx + span), -span * between(rng, 0.4, 0.9)),
                (side * (bx + span * 0.8), span * 0.4),
                (side * bx * 0.6, 0.25),
            )
            parts.append(Part(outline=wing, fill=fill, pivot=(side * bx * 0.6, 0.1), swing=0.45 * side))
    parts.append(Part(outline=ellipse(0, 0, bx, by, power=power), fill=BODY))
    if chance(rng, 0.45):
        parts.append(
            Part(outline=ellipse(0, by * 0.3, bx * 0.6, by * 0.6), fill=pick(rng, (LIGHT, ACCENT, SECOND)), inner=True)
        )
    if chance(rng, 0.65):
        arm, arm_fill = between(rng, 0.25, 0.5), pick(rng, (BODY, BODY, SECOND))
        down = between(rng, -0.6, 0.9)
        for side in (-1, 1):
            at = (side * bx * 0.85, -by * 0.15)
            end = (at[0] + side * arm * np.cos(down), at[1] + arm * np.sin(down))
            parts.append(
                Part(
                    outline=thick(curve(at, ((at[0] + end[0]) / 2, at[1]), end), width, width * 0.8),
                    fill=arm_fill,
                    pivot=at,
                    swing=0.7,
                    phase=0.25 * side,
                )
            )
    if single:
        ears, kind = _ears(rng, 0, -by * 0.1, bx * 0.9, by * 0.9)
        head = _face(rng, 0, -by * 0.25, bx * 0.75, by * 0.55)
        parts = ears + parts if kind in ("cat", "bear", "rabbit", "horns") else parts + ears
    else:
        hx, hy = bx * between(rng, 0.7, 1.15), by * between(rng, 0.55, 0.95)
        y = -by - hy * 0.55
        ears, kind = _ears(rng, 0, y, hx, hy)
        head = [Part(outline=ellipse(0, y, hx, hy, power=between(rng, 1.8, 3.2)), fill=pick(rng, (BODY, BODY, SECOND)))]
        head += _face(rng, 0, y, hx, hy)
        if kind == "dog":
            head += ears
        else:
            head = ears + head
    return Silhouette(family="creature", noun=_NOUN_OF_EARS.get(kind, "creature"), parts=tuple(parts + head))


def side_creature(rng: np.random.Generator) -> Silhouette:
    """A creature seen from the side: four legs or two, head in front (right), tail behind."""
    parts: list[Part] = []
    bx, by = between(rng, 0.42, 0.68), between(rng, 0.2, 0.42)
    parts += _tail(rng, -bx * 0.85, -by * 0.2, between(rng, 0.3, 0.6), -1)
    pairs = weighted(rng, {1: 1, 2: 5, 3: 1})
    length, width = between(rng, 0.18, 0.55), between(rng, 0.11, 0.22)
    fill = pick(rng, (BODY, BODY, SECOND, DARK))
    near = []
    for i in range(pairs):
        x = 0.0 if pairs == 1 else bx * 0.75 * (2 * i / (pairs - 1) - 1)
        for side in (0, 1):
            at = (x + 0.1 * side - 0.05, by * 0.5)
            leg = thick(points(at, (at[0], by * 0.8 + length * 0.5), (at[0], by * 0.8 + length)), width, width * 0.85)
            part = Part(outline=leg, fill=fill, pivot=at, swing=0.55, phase=0.5 * ((i + side) % 2))
            (near if side else parts).append(part)
    body = ellipse(0, 0, bx, by, power=between(rng, 1.8, 3.4))
    head_x, head_y = bx * between(rng, 0.85, 1.15), -by * between(rng, 0.2, 1.9)
    radius = between(rng, 0.2, 0.36)
    neck = thick(points((bx * 0.6, -by * 0.2), (head_x, head_y)), by * 0.9, radius * 1.1)
    parts += [Part(outline=neck, fill=BODY), Part(outline=body, fill=BODY), *near]
    kind = weighted(rng, {"spikes": 1, "hump": 1, "saddle": 1, "none": 3})
    if kind == "spikes":
        for i in range(5):
            x = bx * (-0.7 + 0.35 * i)
            parts.append(
                Part(outline=points((x - 0.09, -by * 0.75), (x, -by - 0.22), (x + 0.09, -by * 0.75)), fill=ACCENT)
            )
    elif kind == "hump":
        parts.append(Part(outline=ellipse(0, -by * 0.8, bx * 0.5, by * 0.6), fill=SECOND))
    elif kind == "saddle":
        parts.append(Part(outline=box(-bx * 0.35, -by, bx * 0.25, by * 0.15), fill=ACCENT, inner=True))
    ears, name = _ears(rng, head_x, head_y, radius, radius)
    snout = Part(
        outline=ellipse(head_x + radius * 0.9, head_y + radius * 0.25, radius * between(rng, 0.35, 0.8), radius * 0.42),
        fill=pick(rng, (BODY, SECOND, LIGHT)),
    )
    head = [snout, Part(outline=ellipse(head_x, head_y, radius, radius), fill=pick(rng, (BODY, BODY, SECOND)))]
    head += _eyes(rng, head_x + radius * 0.3, head_y - radius * 0.1, 0.1, radius * between(rng, 0.2, 0.36), 1)
    head.append(
        Part(
            outline=ellipse(head_x + radius * 1.5, head_y + radius * 0.15, 0.05, 0.05, count=10), fill=DARK, inner=True
        )
    )
    parts += head + ears if name == "dog" else ears + head
    return Silhouette(family="creature", noun=_NOUN_OF_EARS.get(name, "animal"), parts=tuple(parts))


def blob(rng: np.random.Generator) -> Silhouette:
    """A Fourier blob, sometimes with a face."""
    turn = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    radius = np.ones_like(turn)
    for k in range(2, 7):
        radius = radius + between(rng, 0, 0.55 / k) * np.cos(k * turn + between(rng, 0, 6.3))
    outline = np.stack([np.cos(turn) * radius * between(rng, 0.6, 1), np.sin(turn) * radius * between(rng, 0.6, 1)], 1)
    parts = [Part(outline=outline * 0.8)]
    if chance(rng, 0.35):
        parts += _face(rng, 0, 0, 0.5, 0.45)
    elif chance(rng, 0.4):
        parts.append(Part(outline=outline * between(rng, 0.35, 0.55), fill=pick(rng, (SECOND, ACCENT)), inner=True))
    return Silhouette(family="blob", noun="blob", parts=tuple(parts))


def polygon(rng: np.random.Generator) -> Silhouette:
    """A regular or irregular polygon, a star, a cross, a heart, a ring, a moon, an arrow or a gear."""
    kind = weighted(
        rng,
        {"regular": 2, "irregular": 3, "star": 2, "cross": 1, "heart": 1, "ring": 1, "moon": 1, "arrow": 1, "gear": 1},
    )
    noun = "shape"
    if kind in ("regular", "irregular", "star", "gear"):
        corners = whole(rng, 3, 8) if kind != "gear" else whole(rng, 7, 11)
        count = corners * (2 if kind == "star" else 4 if kind == "gear" else 1)
        turn = np.linspace(0, 2 * np.pi, count, endpoint=False) - np.pi / 2
        radius = np.ones(count)
        if kind == "star":
            radius[1::2], noun = between(rng, 0.35, 0.65), "star"
        elif kind == "gear":
            low = between(rng, 0.68, 0.85)
            radius[0::4], radius[1::4], noun = low, low, "wheel"
        elif kind == "irregular":
            radius = np.array([between(rng, 0.5, 1.0) for _ in range(count)])
            turn = turn + np.array([between(rng, -0.25, 0.25) for _ in range(count)])
        outline = np.stack([np.cos(turn), np.sin(turn) * between(rng, 0.65, 1.0)], 1) * radius[:, None]
    elif kind == "cross":
        w = between(rng, 0.18, 0.4)
        outline = points(
            (-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w)
        )
    elif kind == "heart":
        t, noun = np.linspace(0, 2 * np.pi, 40, endpoint=False), "heart"
        outline = np.stack(
            [np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16], 1
        )
    elif kind == "ring":
        hole, noun = between(rng, 0.35, 0.65), "ring"
        outer = ellipse(0, 0, 1, between(rng, 0.75, 1), count=40)
        outline = np.concatenate([outer, outer[:1], (outer * hole)[:1], (outer * hole)[::-1]])
    elif kind == "moon":
        bite, noun = between(rng, 0.2, 0.6), "moon"
        up = np.linspace(-np.pi / 2, np.pi / 2, 20)
        outline = np.concatenate(
            [np.stack([np.cos(up), np.sin(up)], 1), np.stack([np.cos(up[::-1]) * bite, np.sin(up[::-1])], 1)]
        ) - [0.5, 0]
    else:
        w, noun = between(rng, 0.2, 0.45), "arrow"
        outline = points((-1, -w), (0.1, -w), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, w), (-1, w))
    parts = [Part(outline=outline * 0.8)]
    if kind in ("regular", "irregular", "star", "gear", "heart") and chance(rng, 0.5):
        if chance(rng, 0.5):
            parts.append(Part(outline=outline * between(rng, 0.3, 0.5), fill=pick(rng, (SECOND, ACCENT)), inner=True))
        else:
            parts += _face(rng, 0, 0, 0.4, 0.35)
    return Silhouette(family="polygon", noun=noun, parts=tuple(parts))


# Capital letters as strokes on a grid of 2 x 2 (x right, y down).
_LETTERS: dict[str, tuple[tuple[tuple[Number, Number], ...], ...]] = {
    "A": (((-0.7, 1), (0, -1), (0.7, 1)), ((-0.4, 0.3), (0.4, 0.3))),
    "C": (((0.6, -0.7), (0, -1), (-0.6, -0.5), (-0.6, 0.5), (0, 1), (0.6, 0.7)),),
    "E": (((0.6, -1), (-0.5, -1), (-0.5, 1), (0.6, 1)), ((-0.5, 0), (0.4, 0))),
    "F": (((0.6, -1), (-0.5, -1), (-0.5, 1)), ((-0.5, 0), (0.4, 0))),
    "H": (((-0.6, -1), (-0.6, 1)), ((0.6, -1), (0.6, 1)), ((-0.6, 0), (0.6, 0))),
    "K": (((-0.5, -1), (-0.5, 1)), ((0.6, -1), (-0.5, 0.1), (0.6, 1))),
    "L": (((-0.5, -1), (-0.5, 1), (0.6, 1)),),
    "M": (((-0.8, 1), (-0.7, -1), (0, 0.4), (0.7, -1), (0.8, 1)),),
    "N": (((-0.6, 1), (-0.6, -1), (0.6, 1), (0.6, -1)),),
    "P": (((-0.5, 1), (-0.5, -1), (0.4, -0.9), (0.6, -0.45), (0.4, 0), (-0.5, 0.1)),),
    "R": (((-0.5, 1), (-0.5, -1), (0.4, -0.9), (0.6, -0.45), (0.4, 0), (-0.5, 0.1)), ((0, 0.1), (0.6, 1))),
    "S": (((0.6, -0.75), (0, -1), (-0.55, -0.6), (0, 0), (0.55, 0.5), (0, 1), (-0.6, 0.75)),),
    "T": (((-0.7, -1), (0.7, -1)), ((0, -1), (0, 1))),
    "U": (((-0.6, -1), (-0.6, 0.5), (0, 1), (0.6, 0.5), (0.6, -1)),),
    "V": (((-0.7, -1), (0, 1), (0.7, -1)),),
    "X": (((-0.65, -1), (0.65, 1)), ((0.65, -1), (-0.65, 1))),
    "Y": (((-0.7, -1), (0, 0), (0.7, -1)), ((0, 0), (0, 1))),
    "Z": (((-0.65, -1), (0.65, -1), (-0.65, 1), (0.65, 1)),),
}  # fmt: skip


def strokes(rng: np.random.Generator) -> Silhouette:
    """A capital letter, or a sign that nobody has seen before, in thick strokes."""
    width = between(rng, 0.28, 0.5)
    if chance(rng, 0.5):
        lines, noun = _LETTERS[pick(rng, tuple(_LETTERS))], "letter"
    else:
        grid = (-0.8, 0.0, 0.8)
        lines = tuple(
            tuple((pick(rng, grid), pick(rng, grid)) for _ in range(whole(rng, 2, 4))) for _ in range(whole(rng, 2, 3))
        )
        noun = "sign"
    lean, narrow = between(rng, -0.25, 0.25), between(rng, 0.7, 1.0)
    parts = []
    for line in lines:
        for (x0, y0), (x1, y1) in zip(line, line[1:]):
            a, b = np.array([x0 * narrow + lean * y0, y0]), np.array([x1 * narrow + lean * y1, y1])
            if np.allclose(a, b):
                continue
            parts.append(Part(outline=thick(np.stack([a, b]), width, width)))
            parts.append(Part(outline=ellipse(*a, width / 2, width / 2, count=14)))
    if not parts:
        parts.append(Part(outline=ellipse(0, 0, 0.7, 0.7)))
    return Silhouette(family="strokes", noun=noun, parts=tuple(parts))
