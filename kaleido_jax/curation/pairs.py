"""References of a clip's subjects: which kind each one is, and how it is made (Kaleido, section 3.2).

crop: the subject with its surroundings, from the clip itself. segment: the subject alone, on white. inpainting: the
subject before the scene of an unrelated source, so that nothing ties it to its own background. redux: the subject in
another pose: from another video of the same identity where there is one, else by an editor; on white or before an
unrelated scene. The last two are cross pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

from kaleido_jax.curation import pictures
from kaleido_jax.curation.records import choose, fraction
from kaleido_jax.curation.settings import KINDS, Pairs
from kaleido_jax.errors import UsageError

CROSS = ("inpainting", "redux")
MARGIN = 0.12  # of the box's sides that a crop shows around the subject


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the reference of one subject is to be: a member of KINDS, and whether it is set before another scene."""

    kind: str
    elsewhere: bool


def shares(settings: Pairs) -> dict[str, float]:
    """The share of each kind of reference; with `drawing` "share", cross pairs have exactly `cross` of it."""
    if not 0 <= settings.cross <= 0.8:
        raise UsageError(f"pairs.cross is {settings.cross}; it must be a share between 0 and 0.8")
    if settings.drawing not in ("share", "separate"):
        raise UsageError(f"pairs.drawing is {settings.drawing!r}; it must be share or separate")
    mix = dict(zip(KINDS, settings.mix))
    total = sum(mix.values())
    if min(mix.values()) < 0 or total <= 0:
        raise UsageError(f"pairs.mix is {settings.mix}; it must hold four shares, none negative and not all 0")
    if settings.drawing == "separate":
        return {kind: value / total for kind, value in mix.items()}
    crossing = sum(mix[kind] for kind in CROSS)
    if not 0 < crossing < total:
        raise UsageError(
            f"pairs.mix is {settings.mix}; to take a share from it, cross pairs and others must both occur"
        )
    scale = lambda kind: settings.cross / crossing if kind in CROSS else (1 - settings.cross) / (total - crossing)
    return {kind: value * scale(kind) for kind, value in mix.items()}


def plan(subject: str, settings: Pairs) -> Plan:
    """What the reference of the subject with this id is, drawn by the id alone.

    With `drawing` "separate", the mix says what the reference is, and a draw of its own sets it before another scene.
    """
    kind = choose(shares(settings), "kind", subject)
    if settings.drawing == "separate":
        return Plan(kind=kind, elsewhere=fraction("cross", subject) < settings.cross)
    return Plan(kind=kind, elsewhere=kind == "inpainting" or (kind == "redux" and fraction("scene", subject) < 0.5))


def is_cross(chosen: Plan) -> bool:
    """Whether the reference is a cross pair: not the clip's own pixels in their own place."""
    return chosen.elsewhere or chosen.kind == "redux"


@dataclass(frozen=True, order=True)
class Plate:
    """A scene that a cross pair may be set into: an order drawn by its id, the clip it is of, that clip's source."""

    order: float
    clip: str
    source: str
    identity: str = ""


def donor(subject: str, source: str, identity: str, plates: Sequence[Plate]) -> Plate | None:
    """The scene for a cross pair: of another source, and not of the same identity; None where there is no such one."""
    if not plates:
        return None
    start = int(fraction("donor", subject) * len(plates))
    for step in range(len(plates)):
        plate = plates[(start + step) % len(plates)]
        if plate.source != source and (not identity or plate.identity != identity):
            return plate
    return None


def partner(
    subject: str, clip: str, identity: str, category: str, members: Mapping[tuple[str, str], Sequence[tuple[str, str]]]
) -> tuple[str, str] | None:
    """(clip, subject) of the same identity and category in another clip, or None."""
    others = [pair for pair in members.get((identity, category), ()) if pair[0] != clip] if identity else []
    return others[int(fraction("partner", subject) * len(others))] if others else None


def crop(
    picture: UInt8[np.ndarray, "h w 3"], box: pictures.Box, margin: float = MARGIN
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The box with `margin` of its sides around it."""
    wide, high = (box[2] - box[0]) * margin, (box[3] - box[1]) * margin
    x0, y0, x1, y1 = pictures.whole_box(
        (box[0] - wide, box[1] - high, box[2] + wide, box[3] + high), *picture.shape[:2]
    )
    return picture[y0:y1, x0:x1].copy()


def segment(picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The subject on white, cut to its mask: background disentanglement by erasing."""
    x0, y0, x1, y1 = pictures.whole_box(pictures.box_of(mask), *mask.shape)
    return np.where(mask[..., None], picture, np.uint8(255))[y0:y1, x0:x1]


def paste(
    picture: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    scene: UInt8[np.ndarray, "h2 w2 3"],
    subject: str,
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The subject before another scene, where and how large its id says: background disentanglement by repainting."""
    x0, y0, x1, y1 = pictures.whole_box(pictures.box_of(mask), *mask.shape)
    height, width = scene.shape[:2]
    share = 0.5 + 0.4 * fraction("size", subject)
    scale = share * min(height / (y1 - y0), width / (x1 - x0))
    high, wide = max(1, round((y1 - y0) * scale)), max(1, round((x1 - x0) * scale))
    inner = pictures.resized(np.ascontiguousarray(picture[y0:y1, x0:x1]), high, wide)
    soft = mask[y0:y1, x0:x1].astype(np.uint8) * np.uint8(255)
    alpha = pictures.resized(np.repeat(soft[..., None], 3, -1), high, wide).astype(np.float32) / 255
    top, left = round(fraction("top", subject) * (height - high)), round(fraction("left", subject) * (width - wide))
    result = scene.copy()
    behind = result[top : top + high, left : left + wide].astype(np.float32)
    result[top : top + high, left : left + wide] = (behind * (1 - alpha) + inner * alpha).round().astype(np.uint8)
    return result
