"""Finding a known subject in frames by what it looks like: template matching against "nothing is here".

A template is a drawn pose of an identity, turned and mirrored, `detail` pixels long, in a window half as large again:
colours S and opacity a. Two pictures compete in a window. With the subject, a pixel I is off by |I - S|^2. Without
it, the pixel is background: it looks like the pixels on both sides of it, beyond the subject's reach, or else it is
unknown, at the fixed cost `UNKNOWN`; what never changes in the video is held to be background more easily. With
Gaussian noise of unknown strength in both, the log-likelihood ratio of the window is

    sum a / 2 * log(sum a (cost without) / sum a |I - S|^2),

the "gain" of a place. Its sums are correlations, hence matrix products over all windows. Frames are shrunk to many
sizes instead of templates: a subject that is `detail` pixels long in a shrunk frame has its size. Gains count in
pixels of the frame, so that a large match outweighs a small one inside it.

Nothing here sees a model, its features, or the path and poses that a video was drawn with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

from kaleido_jax.data.sprites import Identity, Pose, Sprite, place
from kaleido_jax.data.world import World

COARSE, FINE = 8, 12  # pixels along a subject: to find it, and to tell it from others
SIZES = 0.14 * 1.18 ** np.arange(11)  # of subjects looked for, as shares of the frame's height
POSES = (Pose(gait=0.25, reach=0.5), Pose(gait=0.75, reach=0.5))
FINE_POSES = (*POSES, Pose(gait=0.0), Pose(bend=0.1), Pose(bend=-0.1))
UNKNOWN = 0.3  # squared distance of colours, whose channels are 0 to 1
STATIC = 0.3  # what the cost of a pixel that never changes is multiplied by
REST = 0.3  # weight, in a search, of what else in the window is no background: a part of a subject is not the whole
NOISE = 0.01  # squared distance that is there even in a perfect match
OUTSIDE = 0.3  # a subject's middle is at least this share of its size inside the frame


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a subject is in a frame: middle and size as shares of the frame's width, height and height, angle in
    radians clockwise, whether it is mirrored, and the gain (see above)."""

    x: float
    y: float
    size: float
    angle: float
    mirror: bool
    gain: float


@dataclass(frozen=True, kw_only=True)
class Templates:
    """Drawn windows of one or several identities; n templates, w = window(detail).

    Attributes:
        detail: how many pixels a subject is long.
        colour: float32 `[n, w, w, 3]`, opacity times colour (0 to 1).
        opacity: float32 `[n, w, w]`.
        owner: int `[n]`: which identity each shows.
        angle: float `[n]`, radians, clockwise; mirror: bool `[n]`.
    """

    detail: int
    colour: np.ndarray
    opacity: np.ndarray
    owner: np.ndarray
    angle: np.ndarray
    mirror: np.ndarray

    @cached_property
    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """What a window's colours and inside (see `Windows`) are multiplied by, `[4 * w * w, n]`, and its other
        channels, `[w * w, n]`."""
        energy = (self.colour**2).sum(-1, keepdims=True) / np.maximum(self.opacity[..., None], 1 / 255)
        layers = np.concatenate([-2 * self.colour, energy], axis=-1).transpose(0, 3, 1, 2)
        subject, opacity = (x.reshape(len(x), -1).T for x in (layers, self.opacity))
        return np.ascontiguousarray(subject), np.ascontiguousarray(opacity)


def window(detail: int) -> int:
    """Side of the window around a subject that is `detail` pixels long."""
    return detail * 3 // 2


