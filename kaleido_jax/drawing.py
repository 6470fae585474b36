"""A picture of a token layout: its sequence, where its tokens stand, and who reads whom."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import FULL, PARTIAL, TokenMask, block_summary
from kaleido_jax.rope import Principles
from kaleido_jax.typing import Float32

# Run-time type checks take no whole number for a float.
Length: TypeAlias = int | float

INK, SOFT, FAINT, PAPER = "#1f2430", "#5d6575", "#e4e7ee", "#ffffff"
GOOD, BAD = "#2e9e6b", "#d2544f"
VISIBLE, MIXED, HIDDEN = "#3b4a6b", "#aab6d3", "#f4f5f8"
VIDEO, TEXT, DUMMY = "#4a78c9", "#8d93a1", "#c3b8a4"
# The references of each subject; a ninth subject starts again.
SUBJECTS = ("#d9702f", "#2f9a74", "#a04fa6", "#c29a1c", "#2b8fa8", "#c9446c", "#6d8f35", "#7358c9")

# Everything is drawn at this multiple of its size and reduced once, which makes edges smooth.
OVERSAMPLING = 2
MARGIN = 36


class _Canvas:
    """Drawing in the coordinates of the finished picture."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def box(
        self,
        x: Length,
        y: Length,
        width: Length,
        height: Length,
        fill: str,
        outline: str | None = None,
        radius: Length = 0,
    ):
        corners = [round(v * OVERSAMPLING) for v in (x, y, x + width, y + height)]
        corners[2], corners[3] = max(corners[2] - 1, corners[0]), max(corners[3] - 1, corners[1])
        self.draw.rounded_rectangle(corners, radius * OVERSAMPLING, fill=fill, outline=outline, width=OVERSAMPLING)

    def line(self, points: Sequence[tuple[Length, Length]], fill: str, width: Length = 1):
        scaled = [(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in points]
        self.draw.line(scaled, fill=fill, width=round(width * OVERSAMPLING), joint="curve")

    def text(self, x: Length, y: Length, words: str, size: Length = 13, fill: str = INK, anchor: str = "lm"):
        self.draw.text((x * OVERSAMPLING, y * OVERSAMPLING), words, fill, self._font(size), anchor=anchor)

    def width_of(self, words: str, size: Length = 13) -> float:
        return self._font(size).getlength(words) / OVERSAMPLING

    def finished(self) -> Image.Image:
        width, height = self.image.size
        return self.image.resize((width // OVERSAMPLING, height // OVERSAMPLING), Image.Resampling.LANCZOS)

    def _font(self, size: Length):
        return ImageFont.load_default(size * OVERSAMPLING)


def draw_layout(
    layout: TokenLayout,
    positions: Float32[np.ndarray, "n 3"],
    mask: TokenMask,
    *,
    title: str,
    subtitle: str = "",
    principles: Principles | None = None,
    block: int | None = None,
) -> Image.Image:
    """Draws one sequence.

    positions: of all tokens of the layout, in token order. mask: between all of them. principles: shown when given.
    block: tokens in a square of the mask; by default so many that about 64 squares stand in a row.
    """
    names, colours = segment_names(layout), segment_colours(layout)
    side = 560
    lanes = 24 * len(layout.segments)
    body = max(side + 70, lanes + 150 + 340)
    canvas = _Canvas(MARGIN + side + 90 + side + MARGIN, 212 + body + 60)
    canvas.text(MARGIN, 42, title, 24)
    canvas.text(MARGIN, 70, subtitle, 14, SOFT)
    width = 2 * side + 90
    _draw_sequence(canvas, MARGIN, 100, width, layout, names, colours)
    top = 196
    _heading(canvas, MARGIN, top, "Positions", "time, one lane a segment; below, rows and columns")
    bottom = _draw_times(canvas, MARGIN, top + 26, side, layout, positions, names, colours)
    _draw_plane(canvas, MARGIN, bottom + 34, side, top + body - bottom - 40, layout, positions, colours)
    right = MARGIN + side + 90
    block = block or max(1, math.ceil(layout.tokens() / 64))
    plural = "" if block == 1 else "s"
    _heading(canvas, right, top, "Who reads whom", f"queries down, keys across, {block} token{plural} a square")
    _draw_mask(canvas, right, top + 26, side, layout, mask, block, colours)
    if principles is not None:
        _draw_principles(canvas, MARGIN, top + body + 34, principles)
    return canvas.finished()


def segment_names(layout: TokenLayout) -> list[str]:
    """A short name for each segment: "video", "reference 2, subject 1"; numbered where there are several of a kind."""
    kinds = [segment.kind for segment in layout.segments]
    names = []
    for i, segment in enumerate(layout.segments):
        number = f" {kinds[: i + 1].count(segment.kind)}" if kinds.count(segment.kind) > 1 else ""
        subject = f", subject {segment.subject + 1}" if segment.kind == "reference" else ""
        names.append(f"{segment.kind}{number}{subject}")
    return names


def segment_colours(layout: TokenLayout) -> list[str]:
    """One colour a segment: by kind and subject, lighter for each further picture of a subject and each shot."""
    seen: dict[tuple[str, int], int] = {}
    colours = []
    for segment in layout.segments:
        key = (segment.kind, segment.subject if segment.kind == "reference" else 0)
        colours.append(_lighter(_base_colour(segment), 0.22 * min(seen.get(key, 0), 3)))
        seen[key] = seen.get(key, 0) + 1
    return colours


def _base_colour(segment: Segment) -> str:
    if segment.kind == "reference":
        return SUBJECTS[segment.subject % len(SUBJECTS)]
    return {"video": VIDEO, "text": TEXT, "dummy": DUMMY}[segment.kind]


def _lighter(colour: str, amount: Length) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(c + (255 - c) * amount):02x}" for c in channels)


def _darker(colour: str) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(0.75 * c):02x}" for c in channels)


def _heading(canvas: _Canvas, x: Length, y: Length, words: str, explanation: str):
    canvas.text(x, y, words, 17)
    canvas.text(x + canvas.width_of(words, 17) + 12, y + 1, explanation, 13, SOFT)


def _draw_sequence(
    canvas: _Canvas, x: Length, y: Length, width: Length, layout: TokenLayout, names: list[str], colours: list[str]
):
    """The segments side by side in token order, each as wide as it has tokens, named where the name fits."""
    scale = width / layout.tokens()
    for piece, segment, name, colour in zip(layout.slices(), layout.segments, names, colours):
        left, across = x + piece.start * scale, segment.tokens * scale
        canvas.box(left + 1, y, across - 2, 34, colour, radius=min(5, across / 4))
        for words in (name, name.split(",")[0], segment.kind[0].upper()):
            if canvas.width_of(words) < across - 8:
                canvas.text(left + across / 2, y + 17, words, 13, PAPER, "mm")
                break
        count = f"{segment.tokens}"
        if canvas.width_of(count, 11) < across:
            canvas.text(left + across / 2, y + 47, count, 11, SOFT, "mm")
    canvas.text(x, y + 66, f"{layout.tokens()} tokens", 12, SOFT)


def _draw_times(
    canvas: _Canvas,
    x: Length,
    y: Length,
    width: Length,
    layout: TokenLayout,
    positions: np.ndarray,
    names: list[str],
    colours: list[str],
) -> Length:
    """For each segment the times at which it has tokens, over one time axis. Returns where the drawing ends."""
    label = max(canvas.width_of(name, 12) for name in names) + 14
    times = positions[:, 0]
    low, high = math.floor(min(times.min(), 0)), math.ceil(times.max()) + 1
    unit = (width - label) / (high - low)
    lane, start = 24, x + label
    for i, (piece, name, colour) in enumerate(zip(layout.slices(), names, colours)):
        middle = y + lane * i + lane / 2
        canvas.text(x, middle, name, 12, SOFT)
        canvas.line([(start, middle), (x + width, middle)], FAINT)
        for time in np.unique(times[piece]).tolist():
            size = min(unit - 1, lane - 6)
            centre = start + (time - low + 0.5) * unit
            canvas.box(centre - size / 2, middle - size / 2, size, size, colour, _darker(colour), radius=size / 6)
    axis = y + lane * len(names) + 4
    _draw_axis(canvas, start, axis, unit, low, high, vertical=False)
    canvas.text(x, axis + 10, "time", 12, INK)
    return axis + 20


def _draw_axis(canvas: _Canvas, x: Length, y: Length, unit: Length, low: int, high: int, *, vertical: bool):
    """Numbers at the cells low ... high - 1, as many as have room."""
    room = 18 if vertical else 10 + max(canvas.width_of(str(n), 11) for n in (low, high - 1))
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if s * unit >= room)
    for number in range(low - low % -step if low % step else low, high, step):
        along = (number - low + 0.5) * unit
        if vertical:
            canvas.text(x, y + along, str(number), 11, SOFT, "rm")
        else:
            canvas.text(x + along, y + 10, str(number), 11, SOFT, "mm")


