"""Silhouettes of things that have a name: vehicles, plants, food, tools. Proportions are drawn, so no two are alike."""

from collections.abc import Callable

import numpy as np

from kaleido_jax.data.drawing import Number, between, box, chance, curve, ellipse, pick, points, thick, whole
from kaleido_jax.data.silhouettes import ACCENT, BODY, DARK, LIGHT, SECOND, Part, Silhouette, _eyes


def _wheel(x: Number, y: Number, radius: Number, hub: int = LIGHT) -> list[Part]:
    return [
        Part(ellipse(x, y, radius, radius), DARK),
        Part(ellipse(x, y, radius * 0.5, radius * 0.5, count=14), hub, inner=True),
    ]


def _car(rng: np.random.Generator) -> list[Part]:
    length, height, cab = between(rng, 0.65, 0.85), between(rng, 0.22, 0.4), between(rng, 0.25, 0.5)
    lean, at = between(rng, 0.08, 0.3), between(rng, -0.25, 0.2)
    roof = points((at - 0.4 - lean, 0), (at - 0.35, -cab), (at + 0.3, -cab), (at + 0.35 + lean, 0))
    parts = [
        Part(roof, pick(rng, (BODY, BODY, SECOND))),
        Part(roof * [0.8, 0.75] + [at * 0.2, -0.02], LIGHT, inner=True),
    ]
    parts.append(Part(ellipse(0, height / 2, length, height / 2, power=between(rng, 3, 7))))
    parts.append(Part(ellipse(length * 0.88, height * 0.35, 0.07, 0.07, count=12), ACCENT, inner=True))
    radius = between(rng, 0.15, 0.24)
    return parts + _wheel(-length * 0.55, height, radius) + _wheel(length * 0.55, height, radius)


def _truck(rng: np.random.Generator) -> list[Part]:
    high, cab = between(rng, 0.5, 0.9), between(rng, 0.35, 0.5)
    parts = [Part(box(-0.85, -high, 0.25, 0.3)), Part(box(0.3, -cab, 0.85, 0.3), SECOND)]
    parts += [Part(box(0.5, -cab * 0.8, 0.82, -0.02), LIGHT, inner=True)]
    for x in (-0.6, -0.2, 0.55):
        parts += _wheel(x, 0.34, 0.17)
    return parts


def _house(rng: np.random.Generator) -> list[Part]:
    wide, high, roof = between(rng, 0.5, 0.75), between(rng, 0.5, 0.75), between(rng, 0.3, 0.7)
    parts = []
    if chance(rng, 0.5):
        parts.append(Part(box(wide * 0.3, -roof, wide * 0.6, 0), DARK))
    parts += [
        Part(box(-wide, 0, wide, high)),
        Part(points((-wide - 0.12, 0), (between(rng, -0.2, 0.2), -roof), (wide + 0.12, 0)), SECOND),
    ]
    parts.append(Part(box(-0.14, high - 0.4, 0.14, high), DARK, inner=True))
    for x in (-0.65, 0.65):
        parts.append(Part(box(x * wide - 0.12, 0.12, x * wide + 0.12, 0.36), LIGHT, inner=True))
    return parts


def _tree(rng: np.random.Generator) -> list[Part]:
    parts = [Part(thick(points((0, 0.8), (0, 0.4), (0, 0)), 0.28, 0.2, cap=False), SECOND)]
    if chance(rng, 0.5):
        for i in range(3):
            w = between(rng, 0.35, 0.5) + 0.12 * i
            parts.append(Part(points((-w, -0.2 + 0.33 * i), (0, -0.85 + 0.33 * i), (w, -0.2 + 0.33 * i))))
        return parts
    for _ in range(whole(rng, 3, 5)):
        parts.append(
            Part(
                ellipse(
                    between(rng, -0.35, 0.35),
                    between(rng, -0.55, -0.1),
                    between(rng, 0.3, 0.45),
                    between(rng, 0.28, 0.4),
                )
            )
        )
    for _ in range(whole(rng, 0, 5)):
        parts.append(
            Part(
                ellipse(between(rng, -0.45, 0.45), between(rng, -0.6, -0.05), 0.08, 0.08, count=12), ACCENT, inner=True
            )
        )
    return parts


