"""Where tokens stand in (time, row, column), and the rotary embedding of those positions.

A position scheme is a frozen dataclass with one method: from the segments of a sample to the place of each one's first
token. All schemes number the tokens inside a segment alike, (frame, row, column), and leave the video at the origin
unless they say otherwise. Kaleido, section 4.2 and appendix A.2, names most of them.
"""

import abc
import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
import numpy as np

from kaleido_jax.layout import Contents, Segment, Stream, TokenLayout
from kaleido_jax.typing import AnyArray, Array, Bool, Float, Float32, Int32


@dataclasses.dataclass(frozen=True)
class Extents:
    """What a scheme may know of the segments: int32 or bool [batch, segments], over all segments of a layout.

    frames, height, width: extent in patches; frames as far as they are present. tokens: how many are present.
    before[b, i, j]: segment j stands before segment i in the same sample and is present.
    """

    frames: Int32[Array, "b s"]
    height: Int32[Array, "b s"]
    width: Int32[Array, "b s"]
    tokens: Int32[Array, "b s"]
    subjects: Int32[Array, "b s"]
    pictures: Int32[Array, "b s"]
    video: Bool[np.ndarray, "1 s"]
    reference: Bool[np.ndarray, "1 s"]
    text: Bool[np.ndarray, "1 s"]
    together: Bool[Array, "b s s"]
    before: Bool[Array, "b s s"]

    def earlier(self, amount: Array, kind: Bool[np.ndarray, "1 s"]) -> Int32[Array, "b s"]:
        """For each segment, the sum of `amount` over the segments of a kind that stand before it in its sample."""
        return _total(self.before & kind[:, None, :], amount)

    def most(self, amount: Array) -> Int32[Array, "b s"]:
        """For each segment, the largest `amount` over the videos of its sample."""
        return jnp.where(self.together & self.video[:, None, :], amount[:, None, :], 0).max(axis=2)

    def video_frames(self) -> Int32[Array, "b s"]:
        """For each segment, N of the paper: the frames of all videos of its sample."""
        return _total(self.together & self.video[:, None, :], self.frames)

    def earlier_pictures(self) -> Int32[Array, "b s"]:
        """For each reference, the frames of its subject's pictures before it: by `pictures`, then in token order."""
        sooner = self.pictures[:, None, :] < self.pictures[:, :, None]
        sooner |= self.before & (self.pictures[:, None, :] == self.pictures[:, :, None])
        same_subject = self.subjects[:, None, :] == self.subjects[:, :, None]
        return _total(self.together & self.reference[:, None, :] & same_subject & sooner, self.frames)


def _total(chosen: Bool[Array, "b s s"], amount: Int32[Array, "b s"]) -> Int32[Array, "b s"]:
    return jnp.where(chosen, amount[:, None, :], 0).sum(axis=2, dtype=jnp.int32)


class Scheme(abc.ABC):
    """A way to place segments."""

    @abc.abstractmethod
    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        """Time, row and column of the first token of each segment, int32 [batch, segments] each."""

    @property
    def text_step(self) -> tuple[int, int, int]:
        """From one token of a text to the next; by default a text has no extent, as in FLUX."""
        return 0, 0, 0


def _video_time(x: Extents) -> Array:
    """Videos follow each other in time from 0."""
    return x.earlier(x.frames, x.video)