class Artist:
    """Draws templates of identities, keeping their sprites and the last templates."""

    def __init__(self, world: World):
        self._world = world
        self._sprite = lru_cache(maxsize=256)(self._draw)
        self._coarse = lru_cache(maxsize=4)(self._templates)  # of a case: all candidates, and the subject alone
        self._fine = lru_cache(maxsize=256)(self._templates)

    def _draw(self, identity: Identity, pose: Pose) -> Sprite:
        return self._world.painter_of(identity).sprite(identity, pose, fine=False)

    def templates(
        self,
        identities: Sequence[Identity],
        *,
        detail: int = COARSE,
        angles: Sequence[float] | np.ndarray,
        poses: Sequence[Pose] = POSES,
    ) -> Templates:
        """Every identity in every pose, mirrored or not, at every angle."""
        make = self._fine if len(identities) == 1 and detail == FINE else self._coarse
        return make(tuple(identities), detail, tuple(angles), tuple(poses))

    def _templates(
        self, identities: tuple[Identity, ...], detail: int, angles: tuple[float, ...], poses: tuple[Pose, ...]
    ) -> Templates:
        side = window(detail)
        colours, opacities, rows = [], [], []
        for owner, identity in enumerate(identities):
            moves = any(part.swing for part in identity.silhouette.parts)
            for pose in poses if moves else [pose for pose in poses if not pose.gait] or poses[:1]:
                sprite = self._sprite(identity, pose)
                for mirror in (False, True):
                    for angle in angles:
                        canvas = Image.new("RGB", (side, side))
                        opacity = np.zeros((side, side), np.float32)
                        placed = place(canvas, sprite, side / 2, side / 2, detail, angle, mirror)
                        if placed:
                            seen, (left, top) = placed
                            opacity[top : top + seen.height, left : left + seen.width] = (
                                np.asarray(seen, np.float32) / 255
                            )
                        colours.append(np.asarray(canvas, np.float32) / 255)
                        opacities.append(opacity)
                        rows.append((owner, angle, mirror))
        owners, turns, mirrors = zip(*rows)
        return Templates(
            detail=detail,
            colour=np.stack(colours),
            opacity=np.stack(opacities),
            owner=np.array(owners),
            angle=np.array(turns),
            mirror=np.array(mirrors),
        )


@dataclass(frozen=True)
class Windows:
    """What is seen around the pixel corners of a shrunk frame, p of them; channels are 0 outside the frame.

    Attributes:
        channels: float32 `[p, 6, w, w]`: red, green, blue from 0 to 1, whether the pixel is inside, squared length of
            the colour, and cost without a subject.
        x, y: float `[p]`: the window's middle, as shares of the frame's width and height.
    """

    channels: np.ndarray
    x: np.ndarray
    y: np.ndarray