def _rocket(rng: np.random.Generator) -> list[Part]:
    w = between(rng, 0.22, 0.36)
    hull = np.concatenate(
        [curve((-w, 0.5), (-w * 1.3, -0.5), (0, -0.9), 12), curve((0, -0.9), (w * 1.3, -0.5), (w, 0.5), 12)]
    )
    fin = between(rng, 0.25, 0.45)
    parts = [
        Part(
            points((-w * 0.6, 0.5), (0, 0.5 + between(rng, 0.25, 0.4)), (w * 0.6, 0.5)),
            ACCENT,
            pivot=(0, 0.5),
            swing=0.2,
        )
    ]
    for side in (-1, 1):
        parts.append(Part(points((side * w, 0.05), (side * (w + fin), 0.62), (side * w * 0.8, 0.5)), SECOND))
    parts.append(Part(hull))
    for i in range(whole(rng, 1, 2)):
        parts.append(Part(ellipse(0, -0.3 + 0.35 * i, w * 0.45, w * 0.45, count=16), LIGHT, inner=True))
    return parts


def _boat(rng: np.random.Generator) -> list[Part]:
    low = between(rng, 0.2, 0.4)
    hull = points(
        (-0.8, 0.25), (0.8, 0.25), (between(rng, 0.4, 0.65), 0.25 + low), (-between(rng, 0.4, 0.65), 0.25 + low)
    )
    parts = [Part(box(-0.04, -0.85, 0.04, 0.3), DARK)]
    parts.append(Part(points((0.06, -0.8), (between(rng, 0.45, 0.75), 0.15), (0.06, 0.15)), SECOND))
    parts.append(
        Part(points((-0.06, -0.7), (-between(rng, 0.3, 0.6), 0.15), (-0.06, 0.15)), pick(rng, (LIGHT, ACCENT, SECOND)))
    )
    return parts + [Part(hull)]


def _fish(rng: np.random.Generator) -> list[Part]:
    rx, ry = between(rng, 0.45, 0.62), between(rng, 0.22, 0.48)
    tail = between(rng, 0.25, 0.45)
    parts = [
        Part(
            points((-rx * 0.7, 0), (-rx - 0.3, -tail), (-rx - 0.12, 0), (-rx - 0.3, tail)),
            pick(rng, (SECOND, ACCENT)),
            pivot=(-rx * 0.8, 0.0),
            swing=0.45,
        )
    ]
    parts.append(Part(points((-0.2, -ry * 0.7), (0.05, -ry - between(rng, 0.15, 0.35)), (0.25, -ry * 0.7)), ACCENT))
    parts.append(Part(ellipse(0, 0, rx, ry, power=between(rng, 1.5, 2.4))))
    parts.append(
        Part(
            points((0.05, 0.05), (-0.2, 0.05 + ry * 0.5), (-0.2, 0.0)),
            ACCENT,
            inner=True,
            pivot=(0.05, 0.05),
            swing=0.4,
            phase=0.25,
        )
    )
    return parts + _eyes(rng, rx * 0.6, -ry * 0.2, 0.1, between(rng, 0.08, 0.13), 1)


def _bird(rng: np.random.Generator) -> list[Part]:
    rx, ry, head = between(rng, 0.35, 0.5), between(rng, 0.25, 0.4), between(rng, 0.18, 0.3)
    parts = [Part(points((-rx * 0.8, 0), (-rx - 0.4, -between(rng, 0, 0.25)), (-rx - 0.3, 0.2)), SECOND)]
    for i, x in enumerate((-0.05, 0.12)):
        parts.append(
            Part(
                thick(points((x, ry * 0.8), (x, ry + 0.3)), 0.07, 0.07),
                ACCENT,
                pivot=(x, ry * 0.8),
                swing=0.4,
                phase=0.5 * i,
            )
        )
    hx, hy = rx * 0.8, -ry * between(rng, 0.7, 1.2)
    parts.append(
        Part(
            points(
                (hx + head * 0.7, hy - 0.08),
                (hx + head + between(rng, 0.15, 0.4), hy + 0.04),
                (hx + head * 0.7, hy + 0.12),
            ),
            ACCENT,
        )
    )
    parts += [Part(ellipse(0, 0, rx, ry)), Part(ellipse(hx, hy, head, head), pick(rng, (BODY, SECOND)))]
    wing = points((0.12, -0.05), (-0.15, -between(rng, 0.3, 0.6)), (-0.45, between(rng, -0.3, 0.1)), (-0.1, 0.12))
    parts.append(Part(wing, pick(rng, (SECOND, ACCENT)), pivot=(0.05, 0.0), swing=0.7))
    return parts + _eyes(rng, hx + head * 0.25, hy - head * 0.15, 0.1, head * 0.35, 1)