def _draw_plane(
    canvas: _Canvas,
    x: Length,
    y: Length,
    width: Length,
    height: Length,
    layout: TokenLayout,
    positions: np.ndarray,
    colours: list[str],
):
    """The cells (row, column) of each segment; several in one cell are stripes, or take turns in small cells."""
    rows, columns = positions[:, 1], positions[:, 2]
    corner = [math.floor(min(rows.min(), 0)), math.floor(min(columns.min(), 0))]
    end = [math.ceil(rows.max()) + 1, math.ceil(columns.max()) + 1]
    left, top = x + 40, y + 26
    unit = min((width - 40) / (end[1] - corner[1]), (height - 40) / (end[0] - corner[0]), 40)
    tenants: dict[tuple[float, float], list[str]] = {}
    for piece, colour in zip(layout.slices(), colours):
        for place in dict.fromkeys(map(tuple, positions[piece, 1:].tolist())):
            tenants.setdefault(place, []).append(colour)
    across, down = (end[1] - corner[1]) * unit, (end[0] - corner[0]) * unit
    canvas.box(left, top, across, down, HIDDEN)
    gap = 1 if unit >= 5 else 0
    for (row, column), owners in tenants.items():
        if unit < 10:
            owners = [owners[int(row + column) % len(owners)]]
        stripe = (unit - gap) / len(owners)
        for i, colour in enumerate(owners):
            cell = left + (column - corner[1]) * unit, top + (row - corner[0]) * unit + i * stripe
            canvas.box(*cell, unit - gap, stripe, colour)
    _draw_axis(canvas, left, top - 20, unit, corner[1], end[1], vertical=False)
    _draw_axis(canvas, left - 8, top, unit, corner[0], end[0], vertical=True)
    canvas.text(left, y - 6, "columns across, rows down", 12, INK)


