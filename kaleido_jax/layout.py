"""The description of a token sequence: which rectangles of tokens it holds, in which order, and in which role.

Everything that distinguishes one method from another (positions, visibility, timesteps, loss weights) is a pure
function of a `TokenLayout` and of the `Contents` that a batch puts into it.
"""

import dataclasses
import math
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from kaleido_jax.tree import pytree
from kaleido_jax.typing import AnyArray, Array, Int32, Shaped

Kind: TypeAlias = Literal["video", "reference", "text", "dummy"]
Stream: TypeAlias = Literal["visual", "text"]
Grid: TypeAlias = tuple[int, int, int]

KINDS = ("video", "reference", "text", "dummy")
STREAMS = ("visual", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """A rectangle of tokens with a role. Its tokens are ordered by frame, then row, then column.

    kind: "video" (a shot), "reference" (a picture or a clip of a subject), "text" (a prompt) or "dummy" (visual
        tokens in place of a video that does not exist: LCT's partner of the global prompt).
    grid: frames, height and width in patches; a text is (tokens, 1, 1).
    subject: which subject a reference shows. picture: which picture of that subject it is.
    primary: marks the subject that matters most (AnyID).
    shot: the shot that the segment belongs to (LCT); references and the global prompt stay at 0.
    stream: which weights process it where a model has two sets of them (MMDiT); "text" for a text, else "visual".
    target: whether it is denoised and counts in the loss; by default a video is, all else is not.
    """

    kind: Kind
    grid: Grid
    subject: int = 0
    picture: int = 0
    primary: bool = False
    shot: int = 0
    # Both are resolved on construction and never None afterwards.
    stream: Stream | None = None
    target: bool | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"Segment.kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if len(self.grid) != 3 or any(not isinstance(n, int | np.integer) or n < 1 for n in self.grid):
            raise ValueError(
                f"Segment.grid is {self.grid!r}; it must be three whole numbers >= 1: frames, height, width"
            )
        if self.kind == "text" and tuple(self.grid[1:]) != (1, 1):
            raise ValueError(f"Segment.grid of a text is {self.grid!r}; it must be (tokens, 1, 1)")
        for name in ("subject", "picture", "shot"):
            if getattr(self, name) < 0:
                raise ValueError(f"Segment.{name} is {getattr(self, name)}; it must be >= 0")
        if self.stream is None:
            object.__setattr__(self, "stream", "text" if self.kind == "text" else "visual")
        if self.stream not in STREAMS:
            raise ValueError(f"Segment.stream is {self.stream!r}; it must be one of {', '.join(STREAMS)}")
        if self.target is None:
            object.__setattr__(self, "target", self.kind == "video")
        object.__setattr__(self, "grid", tuple(int(n) for n in self.grid))

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


@dataclasses.dataclass(frozen=True)
class TokenLayout:
    """The segments of a sequence in token order. Hashable, on the host: the bucket that a compiled program is made for.

    It holds the *largest* set of segments of a batch; `Contents` says what a sample really has of it. Where a
    `stream` may be given, None means all segments in token order.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self):
        object.__setattr__(self, "segments", tuple(self.segments))
        if not self.segments:
            raise ValueError("TokenLayout.segments is empty; it must hold at least one Segment")
        for segment in self.segments:
            if not isinstance(segment, Segment):
                raise ValueError(f"TokenLayout.segments holds {segment!r}; it must hold Segments only")

    def indices(self, stream: Stream | None = None) -> tuple[int, ...]:
        """Where the segments of a stream stand in `segments`: selects their columns from a [batch, segments] array."""
        if stream is not None and stream not in STREAMS:
            raise ValueError(f"stream is {stream!r}; it must be None or one of {', '.join(STREAMS)}")
        return tuple(i for i, segment in enumerate(self.segments) if stream in (None, segment.stream))

    def select(self, stream: Stream | None = None) -> tuple[Segment, ...]:
        """The segments of a stream, in token order."""
        return tuple(self.segments[i] for i in self.indices(stream))

    def tokens(self, stream: Stream | None = None) -> int:
        """The number of tokens of a stream."""
        return sum(segment.tokens for segment in self.select(stream))

    def slices(self, stream: Stream | None = None) -> tuple[slice, ...]:
        """The range of tokens of each selected segment, counted within the stream."""
        ends = np.cumsum([segment.tokens for segment in self.select(stream)])
        return tuple(slice(int(end) - segment.tokens, int(end)) for segment, end in zip(self.select(stream), ends))

    def segment_ids(self, stream: Stream | None = None) -> Int32[np.ndarray, "n"]:
        """For each token of the stream, the number of its segment within `select(stream)`."""
        counts = [segment.tokens for segment in self.select(stream)]
        return np.repeat(np.arange(len(counts), dtype=np.int32), counts)

    def token_indices(self, stream: Stream | None = None) -> Int32[np.ndarray, "n"]:
        """For each token of the stream, its place in the whole sequence."""
        chosen = np.isin(self.segment_ids(), self.indices(stream))
        return np.flatnonzero(chosen).astype(np.int32)

    def contents(
        self,
        *,
        lengths: AnyArray | None = None,
        subjects: AnyArray | None = None,
        pictures: AnyArray | None = None,
        samples: AnyArray | None = None,
    ) -> "Contents":
        """What a batch holds of this layout; whatever is not given is as the layout says, in full.

        Each argument is an integer array [batch, segments] (traced or not, over *all* segments). Giving `subjects`
        without `pictures` numbers the pictures of each subject in token order.
        """
        given = {"lengths": lengths, "subjects": subjects, "pictures": pictures, "samples": samples}
        given = {name: value for name, value in given.items() if value is not None}
        count = len(self.segments)
        for name, value in given.items():
            if value.ndim != 2 or value.shape[1] != count:
                raise ValueError(f"{name} has shape {value.shape}; it must be [batch, {count}], one column a segment")
            if not np.issubdtype(value.dtype, np.integer):
                raise ValueError(f"{name} has dtype {value.dtype}; it must be an integer type")
        batches = {name: value.shape[0] for name, value in given.items() if value.shape[0] != 1}
        if len(set(batches.values())) > 1:
            raise ValueError(f"the batch sizes differ: {', '.join(f'{n} has {b}' for n, b in batches.items())}")
        if isinstance(lengths, np.ndarray):
            most = np.array([segment.tokens for segment in self.segments])
            if bool(((lengths < 0) | (lengths > most[None])).any()):
                raise ValueError(
                    f"lengths holds {lengths.tolist()}; each must be between 0 and the segment's {most.tolist()}"
                )
        defaults = {
            "lengths": [segment.tokens for segment in self.segments],
            "subjects": [segment.subject for segment in self.segments],
            "pictures": [0 if subjects is not None else segment.picture for segment in self.segments],
            "samples": [0] * count,
        }
        batch = max(batches.values(), default=1)

        def whole(name: str) -> AnyArray:
            value = given.get(name, np.array([defaults[name]]))
            xp = np if isinstance(value, np.ndarray) else jnp
            return xp.broadcast_to(value.astype(np.int32), (batch, count))

        return Contents(**{name: whole(name) for name in defaults})


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What the samples of a batch really hold of a layout: int32 [batch, segments] each, over all its segments.

    lengths: tokens present, counted from the segment's start; 0 = the segment is absent. A shorter video has the
        tokens of its frames, a shorter text those of its words.
    subjects: which subject each reference shows. pictures: the order of the pictures of a subject (equal: token order).
    samples: which packed sample each segment belongs to; only segments of equal samples see each other, and
        positions start anew in each.

    Make it with `TokenLayout.contents`, which checks it.
    """

    lengths: AnyArray
    subjects: AnyArray
    pictures: AnyArray
    samples: AnyArray


def patchify(x: Shaped[Array, "b f h w c"], patch: Grid) -> Shaped[Array, "b n p"]:
    """Cuts a video into tokens, ordered by frame, row, column; a token's values are ordered (pt, ph, pw, c)."""
    for name, size, step in zip(("frames", "height", "width"), x.shape[1:4], patch):
        if size % step:
            low = size // step * step
            near = f"{low} or {low + step}" if low else f"{step}"
            raise ValueError(
                f"{name} of the input is {size}; it must be divisible by the patch size {step} (nearest: {near})"
            )
    pt, ph, pw = patch
    return rearrange(x, "b (f pt) (h ph) (w pw) c -> b (f h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(tokens: Shaped[Array, "b n p"], grid: Grid, patch: Grid) -> Shaped[Array, "b f h w c"]:
    """The inverse of `patchify`; `grid` is the number of patches in frames, height and width."""
    if tokens.shape[1] != math.prod(grid):
        raise ValueError(f"tokens has {tokens.shape[1]} tokens; the grid {tuple(grid)} has {math.prod(grid)}")
    if tokens.shape[2] % math.prod(patch):
        raise ValueError(
            f"a token has {tokens.shape[2]} values; it must be a multiple of {math.prod(patch)}, the patch {patch}"
        )
    (f, h, w), (pt, ph, pw) = grid, patch
    return rearrange(tokens, "b (f h w) (pt ph pw c) -> b (f pt) (h ph) (w pw) c", f=f, h=h, w=w, pt=pt, ph=ph, pw=pw)