def _butterfly(rng: np.random.Generator) -> list[Part]:
    parts = []
    up, low = between(rng, 0.35, 0.5), between(rng, 0.22, 0.36)
    for side in (-1, 1):
        parts.append(
            Part(
                ellipse(side * up * 0.85, -0.28, up * 0.8, up * 0.85, side * 0.5), BODY, pivot=(0, 0), swing=0.25 * side
            )
        )
        parts.append(
            Part(ellipse(side * low, 0.38, low, low * 1.1, -side * 0.4), SECOND, pivot=(0, 0), swing=0.2 * side)
        )
        parts.append(
            Part(
                ellipse(side * up * 0.9, -0.3, up * 0.3, up * 0.3, count=16),
                ACCENT,
                inner=True,
                pivot=(0, 0),
                swing=0.25 * side,
            )
        )
    parts.append(Part(ellipse(0, 0.05, 0.09, 0.5), DARK))
    return parts


def _mushroom(rng: np.random.Generator) -> list[Part]:
    wide, high, stem = between(rng, 0.55, 0.8), between(rng, 0.5, 0.85), between(rng, 0.18, 0.32)
    turn = np.linspace(np.pi, 2 * np.pi, 24)
    cap = np.stack([np.cos(turn) * wide, np.sin(turn) * high + 0.1], 1)
    parts = [
        Part(thick(points((0, 0), (0, 0.4), (between(rng, -0.1, 0.1), 0.75)), stem * 1.6, stem * 2), LIGHT),
        Part(cap),
    ]
    for _ in range(whole(rng, 2, 6)):
        parts.append(
            Part(
                ellipse(between(rng, -0.5, 0.5) * wide, between(rng, -0.55, -0.1) * high, 0.09, 0.08, count=14),
                SECOND,
                inner=True,
            )
        )
    if chance(rng, 0.4):
        parts += _eyes(rng, 0, 0.35, 0.22, 0.08, 2)
    return parts


def _cup(rng: np.random.Generator) -> list[Part]:
    top, low, high = between(rng, 0.4, 0.6), between(rng, 0.3, 0.55), between(rng, 0.45, 0.7)
    handle = thick(
        curve((top * 0.8, -high * 0.5), (top + between(rng, 0.35, 0.6), 0), (low * 0.8, high * 0.5)),
        0.14,
        0.14,
        cap=False,
    )
    parts = [
        Part(handle, pick(rng, (BODY, ACCENT))),
        Part(points((-top, -high), (top, -high), (low, high), (-low, high))),
    ]
    parts.append(Part(ellipse(0, -high, top, 0.12), SECOND))
    if chance(rng, 0.5):
        parts.append(Part(ellipse(0, 0.1, 0.2, 0.2, count=18), ACCENT, inner=True))
    return parts


def _flower(rng: np.random.Generator) -> list[Part]:
    count, reach, wide = whole(rng, 5, 8), between(rng, 0.28, 0.38), between(rng, 0.14, 0.24)
    parts = [Part(thick(curve((0, -0.3), (between(rng, -0.2, 0.2), 0.3), (0, 0.85)), 0.1, 0.1), SECOND)]
    parts.append(Part(ellipse(0.2, 0.45, 0.22, 0.09, -0.5), SECOND))
    for i in range(count):
        a = 2 * np.pi * i / count
        parts.append(Part(ellipse(np.cos(a) * reach, -0.35 + np.sin(a) * reach, reach * 0.75, wide, a)))
    return parts + [Part(ellipse(0, -0.35, reach * 0.55, reach * 0.55), ACCENT)]


def _umbrella(rng: np.random.Generator) -> list[Part]:
    wide, high = between(rng, 0.65, 0.85), between(rng, 0.5, 0.8)
    turn = np.linspace(np.pi, 2 * np.pi, 24)
    top = np.stack([np.cos(turn) * wide, np.sin(turn) * high], 1)
    hook = np.concatenate([points((0, -0.1), (0, 0.55)), curve((0, 0.6), (0.05, 0.85), (0.22, 0.65), 6)])
    middle = np.stack([np.cos(turn) * wide * 0.35, np.sin(turn) * high], 1)
    return [Part(thick(hook, 0.09, 0.09), DARK), Part(top), Part(middle, SECOND, inner=True)]


