"""Plots as SVG text: a radar of all scores, and bars by category."""

import html
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#0072b2", "#d65430", "#008c64", "#aa50a0", "#b48200", "#5678c8")
Series = Mapping[str, Sequence[float]]


def radar(axes: Sequence[str], series: Series) -> str:
    """A polygon for each of `series`, whose values lie from 0 (the centre) to 1 (the rim), one for each axis."""
    size, middle, radius = 520, 260, 170
    angle = lambda i: -math.pi / 2 + 2 * math.pi * i / len(axes)
    at = lambda i, r: (middle + radius * r * math.cos(angle(i)), middle + radius * r * math.sin(angle(i)))
    polygon = lambda rs: " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(i, r) for i, r in enumerate(rs)))
    parts = [
        f'<polygon points="{polygon([r] * len(axes))}" fill="none" stroke="#ddd"/>' for r in (0.25, 0.5, 0.75, 1.0)
    ]
    for i, name in enumerate(axes):
        x, y = at(i, 1.0)
        lx, ly = at(i, 1.12)
        anchor = "middle" if abs(lx - middle) < 20 else "start" if lx > middle else "end"
        parts.append(f'<line x1="{middle}" y1="{middle}" x2="{x:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{lx:.1f}" y="{ly + 4:.1f}" text-anchor="{anchor}">{html.escape(name)}</text>')
    for colour, (name, values) in zip(COLOURS, series.items()):
        clipped = [min(max(value, 0.0), 1.0) for value in values]
        parts.append(
            f'<polygon points="{polygon(clipped)}" fill="{colour}" fill-opacity="0.12" stroke="{colour}" '
            f'stroke-width="2"><title>{html.escape(name)}</title></polygon>'
        )
    return _svg(size + 160, size, parts, shift=80)


def bars(groups: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """Horizontal bars (value, low, high) of each series in each group, from 0 to 1 or to the largest value."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    top = max([1.0, *(high for group in groups.values() for _, _, high in group.values())])
    bottom = min([0.0, *(low for group in groups.values() for _, low, _ in group.values())])
    left, width, height = 170, 380, 16
    x = lambda value: left + width * (value - bottom) / (top - bottom)
    parts, y = [], 8
    for group, values in groups.items():
        parts.append(
            f'<text x="{left - 8}" y="{y + height * len(values) / 2 + 4:.1f}" text-anchor="end">'
            f"{html.escape(group)}</text>"
        )
        for name, (value, low, high) in values.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            start, end = sorted((x(0.0), x(value)))
            parts.append(
                f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 0.5):.1f}" height="{height - 4}" '
                f'fill="{colour}"><title>{html.escape(name)}: {value:.3f}</title></rect>'
                f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y + height / 2 - 2}" y2="{y + height / 2 - 2}" '
                f'stroke="#222"/><text x="{x(high) + 6:.1f}" y="{y + height - 6}">{value:.3f}</text>'
            )
            y += height
        y += 8
    return _svg(left + width + 70, y, parts)


def legend(names: Sequence[str]) -> str:
    """The names of series, each in its colour."""
    marks = (
        f'<span class="mark" style="background:{colour}"></span>{html.escape(name)}'
        for colour, name in zip(COLOURS, names)
    )
    return f'<p class="legend">{" ".join(marks)}</p>'


def _svg(width: int, height: int, parts: Sequence[str], shift: int = 0) -> str:
    return (
        f'<svg viewBox="{-shift} 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f"{''.join(parts)}</svg>"
    )
