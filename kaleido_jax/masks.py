"""Who may read whom: token masks as bit fields, their algebra, and the rules that make them from a layout.

A mask is vectors, never a [query, key] matrix (5.7 GB a head at 75,600 tokens). It may be asymmetric, overlapping,
traced and data dependent.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from kaleido_jax.layout import Contents, Kind, Segment, Stream, TokenLayout
from kaleido_jax.tree import pytree, static
from kaleido_jax.typing import AnyArray, Array, Bool, UInt8

MOST_BITS = 32


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class TokenMask:
    """Query token q may read key token k iff they are of one sample and `reads[q] & groups[k] != 0`.

    reads: uint32 [queries] or [batch, queries], the groups that a query may read, one bit each.
    groups: uint32 [keys] or [batch, keys], the groups that a key belongs to.
    q_sample, k_sample: int32 of the same kind of shape, or both None (all tokens are of one sample). A negative
        number is padding: it reads nothing and nothing reads it.
    width: how many bits are in use; every set bit must lie below it. Static. `|` adds widths, `&` multiplies them.

    All vectors may be traced. Raises ValueError naming the argument if a dtype, a shape or the width does not fit.
    """

    reads: AnyArray
    groups: AnyArray
    q_sample: AnyArray | None = dataclasses.field(default=None, kw_only=True)
    k_sample: AnyArray | None = dataclasses.field(default=None, kw_only=True)
    width: int = static(default=MOST_BITS, kw_only=True)

    def __post_init__(self):
        if not 1 <= self.width <= MOST_BITS:
            raise ValueError(
                f"TokenMask.width is {self.width}; it must be between 1 and {MOST_BITS}, the bits of a uint32"
            )
        if (self.q_sample is None) != (self.k_sample is None):
            missing = "q_sample" if self.q_sample is None else "k_sample"
            raise ValueError(f"TokenMask.{missing} is missing; q_sample and k_sample must be given together")
        batches = set()
        for name, dtype in (("reads", "uint32"), ("groups", "uint32"), ("q_sample", "int32"), ("k_sample", "int32")):
            value = getattr(self, name)
            if value is None:
                continue
            tokens = "queries" if name in ("reads", "q_sample") else "keys"
            if value.dtype != np.dtype(dtype):
                raise ValueError(f"TokenMask.{name} has dtype {value.dtype}; it must be {dtype}")
            if value.ndim not in (1, 2):
                raise ValueError(
                    f"TokenMask.{name} has shape {value.shape}; it must be [{tokens}] or [batch, {tokens}]"
                )
            if value.ndim == 2 and value.shape[0] != 1:
                batches.add(value.shape[0])
            if (
                dtype == "uint32"
                and isinstance(value, np.ndarray)
                and bool((value >> np.uint32(self.width - 1) > 1).any())
            ):
                raise ValueError(f"TokenMask.{name} has a bit set at or above width={self.width}; raise the width")
        if len(batches) > 1:
            raise ValueError(f"TokenMask holds vectors of batch sizes {sorted(batches)}; they must agree")
        for vector, sample in (("reads", "q_sample"), ("groups", "k_sample")):
            tokens, value = getattr(self, vector).shape[-1], getattr(self, sample)
            if value is not None and value.shape[-1] != tokens:
                raise ValueError(
                    f"TokenMask.{sample} has shape {value.shape}; {vector} has {tokens} tokens, so must it"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """batch (1 where all samples of a batch share the mask), queries, keys."""
        leaves = [x for x in (self.reads, self.groups, self.q_sample, self.k_sample) if x is not None]
        batch = max(x.shape[0] if x.ndim == 2 else 1 for x in leaves)
        return batch, self.reads.shape[-1], self.groups.shape[-1]

    def __or__(self, other: "TokenMask") -> "TokenMask":
        """Visible where either mask says so. Both must have the same samples: bits cannot hold two partitions."""
        width = self._joint_width(other, self.width + other.width, "|", "add up")
        if not _same_samples(self, other):
            raise ValueError(
                "masks joined by | must have the same q_sample and k_sample; "
                "join masks without samples first, then restrict the result with & to the samples"
            )
        shift = np.uint32(self.width)
        reads, groups = (_rows(a) | (_rows(b) << shift) for a, b in self._vectors(other))
        return TokenMask(reads, groups, q_sample=self.q_sample, k_sample=self.k_sample, width=width)

    def __and__(self, other: "TokenMask") -> "TokenMask":
        """Visible where both masks say so: one bit for each pair of their bits."""
        width = self._joint_width(other, self.width * other.width, "&", "multiply")
        reads, groups = (_bit_pairs(_rows(a), _rows(b), self.width, other.width) for a, b in self._vectors(other))
        q_sample, k_sample = _both_samples(self, other)
        return TokenMask(reads, groups, q_sample=q_sample, k_sample=k_sample, width=width)

    def dense(self) -> Bool[Array, "#b q k"]:
        """The mask as a matrix, True = visible. For tests, pictures and short sequences."""
        reads, groups = jnp.asarray(_rows(self.reads)), jnp.asarray(_rows(self.groups))
        visible = (reads[:, :, None] & groups[:, None, :]) != 0
        if self.q_sample is None or self.k_sample is None:
            return visible
        q_sample, k_sample = jnp.asarray(_rows(self.q_sample)), jnp.asarray(_rows(self.k_sample))
        return visible & (q_sample[:, :, None] == k_sample[:, None, :]) & (q_sample >= 0)[:, :, None]

    def take(self, *, queries: AnyArray | slice | None = None, keys: AnyArray | slice | None = None) -> "TokenMask":
        """The mask between some of the tokens: those at the given places (an index array or a slice; None = all)."""
        pick = lambda x, places: x if x is None or places is None else x[..., places]
        return TokenMask(
            pick(self.reads, queries),
            pick(self.groups, keys),
            q_sample=pick(self.q_sample, queries),
            k_sample=pick(self.k_sample, keys),
            width=self.width,
        )

    def _vectors(self, other: "TokenMask") -> tuple[tuple[AnyArray, AnyArray], tuple[AnyArray, AnyArray]]:
        return (self.reads, other.reads), (self.groups, other.groups)

    def _joint_width(self, other: "TokenMask", width: int, sign: str, verb: str) -> int:
        if self.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"masks joined by {sign} must have equal queries and keys; got {self.shape[1:]} and {other.shape[1:]}"
            )
        if width > MOST_BITS:
            raise ValueError(
                f"a mask has at most {MOST_BITS} bits; widths {self.width} and {other.width} joined by {sign} "
                f"{verb} to {width}. State the bits really in use with width=, or simplify one mask"
            )
        return width


def _rows(vector: AnyArray) -> AnyArray:
    """[tokens] or [batch, tokens] as [1 or batch, tokens]."""
    return vector if vector.ndim == 2 else vector[None]


def _bit_pairs(a: AnyArray, b: AnyArray, a_width: int, b_width: int) -> AnyArray:
    """Bit i * b_width + j is set iff bit i of a and bit j of b are: then (exists i) and (exists j) is (exists pair)."""
    zero = np.uint32(0)
    pairs = zero
    for i in range(a_width):
        # Minus one as uint32 is all ones, so the product selects b or nothing, in numpy and in traced code alike.
        chosen = (zero - ((a >> np.uint32(i)) & np.uint32(1))) & b
        pairs = pairs | (chosen << np.uint32(i * b_width))
    return pairs


def _same_samples(a: TokenMask, b: TokenMask) -> bool:
    """Whether both masks are known, while tracing, to divide the tokens into the same samples."""

    def same(x: AnyArray | None, y: AnyArray | None) -> bool:
        if x is y:
            return True
        if x is None or y is None or isinstance(x, Tracer) or isinstance(y, Tracer):
            return False
        return np.array_equal(*np.broadcast_arrays(_rows(np.asarray(x)), _rows(np.asarray(y))))

    return same(a.q_sample, b.q_sample) and same(a.k_sample, b.k_sample)


def _both_samples(a: TokenMask, b: TokenMask) -> tuple[AnyArray | None, AnyArray | None]:
    """Samples that are equal where those of a and those of b are."""
    if b.q_sample is None or _same_samples(a, b):
        return a.q_sample, a.k_sample
    if a.q_sample is None:
        return b.q_sample, b.k_sample
    # Queries and keys together, each token a pair of numbers; equal pairs get equal ranks.
    vectors = [jnp.asarray(_rows(x)) for x in (a.q_sample, a.k_sample, b.q_sample, b.k_sample)]
    batch = max(x.shape[0] for x in vectors)
    a_q, a_k, b_q, b_k = (jnp.broadcast_to(x, (batch, x.shape[1])) for x in vectors)
    first, second = jnp.concatenate([a_q, a_k], axis=1), jnp.concatenate([b_q, b_k], axis=1)
    order = jnp.lexsort((second, first), axis=1)
    sorted_first, sorted_second = jnp.take_along_axis(first, order, axis=1), jnp.take_along_axis(second, order, axis=1)
    new = (sorted_first[:, 1:] != sorted_first[:, :-1]) | (sorted_second[:, 1:] != sorted_second[:, :-1])
    rank = jnp.pad(jnp.cumsum(new.astype(jnp.int32), axis=1), ((0, 0), (1, 0)))
    joint = jnp.take_along_axis(rank, jnp.argsort(order, axis=1), axis=1)
    joint = jnp.where((first < 0) | (second < 0), -1, joint).astype(jnp.int32)
    return joint[:, : a_q.shape[1]], joint[:, a_q.shape[1] :]


EMPTY, PARTIAL, FULL = 0, 1, 2


def block_summary(mask: TokenMask, block_q: int, block_k: int) -> UInt8[Array, "#b blocks_q blocks_k"]:
    """What is visible between each block of queries and of keys: EMPTY, PARTIAL or FULL; the last blocks may be short.

    EMPTY and FULL are proofs. EMPTY is missed only in blocks of several samples whose numbers interleave; FULL where
    all is visible through different bits. So PARTIAL is always right, if sometimes slow.
    """

    def blocks(vector: AnyArray, sample: AnyArray | None, size: int):
        vector = jnp.asarray(_rows(vector))
        sample = jnp.zeros((1, vector.shape[1]), jnp.int32) if sample is None else jnp.asarray(_rows(sample))
        vector, sample = jnp.broadcast_arrays(vector, sample)
        short = -vector.shape[1] % size
        split = lambda x, fill: jnp.pad(x, ((0, 0), (0, short)), constant_values=fill).reshape(x.shape[0], -1, size)
        within = split(jnp.ones_like(sample), 0) == 1
        vector, sample = split(vector, 0), split(sample, -1)
        real = sample >= 0
        either = jnp.bitwise_or.reduce(jnp.where(real, vector, np.uint32(0)), axis=2)
        every = jnp.bitwise_and.reduce(jnp.where(within, vector, np.uint32(0xFFFFFFFF)), axis=2)
        lowest = jnp.where(real, sample, np.iinfo(np.int32).max).min(axis=2)
        highest = sample.max(axis=2)
        whole = (real | ~within).all(axis=2) & (lowest == highest)
        return either, every, lowest, highest, whole

    q_either, q_every, q_lowest, q_highest, q_whole = (
        x[:, :, None] for x in blocks(mask.reads, mask.q_sample, block_q)
    )
    k_either, k_every, k_lowest, k_highest, k_whole = (
        x[:, None, :] for x in blocks(mask.groups, mask.k_sample, block_k)
    )
    some = ((q_either & k_either) != 0) & (q_lowest <= k_highest) & (k_lowest <= q_highest)
    every = ((q_every & k_every) != 0) & q_whole & k_whole & (q_lowest == k_lowest)
    return jnp.where(every, FULL, jnp.where(some, PARTIAL, EMPTY)).astype(jnp.uint8)


def shows_everything(mask: TokenMask) -> bool:
    """Whether one bit of a mask of numpy vectors shows every key to every query; False where vectors are on a device.

    Then the mask is as none, and attention has no trace of it: "kaleido" without absent tokens, for one.
    """
    vectors = (mask.reads, mask.groups, mask.q_sample, mask.k_sample)
    if not all(x is None or isinstance(x, np.ndarray) for x in vectors):
        return False
    reads, groups, q_sample, k_sample = (None if x is None else np.asarray(_rows(x)) for x in vectors)
    shared = np.bitwise_and.reduce(reads, axis=1) & np.bitwise_and.reduce(groups, axis=1)
    if q_sample is None or k_sample is None:
        return bool((shared != 0).all())
    first = q_sample[:, :1]
    return bool((shared != 0).all() and (first >= 0).all() and (q_sample == first).all() and (k_sample == first).all())


# The rules. Each gives the mask between all tokens of a layout, in token order; `visibility` joins them.

Rule: TypeAlias = Callable[[TokenLayout, Contents | None], TokenMask]


def _by_segment(layout: TokenLayout, reads: Iterable[int], groups: Iterable[int], width: int) -> TokenMask:
    """The mask whose bits are the same for all tokens of a segment."""
    expand = lambda bits: np.array(list(bits), np.uint32)[layout.segment_ids()]
    return TokenMask(expand(reads), expand(groups), width=width)


def _is_reference(segment: Segment) -> bool:
    return segment.kind == "reference"


def bidirectional(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """Every token reads every token (Kaleido, AnyID, LCT before its causal fine-tuning)."""
    ones = [1] * len(layout.segments)
    return _by_segment(layout, ones, ones, width=1)


def unidirectional(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """References do not read the video, the video reads all (ContextAnyone, Emphasize-Attention's unidirectional flow).

    A text in the same sequence stands on the references' side: it would otherwise carry the video to them in the
    next layer.
    """
    clean, noisy = 1, 2
    groups = [noisy if segment.kind in ("video", "dummy") else clean for segment in layout.segments]
    return _by_segment(layout, [group | clean for group in groups], groups, width=2)


def separate_references(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """References do not see each other; each sees itself and all that is no reference. A bit each, one for the rest."""
    rank = np.cumsum([_is_reference(segment) for segment in layout.segments])
    own = [1 << int(i) if _is_reference(segment) else 1 for segment, i in zip(layout.segments, rank)]
    count = _checked_bits(int(rank[-1]) + 1, "separate_references", "references")
    everything = (1 << count) - 1
    reads = [bit | 1 if _is_reference(segment) else everything for segment, bit in zip(layout.segments, own)]
    return _by_segment(layout, reads, own, width=count)


def separate_subjects(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """References see those of their own subject and all that is no reference, but no other subject.

    The subjects of `contents` may be traced; their numbers must lie below the larger of the layout's number of
    references and its highest subject + 1, which sets the width.
    """
    references = np.array([_is_reference(segment) for segment in layout.segments])
    most = max(int(references.sum()), 1 + max(segment.subject for segment in layout.segments))
    width = _checked_bits(most + 1, "separate_subjects", "subjects")
    subjects = (contents or layout.contents()).subjects
    if isinstance(subjects, np.ndarray) and bool((references & ((subjects < 0) | (subjects >= most))).any()):
        raise ValueError(f"subjects holds {subjects.tolist()}; each must be between 0 and {most - 1} in this layout")
    xp = np if isinstance(subjects, np.ndarray) else jnp
    own = xp.where(references[None], xp.asarray(2, np.uint32) << subjects.astype(np.uint32), np.uint32(1))
    reads = xp.where(references[None], own | np.uint32(1), np.uint32(2**width - 1))
    ids = layout.segment_ids()
    return TokenMask(reads[:, ids], own[:, ids], width=width)


def shot_causal(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """A shot reads itself and all earlier shots (LCT's context causal attention); one bit for each shot."""
    rank, count = _shots(layout, "shot_causal")
    return _by_segment(layout, [(2 << r) - 1 for r in rank], [1 << r for r in rank], width=count)


def own_shot(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """A shot reads itself alone: for a cross-attention in which each shot reads its own prompt."""
    rank, count = _shots(layout, "own_shot")
    bits = [1 << r for r in rank]
    return _by_segment(layout, bits, bits, width=count)


def emphasis(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
    """Videos read references and nothing else; all else reads nothing (ContextAnyone's Emphasize-Attention)."""
    reads = [int(segment.kind == "video") for segment in layout.segments]
    return _by_segment(layout, reads, [int(_is_reference(segment)) for segment in layout.segments], width=1)


def readers(*kinds: Kind) -> Rule:
    """The rule by which tokens of these kinds read everything and other tokens nothing: who reads the text."""

    def rule(layout: TokenLayout, contents: Contents | None = None) -> TokenMask:
        reads = [segment.kind in kinds for segment in layout.segments]
        return _by_segment(layout, reads, [1] * len(reads), width=1)

    return rule


def foreground_background(
    layout: TokenLayout,
    foreground: Bool[AnyArray, "*batch n"],
    shared: Bool[AnyArray, "*batch_or_none n"] | None = None,
) -> TokenMask:
    """References offer their foreground to foreground tokens and their background to background tokens (CharaConsist).

    layout: all tokens; those of its references are the shared ones. foreground: for each token, whether it shows the
    subject (texts: ignored). shared: which reference tokens are on offer at all; None = all. Both may be traced.
    Tokens that are no reference see each other; texts see no reference.
    """
    own, front, back = (np.uint32(bit) for bit in (1, 2, 4))
    shape = (1,) * (foreground.ndim - 1) + (layout.tokens(),)
    by_token = lambda test: np.array([test(s) for s in layout.segments])[layout.segment_ids()].reshape(shape)
    text = by_token(lambda segment: segment.kind == "text")
    reference = by_token(_is_reference)
    side = jnp.where(foreground, front, back)
    reads = jnp.where(text, own, own | side)
    offered = side if shared is None else jnp.where(shared, side, np.uint32(0))
    return TokenMask(reads, jnp.where(reference, offered, own), width=3)


def _shots(layout: TokenLayout, rule: str) -> tuple[list[int], int]:
    """The rank of each segment's shot among the shots of the layout, and how many there are."""
    shots = sorted({segment.shot for segment in layout.segments})
    return [shots.index(segment.shot) for segment in layout.segments], _checked_bits(len(shots), rule, "shots")


def _checked_bits(count: int, rule: str, what: str) -> int:
    if count > MOST_BITS:
        raise ValueError(f"{rule} needs {count} bits for the {what} of this layout; a mask has at most {MOST_BITS}")
    return count


def present(layout: TokenLayout, contents: Contents) -> TokenMask:
    """Tokens that are present see those of their own sample: padding and packing."""
    ids = layout.segment_ids()
    start = np.array([piece.start for piece in layout.slices()], np.int32)[ids]
    place = np.arange(layout.tokens(), dtype=np.int32) - start
    xp = np if all(isinstance(x, np.ndarray) for x in (contents.lengths, contents.samples)) else jnp
    sample = xp.where(place[None] < contents.lengths[:, ids], contents.samples[:, ids], np.int32(-1))
    ones = np.ones(layout.tokens(), np.uint32)
    return TokenMask(ones, ones, q_sample=sample, k_sample=sample, width=1)


def visibility(
    layout: TokenLayout,
    *rules: Rule | TokenMask,
    contents: Contents | None = None,
    queries: Stream | None = "visual",
    keys: Stream | None = "visual",
) -> TokenMask | None:
    """The mask between the tokens of two streams (None: all tokens) under all of the rules, padding and packing.

    Without rules and contents everything is visible and the mask is None. Whether it is None never depends on the
    data, so that batches of other contents need no new program. A rule may be a ready mask over all tokens of the
    layout.
    """
    masks = [rule if isinstance(rule, TokenMask) else rule(layout, contents) for rule in rules]
    if contents is not None:
        masks.append(present(layout, contents))
    if not masks:
        return None
    joint = masks[0]
    for mask in masks[1:]:
        joint = joint & mask
    return joint.take(queries=layout.token_indices(queries), keys=layout.token_indices(keys))


RULES: Mapping[str, Rule] = {
    "bidirectional": bidirectional,
    "unidirectional": unidirectional,
    "separate-references": separate_references,
    "separate-subjects": separate_subjects,
    "shot-causal": shot_causal,
    "own-shot": own_shot,
    "emphasis": emphasis,
}