def _robot(rng: np.random.Generator) -> list[Part]:
    w, h, head = between(rng, 0.35, 0.55), between(rng, 0.3, 0.42), between(rng, 0.22, 0.36)
    parts = [
        Part(box(-0.03, -h - 2 * head - 0.16, 0.03, -h - 2 * head), DARK),
        Part(ellipse(0, -h - 2 * head - 0.16, 0.07, 0.07, count=14), ACCENT),
    ]
    for i, side in enumerate((-1, 1)):
        parts.append(
            Part(
                thick(points((side * w * 0.5, h * 0.8), (side * w * 0.5, h + 0.35)), 0.2, 0.22),
                SECOND,
                pivot=(side * w * 0.5, h * 0.8),
                swing=0.45,
                phase=0.5 * i,
            )
        )
        arm = points((side * w, -h * 0.6), (side * (w + 0.22), between(rng, -0.5, 0.4)))
        parts.append(Part(thick(arm, 0.16, 0.14), SECOND, pivot=(side * w, -h * 0.6), swing=0.7, phase=0.25 * side))
    parts += [Part(box(-w, -h, w, h)), Part(box(-head * 1.2, -h - 2 * head, head * 1.2, -h))]
    parts.append(Part(box(-w * 0.5, -h * 0.4, w * 0.5, h * 0.4), pick(rng, (LIGHT, ACCENT)), inner=True))
    return parts + _eyes(rng, 0, -h - head * 1.1, head, head * 0.32, 2)


def _icecream(rng: np.random.Generator) -> list[Part]:
    parts = [Part(points((-0.34, 0), (0.34, 0), (0, 0.85)), SECOND)]
    for i in range(whole(rng, 1, 3)):
        parts.append(Part(ellipse(0, -0.12 - 0.3 * i, 0.42 - 0.06 * i, 0.34), (BODY, ACCENT, LIGHT)[i]))
    return parts


def _balloon(rng: np.random.Generator) -> list[Part]:
    rx, ry = between(rng, 0.42, 0.6), between(rng, 0.5, 0.65)
    parts = [
        Part(
            thick(curve((0, ry - 0.3), (between(rng, -0.3, 0.3), 0.6), (between(rng, -0.2, 0.2), 0.95)), 0.04, 0.04),
            DARK,
            pivot=(0, ry - 0.3),
            swing=0.3,
        )
    ]
    parts += [
        Part(points((-0.1, ry - 0.12), (0.1, ry - 0.12), (0, ry - 0.3)), ACCENT),
        Part(ellipse(0, -0.25, rx, ry)),
    ]
    return parts + [Part(ellipse(-rx * 0.4, -0.25 - ry * 0.4, rx * 0.16, ry * 0.22, 0.5, count=14), LIGHT, inner=True)]


def _snowman(rng: np.random.Generator) -> list[Part]:
    r = between(rng, 0.36, 0.46)
    parts = []
    for side in (-1, 1):
        parts.append(
            Part(
                thick(points((side * r * 0.6, -0.05), (side * (r + 0.32), between(rng, -0.4, 0.1))), 0.07, 0.05),
                DARK,
                pivot=(side * r * 0.6, -0.05),
                swing=0.4,
                phase=0.25 * side,
            )
        )
    parts += [
        Part(ellipse(0, 0.42, r, r)),
        Part(ellipse(0, -0.08, r * 0.75, r * 0.72)),
        Part(ellipse(0, -0.52, r * 0.58, r * 0.58)),
    ]
    parts.append(Part(box(-r * 0.7, -0.32, r * 0.7, -0.2), ACCENT))
    parts.append(Part(points((0, -0.55), (0.3, -0.48), (0, -0.43)), ACCENT, inner=True))
    if chance(rng, 0.6):
        parts += [Part(box(-0.36, -0.95, 0.36, -0.86), SECOND), Part(box(-0.24, -1.2, 0.24, -0.9), SECOND)]
    return parts + _eyes(rng, 0, -0.62, 0.22, 0.07, 2)


def _plane(rng: np.random.Generator) -> list[Part]:
    high = between(rng, 0.16, 0.28)
    parts = [Part(points((-0.8, 0), (-0.85, -between(rng, 0.35, 0.55)), (-0.6, -0.35), (-0.45, 0)), SECOND)]
    parts.append(Part(ellipse(0, 0, 0.85, high, power=2.6)))
    parts.append(Part(points((0.15, 0.02), (-0.3, between(rng, 0.4, 0.7)), (-0.5, 0.45), (-0.2, 0.02)), SECOND))
    for i in range(whole(rng, 2, 4)):
        parts.append(Part(ellipse(-0.3 + 0.22 * i, -high * 0.35, 0.07, 0.07, count=12), LIGHT, inner=True))
    return parts