def _place(x: Extents, references: Array, videos: Array | None = None) -> Array:
    """One axis of the origins: videos at `videos` (0 if not given), references at `references`, texts at 0."""
    zero = jnp.zeros_like(x.frames)
    return jnp.where(x.reference, references, zero if videos is None else jnp.where(x.video, videos, zero))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuing(Scheme):
    """References are further frames of the video: Concat, Phantom, VACE; with a gap, ContextAnyone's Gap-RoPE.

    references: whether they come "before" the video, which then starts after them, or "after" it (Phantom).
    gap: frames left empty between the references and the video; Gap-RoPE's beta (ContextAnyone uses 4).
    """

    references: Literal["before", "after"] = "before"
    gap: int = 0

    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        zero = jnp.zeros_like(x.frames)
        earlier = x.earlier(x.frames, x.reference)
        if self.references == "after":
            return _place(x, x.video_frames() + self.gap + earlier, _video_time(x)), zero, zero
        all_references = _total(x.together & x.reference[:, None, :], x.frames)
        moved = jnp.where(all_references > 0, all_references + self.gap, 0)
        return _place(x, earlier, moved + _video_time(x)), zero, zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialShift(Scheme):
    """References stand beside the video in rows and columns: Kaleido's R-RoPE (equation 4) and its spatial variants.

    rows, columns: which axes are shifted (ShiftH, ShiftW, or both: ShiftW&H).
    offset: how far, in tokens; None = the height and width of the sample's video (equation 4), 80 = the released model.
    overlap: whether all references share the shift; False = each starts where the one before it ends (with a fixed
        offset: at twice, three times the offset).
    time: "index" = reference i has t = i - 1 (a clip takes as many as it has frames); "zero" = all start at t = 0,
        the other reading of section 4.2.
    """

    rows: bool = True
    columns: bool = True
    offset: int | None = None
    overlap: bool = True
    time: Literal["index", "zero"] = "index"

    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        zero = jnp.zeros_like(x.frames)
        time = x.earlier(x.frames, x.reference) if self.time == "index" else zero
        row, column = (
            _place(x, self._shift(x, size)) if shifted else zero
            for size, shifted in ((x.height, self.rows), (x.width, self.columns))
        )
        return _place(x, time, _video_time(x)), row, column

    def _shift(self, x: Extents, size: Array) -> Array:
        start = x.most(size) if self.offset is None else jnp.full_like(size, self.offset)
        if self.overlap:
            return start
        return start + x.earlier(size if self.offset is None else start, x.reference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedTime(Scheme):
    """All references stand at one time: T = -1 (Kaleido A.2), 30 (Wan2.2-S2V). A clip runs away from the video's start.

    A fixed time >= 0 is clear of the video only as long as the video is shorter.
    """

    time: int = -1

    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        zero = jnp.zeros_like(x.frames)
        start = zero + self.time if self.time >= 0 else self.time + 1 - x.frames
        return _place(x, start, _video_time(x)), zero, zero


@dataclasses.dataclass(frozen=True)
class NegativeTime(Scheme):
    """The pictures of each subject stand progressively earlier, T = -1, -2, -3 (Kaleido A.2, staggered)."""

    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        zero = jnp.zeros_like(x.frames)
        return _place(x, -(x.earlier_pictures() + x.frames), _video_time(x)), zero, zero


@dataclasses.dataclass(frozen=True)
class FutureTime(Scheme):
    """The pictures of each subject stand at N + 1, N + 2, ... after a video of N frames 0 ... N - 1 (Kaleido A.2)."""

    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        zero = jnp.zeros_like(x.frames)
        return _place(x, x.video_frames() + 1 + x.earlier_pictures(), _video_time(x)), zero, zero


@dataclasses.dataclass(frozen=True)
class VideoOnly(Scheme):
    """Plain positions of a video; references, if any, are not tokens (channel-concat, text-to-video)."""

    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        if x.reference.any():
            raise ValueError(
                "this scheme places no reference tokens, but the layout has reference segments; remove them"
            )
        zero = jnp.zeros_like(x.frames)
        return _place(x, zero, _video_time(x)), zero, zero


@dataclasses.dataclass(frozen=True)
class Flat(Scheme):
    """FLUX's (0, row, column): time is always 0, texts stand at (0, 0, 0)."""

    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        zero = jnp.zeros_like(x.frames)
        return zero, zero, zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interleaved(Scheme):
    """LCT's [text][video] [text][video] ...: segments follow each other along the diagonal, texts lie on it.

    Text token k stands at (a + k, a + k, a + k), the video after it starts at a + length, the next text where the
    largest axis of that video ends. Within a shot, text and video so stand to each other as in a single shot. The
    global prompt is a text before a dummy video. The paper fixes the mechanism, not the arithmetic:

    time: "diagonal" = time runs along as rows and columns do (as in M-RoPE, which the paper likens it to);
        "continuing" = a text stands at the time of its shot's first frame and the shots follow each other in time.
    """

    time: Literal["diagonal", "continuing"] = "diagonal"

    def origins(self, x: Extents) -> tuple[Array, Array, Array]:
        across = jnp.maximum(x.height, x.width)
        extent = jnp.maximum(across, x.frames) if self.time == "diagonal" else across
        start = _total(x.before, jnp.where(x.text, x.tokens, extent))
        if self.time == "diagonal":
            return start, start, start
        return x.earlier(x.frames, ~x.text), start, start

    @property
    def text_step(self) -> tuple[int, int, int]:
        return int(self.time == "diagonal"), 1, 1


SCHEMES: Mapping[str, Scheme] = {
    "concat-before": Continuing(references="before"),
    "concat-after": Continuing(references="after"),
    "shift-w": SpatialShift(rows=False),
    "shift-h": SpatialShift(columns=False),
    "shift-wh": SpatialShift(),
    "shift-wh-released": SpatialShift(offset=80),
    "shift-wh-zero-time": SpatialShift(time="zero"),
    "shift-wh-no-overlap": SpatialShift(overlap=False),
    "fixed-time": FixedTime(time=-1),
    "negative-time": NegativeTime(),
    "future-time": FutureTime(),
    "phantom": Continuing(references="after"),
    "wan-s2v": FixedTime(time=30),
    "gap": Continuing(references="before", gap=4),
    "interleaved": Interleaved(),
    "interleaved-continuing-time": Interleaved(time="continuing"),
    "channel-concat": VideoOnly(),
    "flux": Flat(),
}


def positions(
    layout: TokenLayout,
    scheme: Scheme,
    contents: Contents | None = None,
    *,
    stream: Stream | None = "visual",
    shift: Float[AnyArray, "#b s 3"] | None = None,
) -> Float32[Array, "#b n 3"]:
    """Time, row and column of each token of a stream (None: of all tokens), in patches.

    contents: what the batch really holds (may be traced); None = the whole layout, once for the whole batch. Absent
    segments take no room: positions are those of the sample without them. Positions start anew in each packed sample.
    shift: moves each segment, over all segments of the layout (learned offsets; a gradient passes).
    """
    x = _extents(layout, layout.contents() if contents is None else contents)
    origin = jnp.stack(scheme.origins(x), axis=2).astype(jnp.float32)
    if shift is not None:
        origin = origin + jnp.asarray(shift, jnp.float32)
    tokens = layout.token_indices(stream)
    places = np.concatenate([_places(segment, scheme) for segment in layout.segments])[tokens]
    return origin[:, layout.segment_ids()[tokens]] + places[None]


def _places(segment: Segment, scheme: Scheme) -> Float32[np.ndarray, "n 3"]:
    """The tokens of a segment relative to its first one."""
    if segment.kind == "text":
        return np.arange(segment.tokens, dtype=np.float32)[:, None] * np.array([scheme.text_step], np.float32)
    return np.indices(segment.grid).reshape(3, -1).T.astype(np.float32)


def _extents(layout: TokenLayout, contents: Contents) -> Extents:
    of_kind = lambda kind: np.array([[segment.kind == kind for segment in layout.segments]])
    frames, height, width = np.array([segment.grid for segment in layout.segments], np.int32).T[:, None, :]
    lengths, samples = jnp.asarray(contents.lengths), jnp.asarray(contents.samples)
    present = lengths > 0
    together = (samples[:, :, None] == samples[:, None, :]) & present[:, None, :]
    order = np.arange(len(layout.segments))
    return Extents(
        frames=-(-lengths // (height * width)),
        height=jnp.where(present, height, 0),
        width=jnp.where(present, width, 0),
        tokens=lengths,
        subjects=jnp.asarray(contents.subjects),
        pictures=jnp.asarray(contents.pictures),
        video=of_kind("video"),
        reference=of_kind("reference"),
        text=of_kind("text"),
        together=together,
        before=together & (order[None, :] < order[:, None])[None],
    )


@dataclasses.dataclass(frozen=True)
class Principles:
    """Which of the three design principles of Kaleido A.2 a scheme meets, judged by positions alone and strictly.

    distinguishable: no reference token stands where a video token does, nor one frame before or after it.
    separable: no two references share a position.
    unordered: no two references stand at one row and column in successive frames, as frames of a clip do. (The
        paper's own R-RoPE, t = i - 1 at a shared shift, does not meet this one to the letter; without overlap it does.)
    """

    distinguishable: bool
    separable: bool
    unordered: bool


def principles(layout: TokenLayout, scheme: Scheme) -> Principles:
    """The principles that a scheme meets for the references and videos of a layout (all if it has no references)."""
    places = np.asarray(positions(layout, scheme, stream=None))[0].astype(int)
    tokens: dict[str, list[set[tuple[int, int, int]]]] = {"video": [], "reference": []}
    for segment, piece in zip(layout.segments, layout.slices()):
        if segment.kind in tokens:
            tokens[segment.kind].append({tuple(place) for place in places[piece].tolist()})
    references, video = tokens["reference"], set().union(*tokens["video"])
    moved = lambda some, frames: {(t + frames, row, column) for t, row, column in some}
    pairs = list(itertools.permutations(references, 2))
    return Principles(
        distinguishable=not any(moved(one, frames) & video for one in references for frames in (-1, 0, 1)),
        separable=not any(one & other for one, other in pairs),
        unordered=not any(moved(one, 1) & other for one, other in pairs),
    )


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """How Wan divides the width of a head between time, rows and columns: 128 = 44 + 42 + 42."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotary_angles(
    positions: Float32[AnyArray, "#b n 3"],
    head_dim: int,
    theta: float = 10000.0,
    axes: tuple[int, int, int] | None = None,
) -> Float32[Array, "#b n {head_dim//2}"]:
    """The angle in radians by which each pair of values of a head is turned; time first, then row, then column.

    Pair i of an axis of width d turns by position * theta ** (-2 i / d). axes: the widths of the three axes, Wan's
    `axis_widths` if not given (FLUX: 16, 56, 56). Always float32: frequencies are made in float64 on the host.
    """
    axes = axis_widths(head_dim) if axes is None else axes
    if sum(axes) != head_dim or any(width % 2 or width < 0 for width in axes):
        raise ValueError(f"axes is {axes}; it must be three even widths that add up to head_dim={head_dim}")
    frequencies = [theta ** (-np.arange(0, width, 2, dtype=np.float64) / max(width, 1)) for width in axes]
    per_axis = [
        jnp.asarray(positions[:, :, axis, None]) * values.astype(np.float32)[None, None]
        for axis, values in enumerate(frequencies)
    ]
    return jnp.concatenate(per_axis, axis=2)


def apply_rotary(x: Float[Array, "b n h d"], angles: Float32[Array, "#b n half"]) -> Float[Array, "b n h d"]:
    """Turns values (2 i, 2 i + 1) of each head by angle i, like complex numbers; in float32, returned as `x` came."""
    if angles.shape[1] != x.shape[1] or 2 * angles.shape[2] != x.shape[3]:
        raise ValueError(
            f"angles has shape {angles.shape}; for x of shape {x.shape} "
            f"it must be [1 or {x.shape[0]}, {x.shape[1]}, {x.shape[3] // 2}]"
        )
    cos, sin = jnp.cos(angles)[:, :, None, :], jnp.sin(angles)[:, :, None, :]
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