def windows(frame: np.ndarray, backdrop: np.ndarray, size: float, detail: int, *, near: Place | None = None) -> Windows:
    """Windows of a frame uint8 `[h, w, 3]`, shrunk so that a subject of `size` is `detail` pixels long.

    Args:
        backdrop: the median of all frames of the video.
        near: only windows within 2 pixels of this place; otherwise those that a subject may be in the middle of.
    """
    tall, wide = frame.shape[:2]
    height, width = max(round(detail / size), 3), max(round(detail / size * wide / tall), 3)
    colour, still = (_shrunk(picture, height, width) for picture in (frame, backdrop))
    half = window(detail) // 2
    cost = _without_subject(colour, half)
    layers = np.zeros((6, height + 2 * half, width + 2 * half), np.float32).transpose(1, 2, 0)
    middle = layers[half : half + height, half : half + width]
    middle[..., :3], middle[..., 3] = colour, 1
    middle[..., 4] = np.square(colour).sum(-1)
    middle[..., 5] = np.minimum(cost, STATIC * cost + np.square(colour - still).sum(-1))
    if near is None:
        edge = min(int(OUTSIDE * detail), (height - 1) // 2, (width - 1) // 2)
        rows, columns = np.arange(edge, height + 1 - edge), np.arange(edge, width + 1 - edge)
    else:
        row, column = int(near.y * height), int(near.x * width)
        rows = np.arange(max(row - 1, 0), min(row + 2, height) + 1)
        columns = np.arange(max(column - 1, 0), min(column + 2, width) + 1)
    view = np.lib.stride_tricks.sliding_window_view(layers, (2 * half, 2 * half), axis=(0, 1))
    view = view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = (grid.ravel() for grid in np.meshgrid(rows / height, columns / width, indexing="ij"))
    return Windows(view.reshape(-1, *view.shape[2:]), x, y)


def _shrunk(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    filters = Image.Resampling.BOX if height < picture.shape[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(picture).resize((width, height), filters), np.float32) / 255


def _without_subject(colour: np.ndarray, distance: int) -> np.ndarray:
    """What each pixel `[h, w]` costs when it is background: its squared distance from the less similar one of the
    pixels `distance` away to the left and to the right, or from that of those above and below, whichever is smaller."""
    cost = np.full(colour.shape[:2], UNKNOWN, np.float32)
    for axis in (0, 1):
        length = colour.shape[axis] - distance
        if length > 0:
            near, far = (slice(None),) * axis + (slice(0, length),), (slice(None),) * axis + (slice(distance, None),)
            apart = np.square(colour[near] - colour[far]).sum(-1)
            worse = np.zeros_like(cost)
            worse[near] = apart
            worse[far] = np.maximum(worse[far], apart)
            np.minimum(cost, worse, out=cost)
    return cost


def gains(seen: Windows, templates: Templates) -> np.ndarray:
    """The gain of every template `[p, n]` in every window, per pixel of a subject that is one pixel long."""
    subject, opacity = templates.matrices
    flat = seen.channels.reshape(len(seen.channels), -1)  # parts of its rows are matrices as they are
    size = len(opacity)
    area = flat[:, 3 * size : 4 * size] @ opacity
    off = flat[:, : 4 * size] @ subject
    off += flat[:, 4 * size : 5 * size] @ opacity
    without = flat[:, 5 * size :] @ opacity
    rest = REST * (flat[:, 5 * size :].sum(1, keepdims=True) - without)
    np.maximum(off, 0, out=off)
    off += rest
    without += rest
    return _gain(area, without, off, templates.detail)


def backdrop(video: np.ndarray) -> np.ndarray:
    """The median of all frames of a video uint8 `[f, h, w, 3]`."""
    return np.median(video, axis=0).astype(np.uint8)


def search(frame: np.ndarray, still: np.ndarray, templates: Templates, *, best: int = 1) -> list[list[Place]]:
    """For each owner, its `best` places in a frame uint8 `[h, w, 3]`, largest gain first; `still` is the `backdrop`.

    Of places of one size that are closer than a quarter of it, only the best counts.
    """
    owners = int(templates.owner.max()) + 1
    begins = np.searchsorted(templates.owner, np.arange(owners + 1))  # templates of one owner follow each other
    found: list[list[Place]] = [[] for _ in range(owners)]
    for size in SIZES:
        seen = windows(frame, still, size, templates.detail)
        scores = gains(seen, templates)
        peaks = np.maximum.reduceat(scores, begins[:-1], axis=1)
        for owner, peak in enumerate(peaks.T):
            cells: dict[tuple[int, int], int] = {}
            for at in np.argsort(peak)[::-1][: 8 * best] if best > 1 else [peak.argmax()]:
                cells.setdefault((int(4 * seen.x[at] / size), int(4 * seen.y[at] / size)), int(at))
            for at in list(cells.values())[:best]:
                chosen = int(begins[owner]) + int(scores[at, begins[owner] : begins[owner + 1]].argmax())
                found[owner].append(_place(seen, at, size, templates, chosen, float(peak[at]) * size**2))
    return [sorted(places, key=lambda place: -place.gain)[:best] for places in found]


def refine(artist: Artist, frame: np.ndarray, still: np.ndarray, identity: Identity, near: Place) -> Place:
    """The best place of `identity` close to one that a search has found, judged in more detail.

    A pixel that no pose explains (a limb that is elsewhere) is counted as unknown, not as infinitely wrong.
    """
    angles = near.angle + np.array([-0.25, 0.0, 0.25])
    templates = artist.templates([identity], detail=FINE, angles=angles, poses=FINE_POSES)
    opacity = templates.opacity[:, None]
    subject = templates.colour / np.maximum(templates.opacity[..., None], 1 / 255)
    length, twice = np.square(subject).sum(-1)[:, None], 2 * subject
    places = []
    for size in near.size * np.array([0.85, 0.92, 1.0, 1.09]):
        seen = windows(frame, still, size, FINE, near=near)
        inside = opacity * seen.channels[None, :, 3]  # [n, p, w, w]
        # |I - S|^2 for all pairs, from its three terms.
        off = seen.channels[None, :, 4] + length
        for channel in range(3):
            off -= seen.channels[None, :, channel] * twice[:, None, ..., channel]
        np.clip(off, 0, UNKNOWN, out=off)
        off = np.einsum("npab,npab->np", inside, off)
        without = np.einsum("npab,pab->np", inside, seen.channels[:, 5])
        scores = _gain(inside.sum((2, 3)), without, off, FINE) * size**2
        template, at = divmod(int(scores.argmax()), scores.shape[1])
        places.append(_place(seen, at, size, templates, template, float(scores[template, at])))
    return max(places, key=lambda place: place.gain)


def _gain(area: np.ndarray, without: np.ndarray, off: np.ndarray, detail: int) -> np.ndarray:
    noise = NOISE * area + 1e-6
    return area * np.log((without + noise) / (np.maximum(off, 0) + noise)) / (2 * detail**2)


def _place(seen: Windows, at: int, size: float, templates: Templates, template: int, gain: float) -> Place:
    return Place(
        x=float(seen.x[at]),
        y=float(seen.y[at]),
        size=float(size),
        angle=float(templates.angle[template]),
        mirror=bool(templates.mirror[template]),
        gain=gain,
    )
