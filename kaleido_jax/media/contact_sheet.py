"""One picture that shows what went in and what came out: the references beside the frames, with the prompt above."""

import bisect
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Number = int | float

# Everything is drawn at this many pixels a unit, so that text and corners are smooth on dense screens.
_SCALE = 2
_MARGIN, _GAP, _RADIUS = 36, 14, 8
_PAPER, _INK, _FAINT = (250, 249, 246), (32, 33, 36), (128, 128, 124)
_ACCENT = (214, 84, 48)
_COLUMNS = 4
# Colours of the subjects' chips, in order, told apart by people who confuse red and green too.
_SUBJECTS = ((214, 84, 48), (0, 114, 178), (0, 140, 100), (170, 80, 160), (180, 130, 0), (86, 120, 200))


def contact_sheet(
    video: UInt8[np.ndarray, "f h w 3"],
    references: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    subjects: Sequence[int],
    *,
    prompt: str,
    caption: str,
    frames_per_second: int,
) -> UInt8[np.ndarray, "height width 3"]:
    """A sheet with a column of references on the left, eight frames on the right, the prompt above, `caption` below.

    `references` are shown as the model sees them; `subjects` numbers each one's subject from 0: pictures of one subject
    get one colour and number.
    """
    shown = np.unique(np.linspace(0, len(video) - 1, min(2 * _COLUMNS, len(video))).round().astype(int))
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    height, width = video.shape[1:3]
    # Cells are as tall or as wide as 200 units, whichever comes first; small videos are enlarged.
    zoom = 200 / max(height, width)
    cell_width, cell_height = round(width * zoom), round(height * zoom)
    label = 20
    frames_width = columns * cell_width + (columns - 1) * _GAP
    frames_height = rows * (cell_height + label) + (rows - 1) * _GAP
    # References share the frames' height: as many columns of them as keep each at a readable size.
    reference_columns, thumb = _reference_grid(len(references), frames_height, label, cell_width, cell_height)
    references_width = reference_columns * thumb[0] + max(0, reference_columns - 1) * _GAP
    divider = 2 * _GAP + 12 if references else 0
    inner_width = max(references_width + divider + frames_width, 560)

    title_font, label_font, small_font = (ImageFont.load_default(size * _SCALE) for size in (19, 11, 10))
    lines = _wrapped(prompt, title_font, inner_width * _SCALE, most=5)
    top = _MARGIN + 18 + len(lines) * 26 + 16
    sheet = _Sheet(inner_width + 2 * _MARGIN, top + 22 + frames_height + 40 + _MARGIN)
    sheet.text(_MARGIN, _MARGIN - 6, "PROMPT", small_font, _ACCENT)
    for number, line in enumerate(lines):
        sheet.text(_MARGIN, _MARGIN + 12 + 26 * number, line, title_font, _INK)
    left = _MARGIN
    if references:
        sheet.text(left, top, "REFERENCES" if len(references) > 1 else "REFERENCE", small_font, _ACCENT)
        for index, (picture, subject) in enumerate(zip(references, subjects, strict=True)):
            column, row = index % reference_columns, index // reference_columns
            x = left + column * (thumb[0] + _GAP)
            y = top + 22 + row * (thumb[1] + label + _GAP)
            sheet.card(picture, x, y, *thumb)
            sheet.chip(x, y + thumb[1] + 5, f"subject {subject + 1}", _SUBJECTS[subject % len(_SUBJECTS)], label_font)
        left += references_width + divider
        sheet.line(left - divider / 2, top + 22, left - divider / 2, top + 22 + frames_height - label)
    sheet.text(left, top, "VIDEO", small_font, _ACCENT)
    for place, number in enumerate(shown):
        column, row = place % columns, place // columns
        x, y = left + column * (cell_width + _GAP), top + 22 + row * (cell_height + label + _GAP)
        sheet.card(video[number], x, y, cell_width, cell_height)
        sheet.text(x + 2, y + cell_height + 5, f"frame {number + 1}", label_font, _INK)
        sheet.text(
            x + cell_width - 2, y + cell_height + 5, f"{number / frames_per_second:.2f} s", label_font, _FAINT, "ra"
        )
    footer = top + 22 + frames_height + 18
    for number, line in enumerate(_wrapped(caption, label_font, inner_width * _SCALE, most=2)):
        sheet.text(_MARGIN, footer + 15 * number, line, label_font, _FAINT)
    return np.asarray(sheet.picture)


