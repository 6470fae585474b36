"""Keys and values that are computed once: of references that nothing changes, or of shots that are finished.

What a token is depends on its own time, on the text that it reads, and on the tokens that it reads. A reference that is
pinned in time and does not read the video is therefore the same at every step of the sampler; so is a finished shot
under a causal mask. Their keys and values are kept, rotated, and only the other tokens run. The outcome is that of the
same mask without a cache, up to rounding. Branches of guidance, rows of the batch, share what is kept if all have the
same references and these read no text; else every branch keeps its own.

No published method has such a cache for references: they let references read the video. This is the unidirectional
variant of AnyID and Kaleido.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from kaleido_jax import attention
from kaleido_jax.diffusion import guidance
from kaleido_jax.layout import Grid, TokenLayout, unpatchify
from kaleido_jax.masks import TokenMask
from kaleido_jax.methods.method import Condition, Method, Network
from kaleido_jax.models.layers import rounded
from kaleido_jax.models.mmdit import MMDiTConfig
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.rope import apply_rotary
from kaleido_jax.table import TokenTable
from kaleido_jax.tree import pytree
from kaleido_jax.typing import Array, Float, Int8


@pytree
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Rotated keys, and values, of some tokens in every layer: [layers, b, tokens, heads, head_dim] each."""

    keys: Float[Array, "*layers b n h d"]
    values: Float[Array, "*layers b n h d"]

    @classmethod
    def none(cls, config: WanConfig | MMDiTConfig, batch: int) -> "KeyValues":
        """Those of no tokens, for a transformer of these sizes."""
        empty = jnp.zeros((config.layers, batch, 0, config.heads, config.head_dim), config.dtype)
        return cls(empty, empty)

    def __add__(self, other: "KeyValues") -> "KeyValues":
        """Those of these tokens, then of the other ones."""
        join = lambda a, b: jnp.concatenate([a, b], axis=-3)
        return KeyValues(join(self.keys, other.keys), join(self.values, other.values))

    def whole(self, dtype: Any) -> "KeyValues":
        """Themselves: what is kept as it was made needs no scale."""
        return self


@pytree
@dataclasses.dataclass(frozen=True)
class Int8KeyValues:
    """Keys and values in bytes: about half of what they take in bfloat16.

    Each head of each token has a scale of its own, its largest value over 127, so that a value is wrong by at most half
    of that. keys, values: [layers, b, tokens, heads, head_dim]; the scales have one value in place of the last axis.
    """

    keys: Int8[Array, "*layers b n h d"]
    values: Int8[Array, "*layers b n h d"]
    key_scales: Float[Array, "*layers b n h 1"]
    value_scales: Float[Array, "*layers b n h 1"]

    @classmethod
    def of(cls, kept: KeyValues) -> "Int8KeyValues":
        """`kept`, rounded."""
        (keys, key_scales), (values, value_scales) = (
            rounded(x.astype(jnp.float32), axis=-1) for x in (kept.keys, kept.values)
        )
        return cls(keys, values, key_scales, value_scales)

    def whole(self, dtype: Any) -> KeyValues:
        """As numbers of this dtype; one layer at a time, so that all of them never exist at once."""
        number = lambda x, scale: (x.astype(jnp.float32) * scale).astype(dtype)
        return KeyValues(number(self.keys, self.key_scales), number(self.values, self.value_scales))


Kept = KeyValues | Int8KeyValues


def size_of(kept: Kept) -> int:
    """Bytes of what is kept, on all devices together."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def places(mesh: Mesh, heads: int) -> PartitionSpec:
    """Where what is kept lies on a mesh: heads over as many of the axes "sequence" and "tensor" as divide them.

    Attention is computed where the keys are, so that no device ever has those of all heads.
    """
    axes, left = [], heads
    for axis in ("tensor", "sequence"):
        if mesh.shape[axis] > 1 and left % mesh.shape[axis] == 0:
            axes.append(axis)
            left //= mesh.shape[axis]
    return PartitionSpec(None, None, None, tuple(axes) or None, None)


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    table: TokenTable,
    rope: Float[Array, "_ n half"],
    state: Kept,
) -> tuple[Float[Array, "b n h d"], KeyValues]:
    """The hook: reads what is kept, then the tokens' own; gives back the tokens' own keys and values.

    What is kept has a row for each of q, or one that all share.
    """
    own, kept = KeyValues(apply_rotary(k, rope), v), state.whole(k.dtype)
    rows = lambda x: jnp.broadcast_to(x, (k.shape[0], *x.shape[1:]))
    seen = KeyValues(rows(kept.keys), rows(kept.values)) + own
    return attention.attention(apply_rotary(q, rope), seen.keys, seen.values, table.self_mask), own


def part(
    layout: TokenLayout, table: TokenTable, own: Sequence[int], seen: Sequence[int]
) -> tuple[TokenLayout, TokenTable]:
    """Layout and table of some visual segments, which read others' kept keys.

    own, seen: numbers of visual segments, counted among those; no token of `own` may read a segment that is in neither.
    Beside the sequence, the text stays whole; where texts stand in it, those of a shot go along with what it shows.
    If no segment of `own` is a target, all are made so, since a network must answer something.
    """
    visual, texts = layout.indices("visual"), layout.indices("text")
    if in_sequence(layout, table):
        segments = lambda numbers: [i for n in numbers for i in _shot(layout, visual[n])]
        kept, slices = segments(own), layout.slices()
        queries, keys = _tokens(slices, kept), _tokens(slices, segments([*seen, *own]))
    else:
        kept, slices = [*(visual[n] for n in own), *texts], layout.slices("visual")
        queries, keys = _tokens(slices, own), _tokens(slices, [*seen, *own])
    chosen = [layout.segments[i] for i in kept]
    if not any(segment.target for segment in chosen):
        chosen = [dataclasses.replace(s, target=True) if s.stream == "visual" else s for s in chosen]
    places = np.array(kept)
    cut = lambda mask, **axes: mask.take(**axes) if isinstance(mask, TokenMask) else None
    return TokenLayout(tuple(chosen)), TokenTable(
        positions=table.positions[:, queries],
        lengths=table.lengths[:, places],
        subjects=table.subjects[:, places],
        timesteps=table.timesteps[:, np.array(own)],
        loss_weights=table.loss_weights[:, np.array(own)],
        self_mask=cut(table.self_mask, queries=queries, keys=keys),
        text_mask=cut(table.text_mask, queries=queries),
    )


def in_sequence(layout: TokenLayout, table: TokenTable) -> bool:
    """Whether a table is for a network that reads texts in its sequence (MMDiT) instead of by cross-attention."""
    return bool(layout.indices("text")) and table.positions.shape[1] == layout.tokens()


def _shot(layout: TokenLayout, index: int) -> list[int]:
    """A visual segment and the texts of its shot, in the layout's order."""
    shot, texts = layout.segments[index].shot, layout.indices("text")
    return sorted([index, *(i for i in texts if layout.segments[i].shot == shot)])