def _draw_mask(
    canvas: _Canvas,
    x: Length,
    y: Length,
    side: Length,
    layout: TokenLayout,
    mask: TokenMask,
    block: int,
    colours: list[str],
):
    """The blocks of a mask between the tokens of a layout, framed by the segments."""
    summary = np.asarray(block_summary(mask, block, block))[0]
    bar, tokens = 14, layout.tokens()
    left, top, inner = x + bar + 6, y + bar + 6, side - bar - 6
    scale = inner / tokens
    canvas.box(left, top, inner, inner, HIDDEN)
    for (i, j), state in np.ndenumerate(summary):
        if state in (FULL, PARTIAL):
            q, k = i * block, j * block
            down, across = min(block, tokens - q) * scale, min(block, tokens - k) * scale
            gap = 1 if block * scale >= 12 else 0
            canvas.box(left + k * scale, top + q * scale, across - gap, down - gap, VISIBLE if state == FULL else MIXED)
    for piece, colour in zip(layout.slices(), colours):
        start, length = piece.start * scale, (piece.stop - piece.start) * scale
        canvas.box(left + start, y, length - 1, bar, colour, radius=2)
        canvas.box(x, top + start, bar, length - 1, colour, radius=2)
        if piece.start:
            canvas.line([(left + start, top), (left + start, top + inner)], PAPER, 1.5)
            canvas.line([(left, top + start), (left + inner, top + start)], PAPER, 1.5)
    legend = ((VISIBLE, "all visible"), (MIXED, "some visible"), (HIDDEN, "nothing visible"))
    at, below = left, top + inner + 20
    for colour, words in legend:
        canvas.box(at, below - 6, 12, 12, colour, SOFT)
        canvas.text(at + 18, below, words, 12, SOFT)
        at += 36 + canvas.width_of(words, 12)
    canvas.text(left + inner, below, f"{_visible_share(mask):.0%} of pairs", 12, SOFT, "rm")


def _visible_share(mask: TokenMask) -> float:
    """The share of pairs that are visible in the batch's first sample."""

    def kinds(bits, sample):
        sample = np.zeros_like(bits) if sample is None else sample
        pairs = np.stack([np.atleast_2d(np.asarray(x))[0].astype(np.int64) for x in (bits, sample)])
        return np.unique(pairs, axis=1, return_counts=True)

    (queries, q_count), (keys, k_count) = kinds(mask.reads, mask.q_sample), kinds(mask.groups, mask.k_sample)
    visible = (queries[0][:, None] & keys[0][None]) != 0
    visible &= (queries[1][:, None] == keys[1][None]) & (queries[1] >= 0)[:, None]
    return float(q_count @ visible @ k_count / (q_count.sum() * k_count.sum()))


def _draw_principles(canvas: _Canvas, x: Length, y: Length, principles: Principles):
    """A tick or a cross for each of the three principles of Kaleido A.2."""
    canvas.text(x, y, "By positions alone:", 14, SOFT)
    x += canvas.width_of("By positions alone:", 14) + 22
    items = (
        (principles.distinguishable, "video and references distinguishable"),
        (principles.separable, "references separable"),
        (principles.unordered, "no continuity implied between references"),
    )
    for met, words in items:
        if met:
            canvas.line([(x, y), (x + 4, y + 5), (x + 13, y - 6)], GOOD, 2.5)
        else:
            canvas.line([(x + 1, y - 5), (x + 11, y + 5)], BAD, 2.5)
            canvas.line([(x + 1, y + 5), (x + 11, y - 5)], BAD, 2.5)
        canvas.text(x + 22, y, words, 14)
        x += 54 + canvas.width_of(words, 14)