def _reference_grid(
    count: int, height: int, label: int, cell_width: int, cell_height: int
) -> tuple[int, tuple[int, int]]:
    """(columns, (width, height) of one reference): `count` references as tall together as the frames beside them."""
    if count == 0:
        return 0, (0, 0)
    for columns in range(1, count + 1):
        rows = -(-count // columns)
        tall = min(cell_height, (height - rows * label - (rows - 1) * _GAP) // rows)
        if tall >= 0.45 * cell_height or columns == count:
            break
    tall = max(tall, 24)
    return columns, (max(24, round(tall * cell_width / cell_height)), tall)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: Number, most: int) -> list[str]:
    """`text` in lines of at most `width` pixels and at most `most` of them; an ellipsis ends what did not fit."""
    fits = lambda line: font.getlength(line) <= width
    lines, line, rest = [], "", text.split()
    while rest and len(lines) < most:
        word = rest.pop(0)
        candidate = f"{line} {word}".strip()
        if fits(candidate):
            line = candidate
        elif line:
            lines.append(line)
            line, rest = "", [word, *rest]
        else:  # a word longer than a line is cut
            keep = max(1, bisect.bisect_right(range(len(word)), width, key=lambda n: font.getlength(word[: n + 1])))
            lines.append(word[:keep])
            rest = [word[keep:], *rest]
    if len(lines) < most:
        return [*lines, line]
    if rest or line:
        while lines[-1] and not fits(lines[-1] + " …"):
            lines[-1] = lines[-1][:-1]
        lines[-1] += " …"
    return lines


class _Sheet:
    """A canvas whose coordinates are units of `_SCALE` pixels."""

    def __init__(self, width: Number, height: Number):
        self.picture = Image.new("RGB", (round(width * _SCALE), round(height * _SCALE)), _PAPER)
        self.draw = ImageDraw.Draw(self.picture)

    def text(self, x: Number, y: Number, text: str, font, colour, anchor: str = "la") -> None:
        self.draw.text((x * _SCALE, y * _SCALE), text, font=font, fill=colour, anchor=anchor)

    def line(self, x0: Number, y0: Number, x1: Number, y1: Number) -> None:
        self.draw.line([(x0 * _SCALE, y0 * _SCALE), (x1 * _SCALE, y1 * _SCALE)], fill=(224, 222, 216), width=_SCALE)

    def chip(self, x: Number, y: Number, text: str, colour: tuple[int, int, int], font) -> None:
        """A coloured dot and a name."""
        centre, radius = (y + 6.5) * _SCALE, 4 * _SCALE
        self.draw.ellipse([x * _SCALE, centre - radius, x * _SCALE + 2 * radius, centre + radius], fill=colour)
        self.text(x + 13, y, text, font, _INK)

    def card(self, picture: UInt8[np.ndarray, "_ _ 3"], x: Number, y: Number, width: Number, height: Number) -> None:
        """The picture at this place with round corners and a soft shadow."""
        size = (round(width * _SCALE), round(height * _SCALE))
        place = (round(x * _SCALE), round(y * _SCALE))
        radius, blur = _RADIUS * _SCALE, 4 * _SCALE
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).rounded_rectangle([0, 0, size[0] - 1, size[1] - 1], radius, fill=255)
        halo = Image.new("L", (size[0] + 4 * blur, size[1] + 4 * blur), 0)
        halo.paste(mask.point(lambda value: value * 60 // 255), (2 * blur, 2 * blur))
        halo = halo.filter(ImageFilter.GaussianBlur(blur))
        self.picture.paste((0, 0, 0), (place[0] - 2 * blur, place[1] - 2 * blur + _SCALE), halo)
        enlarged = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS)
        self.picture.paste(enlarged, place, mask)