def _bottle(rng: np.random.Generator) -> list[Part]:
    w, neck, shoulder = between(rng, 0.26, 0.42), between(rng, 0.1, 0.16), between(rng, -0.4, -0.1)
    body = points(
        (-w, 0.85),
        (-w, shoulder),
        (-neck, shoulder - 0.25),
        (-neck, -0.7),
        (neck, -0.7),
        (neck, shoulder - 0.25),
        (w, shoulder),
        (w, 0.85),
    )
    parts = [Part(box(-neck * 1.2, -0.88, neck * 1.2, -0.68), ACCENT), Part(body)]
    return parts + [Part(box(-w, 0.1, w, between(rng, 0.4, 0.65)), pick(rng, (LIGHT, SECOND)), inner=True)]


def _crown(rng: np.random.Generator) -> list[Part]:
    count, high = whole(rng, 3, 5), between(rng, 0.5, 0.9)
    top = [(-0.75, 0.4)]
    for i in range(count):
        x = -0.75 + 1.5 * (i + 0.5) / count
        top += [(x, 0.4 - high), (-0.75 + 1.5 * (i + 1) / count, 0.4 - high * 0.4)]
    top[-1] = (0.75, 0.4)
    parts = [Part(np.asarray(top)), Part(box(-0.75, 0.3, 0.75, 0.55), SECOND)]
    for i in range(count):
        parts.append(Part(ellipse(-0.75 + 1.5 * (i + 0.5) / count, 0.4 - high, 0.09, 0.09, count=14), ACCENT))
    return parts


def _hat(rng: np.random.Generator) -> list[Part]:
    w, high, top = between(rng, 0.35, 0.5), between(rng, 0.4, 0.9), between(rng, 0.6, 1.1)
    parts = [Part(points((-w, 0.3), (-w * top, 0.3 - high), (w * top, 0.3 - high), (w, 0.3)))]
    parts.append(Part(box(-w, 0.08, w, 0.28), ACCENT, inner=True))
    return parts + [Part(ellipse(0, 0.32, between(rng, 0.65, 0.85), 0.13), pick(rng, (BODY, SECOND)))]


def _guitar(rng: np.random.Generator) -> list[Part]:
    low, up = between(rng, 0.36, 0.48), between(rng, 0.24, 0.36)
    parts = [Part(box(-0.07, -0.85, 0.07, 0.1), SECOND), Part(box(-0.13, -0.95, 0.13, -0.72), ACCENT)]
    parts += [Part(ellipse(0, 0.1, up, up)), Part(ellipse(0, 0.5, low, low * 0.85))]
    return parts + [Part(ellipse(0, 0.25, 0.13, 0.13, count=16), DARK, inner=True)]


def _lamp(rng: np.random.Generator) -> list[Part]:
    top, low = between(rng, 0.2, 0.4), between(rng, 0.5, 0.7)
    return [
        Part(box(-0.06, -0.1, 0.06, 0.75), SECOND),
        Part(ellipse(0, 0.75, between(rng, 0.28, 0.45), 0.11), SECOND),
        Part(points((-top, -0.8), (top, -0.8), (low, 0), (-low, 0))),
    ]


def _ball(rng: np.random.Generator) -> list[Part]:
    parts = [Part(ellipse(0, 0, 0.8, 0.8, count=40))]
    if chance(rng, 0.5):
        parts.append(
            Part(
                ellipse(0, 0, 0.8, between(rng, 0.15, 0.35), between(rng, 0, 3), count=32),
                pick(rng, (SECOND, ACCENT)),
                inner=True,
            )
        )
    return parts


def _gift(rng: np.random.Generator) -> list[Part]:
    w, h = between(rng, 0.5, 0.75), between(rng, 0.45, 0.65)
    parts = [Part(box(-w, -h * 0.5, w, h)), Part(box(-w - 0.08, -h * 0.9, w + 0.08, -h * 0.45), SECOND)]
    parts.append(Part(box(-0.12, -h * 0.9, 0.12, h), ACCENT, inner=True))
    for side in (-1, 1):
        parts.append(Part(ellipse(side * 0.22, -h - 0.12, 0.24, 0.13, side * -0.5), ACCENT))
    return parts


def _key(rng: np.random.Generator) -> list[Part]:
    r = between(rng, 0.25, 0.38)
    parts = [Part(box(-0.3, -0.09, 0.85, 0.09))]
    for x in (0.45, 0.68):
        parts.append(Part(box(x, 0, x + 0.13, between(rng, 0.2, 0.4))))
    return parts + [
        Part(ellipse(-0.5, 0, r, r)),
        Part(ellipse(-0.5, 0, r * 0.45, r * 0.45, count=16), ACCENT, inner=True),
    ]


