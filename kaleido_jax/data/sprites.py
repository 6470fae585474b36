"""Identities and how they are drawn: silhouette + textures + colours, in any pose, as RGBA pictures with soft edges.

A pose moves the outlines (limbs, bend, squash, turn); the drawing is an index picture at twice the resolution, in
which every pixel says which fill it shows; looking the fills up and averaging 2 x 2 pixels gives the sprite. Placement
(where, how large, turned by how much, mirrored) is one affine warp of that sprite, so a sprite is drawn once and
placed in every frame.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from kaleido_jax.data.drawing import (
    COLOUR_WORDS,
    Colour,
    Number,
    between,
    chance,
    colour_indices,
    ellipse,
    generator,
    hsv,
    pick,
    varied,
    weighted,
)
from kaleido_jax.data.objects import thing
from kaleido_jax.data.photographs import Photographs
from kaleido_jax.data.silhouettes import (
    ACCENT,
    BODY,
    CLEAR,
    DARK,
    LIGHT,
    OUTLINE,
    SECOND,
    Part,
    Silhouette,
    blob,
    front_creature,
    polygon,
    side_creature,
    strokes,
)  # fmt: skip
from kaleido_jax.data.textures import Texture, draw_texture, paint_texture

FAMILIES = {"front": 3.4, "side": 2.2, "object": 4.0, "blob": 1.0, "polygon": 1.3, "strokes": 0.9}
_BUILD = {
    "front": front_creature,
    "side": side_creature,
    "object": thing,
    "blob": blob,
    "polygon": polygon,
    "strokes": strokes,
}


_VISIBLE = [0] + [255] * 255  # every fill but CLEAR


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One subject; everything about its looks. Made by `identity(...)` from `number` or by replacing fields of another.

    Attributes:
        number: what it was drawn from; even numbers are the training split's, odd ones are held out.
        silhouette, body, second: its shape, the texture of its body and of its second parts.
        accent, light, dark: flat colours of small parts.
        outline: width of the dark or light line around its parts in units of the square, 0 for none.
        line: colour of that line.
    """

    number: int
    silhouette: Silhouette
    body: Texture
    second: Texture
    accent: Colour
    light: Colour
    dark: Colour
    outline: Number
    line: Colour


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How the outlines are moved: `gait` in turns and `reach` (0 to 1) swing the limbs, `bend` leans and curves the
    body, `squash` makes it wider than tall, `turn` (0 to 1) narrows it as if it looked away, `lift` swings each limb
    by an amount of its own."""

    gait: Number = 0.0
    reach: Number = 0.0
    bend: Number = 0.0
    squash: Number = 0.0
    turn: Number = 0.0
    lift: tuple[Number, ...] = ()


@dataclass(frozen=True)
class Sprite:
    """A drawn pose of the square [-1, 1]^2.

    Attributes:
        picture: RGB; where nothing is visible the body's texture goes on, so that soft edges keep their colour.
        alpha: L, how visible each pixel is.
        box: (x0, y0, x1, y1) of what is visible, in units of the square.
    """

    picture: Image.Image
    alpha: Image.Image
    box: tuple[Number, Number, Number, Number]

    def scaled(self, reduction: int) -> tuple[Image.Image, Image.Image]:
        if reduction == 1:
            return self.picture, self.alpha
        return self.picture.reduce(reduction), self.alpha.reduce(reduction)


def _centred(silhouette: Silhouette) -> Silhouette:
    """The silhouette moved and scaled so that its larger side spans [-0.8, 0.8]."""
    everything = np.concatenate([part.outline for part in silhouette.parts])
    low, high = everything.min(0), everything.max(0)
    centre, scale = (low + high) / 2, 1.6 / float((high - low).max())
    parts = tuple(
        replace(
            part,
            outline=(part.outline - centre) * scale,
            pivot=(float((part.pivot[0] - centre[0]) * scale), float((part.pivot[1] - centre[1]) * scale)),
        )
        for part in silhouette.parts
    )
    return replace(silhouette, parts=parts)


def draw_silhouette(rng: np.random.Generator) -> Silhouette:
    return _centred(_BUILD[weighted(rng, FAMILIES)](rng))


def photo_shape(rng: np.random.Generator) -> Silhouette:
    """What a piece cut out of a photograph looks like: round, boxy or blob-shaped and without parts."""
    if chance(rng, 0.4):
        silhouette = replace(blob(rng), family="cutout", noun="picture")
        return _centred(replace(silhouette, parts=silhouette.parts[:1]))
    outline = ellipse(0, 0, 0.8, between(rng, 0.5, 1.1), power=pick(rng, (2.0, 4.0, 12.0)), count=48)
    return _centred(Silhouette(family="cutout", noun="picture", parts=(Part(outline=outline),)))


@lru_cache(maxsize=256)
def identity(number: int, photographs: bool) -> Identity:
    """The identity of `number` (any non-negative integer); the same number is always the same identity."""
    rng = generator(0x1D, number)
    body = draw_texture(rng, photographs)
    silhouette = photo_shape(rng) if body.kind == "photo" and chance(rng, 0.4) else draw_silhouette(rng)
    second = draw_texture(rng, False)
    if chance(rng, 0.6):
        second = replace(second, kind="plain")
    if chance(rng, 0.5):  # most things are made of few colours
        second = replace(second, colours=(body.colours[1], body.colours[2], body.colours[0]))
    dark = varied(rng, hsv(rng.random(), 0.4, 0.12), 10)
    outline = between(rng, 0.018, 0.045) if chance(rng, 0.6) else 0.0
    line = dark if chance(rng, 0.8) else (250, 250, 250)
    light = varied(rng, (246, 244, 240), 9)
    return Identity(
        number=number, silhouette=silhouette, body=body, second=second, accent=body.colours[2], light=light, dark=dark,
        outline=outline, line=line
    )  # fmt: skip


def draw_pose(rng: np.random.Generator, strength: Number = 1.0) -> Pose:
    """A pose for a still picture; `strength` 0 is the rest pose."""
    return Pose(
        gait=rng.random(),
        reach=strength * rng.random(),
        bend=strength * between(rng, -0.22, 0.22),
        squash=strength * between(rng, -0.14, 0.14),
        turn=strength * between(rng, 0, 0.3) if chance(rng, 0.5) else 0.0,
        lift=tuple(strength * between(rng, -0.6, 0.6) for _ in range(8)),
    )


def _posed(silhouette: Silhouette, pose: Pose) -> list[np.ndarray]:
    """The outlines of all parts in `pose`; limbs that share a pivot move together."""
    limbs: dict[tuple[Number, Number], float] = {}
    outlines = []
    for part in silhouette.parts:
        outline = part.outline
        if part.swing:
            if part.pivot not in limbs:
                own = pose.lift[len(limbs) % len(pose.lift)] if pose.lift else 0.0
                limbs[part.pivot] = pose.reach * np.sin(2 * np.pi * (pose.gait + part.phase)) + own
            angle = part.swing * limbs[part.pivot]
            cosine, sine = np.cos(angle), np.sin(angle)
            pivot = np.asarray(part.pivot)
            outline = (outline - pivot) @ np.array([[cosine, sine], [-sine, cosine]]) + pivot
        outlines.append(outline)
    ends = np.cumsum([len(outline) for outline in outlines])[:-1]
    everything = np.concatenate(outlines)
    x, y = everything[:, 0], everything[:, 1]
    x = (x + pose.bend * (0.5 * y + y * y - 0.3)) * (1 + pose.squash) * (1 - pose.turn)
    y = y * (1 - pose.squash)
    return np.split(np.stack([x, y], 1), ends)


class Painter:
    """Draws identities as sprites of `resolution` pixels a side.

    Keeps the textures of the last few identities, whose painting is most of the work.
    """

    def __init__(self, photographs: Photographs | None, resolution: int = 128):
        self._photographs = photographs
        self.resolution = resolution
        self._fill = lru_cache(maxsize=32)(self._paint_fill)

    def _paint_fill(self, texture: Texture) -> np.ndarray:
        """The texture as packed RGBX uint32, square, at twice the resolution."""
        side = 2 * self.resolution
        rgbx = np.empty((side, side, 4), np.uint8)
        rgbx[..., :3] = paint_texture(texture, side, self._photographs)
        return rgbx.view(np.uint32)[..., 0]

    def sprite(self, identity: Identity, pose: Pose, fine: bool = True) -> Sprite:
        """`identity` in `pose`; `fine` averages 2 x 2 pixels, without it the sprite is for half its size or less."""
        size, step = (2 * self.resolution, 1) if fine else (self.resolution, 2)
        index = Image.new("L", (size, size), CLEAR)
        draw = ImageDraw.Draw(index)
        outlines = _posed(identity.silhouette, pose)
        everything = np.concatenate(outlines)
        low, high = everything.min(0), everything.max(0)
        # A limb may swing out of the square: shrink until all of it is inside.
        scale = min(1.0, 0.94 / max(float(-low.min()), float(high.max())))
        width = round(identity.outline * size / 2)
        for part, outline in zip(identity.silhouette.parts, outlines):
            flat = ((outline * scale + 1) * (size / 2) - 0.5).ravel().tolist()
            if width and not part.inner:
                draw.polygon(flat, fill=part.fill, outline=OUTLINE, width=width)
            else:
                draw.polygon(flat, fill=part.fill)
        codes = np.asarray(index)
        palette = np.zeros((OUTLINE + 1, 4), np.uint8)
        for code, colour in (
            (ACCENT, identity.accent),
            (LIGHT, identity.light),
            (DARK, identity.dark),
            (OUTLINE, identity.line),
        ):
            palette[code, :3] = colour
        pixels = palette.view(np.uint32)[:, 0][codes]
        np.copyto(pixels, self._fill(identity.body)[::step, ::step], where=codes <= BODY)
        if any(part.fill == SECOND for part in identity.silhouette.parts):
            np.copyto(pixels, self._fill(identity.second)[::step, ::step], where=codes == SECOND)
        picture = Image.frombytes("RGB", (size, size), pixels.tobytes(), "raw", "RGBX")
        alpha = index.point(_VISIBLE)
        if fine:
            picture, alpha = picture.reduce(2), alpha.reduce(2)
        (x0, y0), (x1, y1) = np.maximum(low * scale, -1), np.minimum(high * scale, 1)
        return Sprite(picture, alpha, (float(x0), float(y0), float(x1), float(y1)))


def place(
    canvas: Image.Image, sprite: Sprite, x: Number, y: Number, height: Number, angle: Number = 0.0, mirror: bool = False
) -> tuple[Image.Image, tuple[int, int]] | None:
    """Pastes `sprite` into `canvas` with the middle of its box at pixel (x, y).

    Args:
        canvas: RGB picture, changed in place.
        height: how many pixels the taller or wider side of its box takes before turning.
        angle: radians, clockwise.
        mirror: left and right exchanged.

    Returns:
        The sprite's alpha where it was pasted and its top left corner, or None where nothing of it is inside.
    """
    x0, y0, x1, y1 = sprite.box
    unit = height / max(x1 - x0, y1 - y0, 1e-3)  # pixels per unit of the square
    reduction = max(int(sprite.picture.width / 2 / unit / 1.15), 1)
    picture, alpha = sprite.scaled(reduction)
    # Not picture.width / 2: a width that the reduction does not divide is rounded up.
    per_unit = sprite.picture.width / reduction / 2
    half_x, half_y = (x1 - x0) / 2 * unit + 1, (y1 - y0) / 2 * unit + 1
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    reach_x, reach_y = abs(half_x * cosine) + abs(half_y * sine), abs(half_x * sine) + abs(half_y * cosine)
    left, top = max(int(np.floor(x - reach_x)), 0), max(int(np.floor(y - reach_y)), 0)
    right, bottom = min(int(np.ceil(x + reach_x)), canvas.width), min(int(np.ceil(y + reach_y)), canvas.height)
    if right <= left or bottom <= top:
        return None
    # Output pixel -> source pixel: undo the shift, the turn, the mirror and the scale.
    ratio = per_unit / unit
    a, b = cosine * ratio, sine * ratio
    d, e = -sine * ratio, cosine * ratio
    if mirror:
        a, b = -a, -b
    middle_x, middle_y = ((x0 + x1) / 2 + 1) * per_unit, ((y0 + y1) / 2 + 1) * per_unit
    dx, dy = left - x, top - y
    matrix = (a, b, middle_x + a * dx + b * dy, d, e, middle_y + d * dx + e * dy)
    colour, seen = (
        layer.transform(
            (right - left, bottom - top), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR
        )
        for layer in (picture, alpha)
    )
    canvas.paste(colour, (left, top), seen)
    return seen, (left, top)


def dominant_colour(sprite: Sprite) -> str:
    """The colour word that most of the sprite's pixels have."""
    visible = np.asarray(sprite.picture)[::2, ::2][np.asarray(sprite.alpha)[::2, ::2] > 127]
    if not len(visible):
        return COLOUR_WORDS[0]
    return COLOUR_WORDS[int(np.bincount(colour_indices(visible), minlength=len(COLOUR_WORDS)).argmax())]