def _tokens(slices: Sequence[slice], numbers: Sequence[int]) -> np.ndarray:
    return np.concatenate([np.arange(slices[i].start, slices[i].stop) for i in numbers])


def run_part(
    network: Network,
    tokens: Float[Array, "b n p"],
    table: TokenTable,
    text: Float[Array, "b m d"],
    *,
    layout: TokenLayout,
    own: Sequence[int],
    seen: Sequence[int],
    state: Kept,
    image: Float[Array, "b p e"] | None = None,
) -> tuple[Float[Array, "b k o"], KeyValues]:
    """The network's answer for the segments `own`, and their keys and values, given those of the segments `seen`.

    tokens, table, layout: of all segments together.
    """
    slices = layout.slices("visual")
    some, its_table = part(layout, table, own, seen)
    mine = jnp.concatenate([tokens[:, slices[i]] for i in own], axis=1)
    if in_sequence(layout, table):
        order = {index: n for n, index in enumerate(layout.indices("text"))}
        its = [order[i] for n in own for i in _shot(layout, layout.indices("visual")[n]) if i in order]
        text = jnp.concatenate([text[:, layout.slices("text")[n]] for n in its], axis=1)
    given = {} if image is None else {"image": image}
    return network(mine, its_table, text, layout=some, attend=attend, state=state, **given)


def shared(method: Method, branches: Sequence[guidance.Branch]) -> bool:
    """Whether the branches of guidance can do with one row of kept references, see above."""
    return method.blind_to_text and all(branch.references == "kept" for branch in branches)


def keep_references(
    method: Method, network: Any, condition: Condition, *, layout: TokenLayout, patch: Grid
) -> KeyValues:
    """The references' keys and values in every layer, for a method whose references are pinned.

    network: a WanTransformer. Raises ValueError for a method whose references change from step to step.
    """
    if not method.pinned:
        raise ValueError(f"{method.name}'s references change from step to step with these options; nothing can be kept")
    references, _ = _sides(layout)
    batch = condition.text_lengths.shape[0]
    grid = next(segment.grid for segment in layout.segments if segment.target)
    frames, height, width = (count * size for count, size in zip(grid, patch))
    nothing = jnp.zeros((batch, frames, height, width, network.config.in_channels), jnp.float32)  # is not read
    table = method.table(layout, jnp.zeros((batch, method.draws(layout)), jnp.float32), condition)
    _, kept = run_part(
        network,
        method.tokens(nothing, condition, patch),
        table,
        condition.text,
        layout=layout,
        own=references,
        seen=(),
        state=KeyValues.none(network.config, batch),
        image=method.image(condition, patch),
    )
    return kept


def velocity(
    method: Method,
    network: Network,
    x: Float[Array, "b f h w z"],
    times: Float[Array, "b draws"],
    condition: Condition,
    kept: Kept,
    *,
    layout: TokenLayout,
    patch: Grid,
) -> Float[Array, "b f h w z"]:
    """As `method.velocity`, from references that were kept."""
    references, video = _sides(layout)
    out, _ = run_part(
        network,
        method.tokens(x, condition, patch),
        method.table(layout, times, condition),
        condition.text,
        layout=layout,
        own=video,
        seen=references,
        state=kept,
        image=method.image(condition, patch),
    )
    grid = tuple(int(size) // step for size, step in zip(x.shape[1:4], patch))
    return unpatchify(out, grid, patch)


def _sides(layout: TokenLayout) -> tuple[list[int], list[int]]:
    """The numbers of the references and of the other visual segments."""
    kinds = [segment.kind for segment in layout.select("visual")]
    return (
        [i for i, kind in enumerate(kinds) if kind == "reference"],
        [i for i, kind in enumerate(kinds) if kind != "reference"],
    )