def _apple(rng: np.random.Generator) -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 0.62 + 0.1 * np.cos(2 * t) * between(rng, 0.2, 1) - 0.22 * np.exp(-((t - 1.5 * np.pi) ** 2) * 8)
    outline = np.stack([np.cos(t) * radius, np.sin(t) * radius * between(rng, 0.9, 1.2) + 0.1], 1)
    parts = [Part(thick(curve((0, -0.3), (0.05, -0.6), (0.2, -0.8)), 0.1, 0.08), DARK), Part(outline)]
    return parts + [Part(ellipse(0.25, -0.55, 0.24, 0.1, -0.5), SECOND)]


def _shirt(rng: np.random.Generator) -> list[Part]:
    w, sleeve, drop = between(rng, 0.36, 0.5), between(rng, 0.25, 0.42), between(rng, 0.0, 0.35)
    half = [
        (0.15, -0.7),
        (w, -0.62),
        (w + sleeve, -0.2 + drop),
        (w + sleeve - 0.22, -0.02 + drop),
        (w, -0.2),
        (w, 0.75),
    ]
    outline = np.asarray(half + [(-x, y) for x, y in reversed(half)])
    parts = [Part(outline)]
    if chance(rng, 0.6):
        parts.append(Part(ellipse(0, 0, 0.2, 0.2, count=18), pick(rng, (ACCENT, SECOND)), inner=True))
    return parts


def _person(rng: np.random.Generator) -> list[Part]:
    w, head = between(rng, 0.2, 0.34), between(rng, 0.17, 0.26)
    skin, limb = pick(rng, (LIGHT, ACCENT)), between(rng, 0.12, 0.18)
    parts = []
    for i, side in enumerate((-1, 1)):
        parts.append(
            Part(
                thick(points((side * w * 0.5, 0.2), (side * w * 0.55, 0.85)), limb * 1.2, limb),
                SECOND,
                pivot=(side * w * 0.5, 0.2),
                swing=0.45,
                phase=0.5 * i,
            )
        )
        arm = points((side * w * 0.8, -0.3), (side * (w + between(rng, 0.05, 0.4)), between(rng, -0.5, 0.15)))
        parts.append(
            Part(
                thick(arm, limb, limb * 0.9),
                pick(rng, (BODY, skin)),
                pivot=(side * w * 0.8, -0.3),
                swing=0.6,
                phase=0.5 * (1 - i),
            )
        )
    skirt = between(rng, 0.8, 1.7)
    parts.append(Part(points((-w, -0.38), (w, -0.38), (w * skirt, 0.3), (-w * skirt, 0.3))))
    if chance(rng, 0.5):
        parts.append(Part(ellipse(0, -0.5, head * 1.25, head * between(rng, 1.3, 1.9)), DARK))
    parts += [Part(ellipse(0, -0.58, head, head * 1.1), skin), *_eyes(rng, 0, -0.58, head * 0.9, head * 0.22, 2)]
    if chance(rng, 0.7):
        turn = np.linspace(np.pi, 2 * np.pi, 14)
        hair = np.stack([np.cos(turn) * head * 1.12, np.sin(turn) * head * 1.3 - 0.62], 1)
        parts.append(Part(hair, pick(rng, (DARK, SECOND, ACCENT))))
    return parts


OBJECTS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "car": _car, "truck": _truck, "house": _house, "tree": _tree, "rocket": _rocket, "boat": _boat, "fish": _fish,
    "bird": _bird, "butterfly": _butterfly, "mushroom": _mushroom, "cup": _cup, "flower": _flower,
    "umbrella": _umbrella, "robot": _robot, "icecream": _icecream, "balloon": _balloon, "snowman": _snowman,
    "plane": _plane, "bottle": _bottle, "crown": _crown, "hat": _hat, "guitar": _guitar, "lamp": _lamp, "ball": _ball,
    "gift": _gift, "key": _key, "apple": _apple, "shirt": _shirt, "person": _person,
}  # fmt: skip


def thing(rng: np.random.Generator) -> Silhouette:
    """One of OBJECTS, in proportions of its own."""
    noun = pick(rng, tuple(OBJECTS))
    return Silhouette(family="object", noun=noun, parts=tuple(OBJECTS[noun](rng)))
