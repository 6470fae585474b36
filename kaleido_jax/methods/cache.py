"""Keys and values that are computed once: of references that nothing changes, or of shots that are finished.

What a token is depends on its own time, on the text that it reads, and on the tokens that it reads. A reference that is
pinned in time and does not read the video is therefore the same at every step of the sampler; so is a finished shot
under a causal mask. Their keys and values are kept, rotated, and only the other tokens run. The outcome is that of the
same mask without a cache, up to rounding. Two branches of guidance may share what is kept only if both have the same
references and these read no text; here every branch, a row of the batch, keeps its own.

No published method has such a cache for references: they let references read the video. This is the unidirectional
variant of AnyID and Kaleido.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from kaleido_jax import attention
from kaleido_jax.layout import Grid, TokenLayout, unpatchify
from kaleido_jax.masks import TokenMask
from kaleido_jax.methods.method import Condition, Method, Network
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.rope import apply_rotary
from kaleido_jax.table import TokenTable
from kaleido_jax.tree import pytree
from kaleido_jax.typing import Array, Float


@pytree
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Rotated keys, and values, of some tokens in every layer: [layers, b, tokens, heads, head_dim] each."""

    keys: Float[Array, "*layers b n h d"]
    values: Float[Array, "*layers b n h d"]

    @classmethod
    def none(cls, config: WanConfig, batch: int) -> "KeyValues":
        """Those of no tokens, for a transformer of these sizes."""
        empty = jnp.zeros((config.layers, batch, 0, config.heads, config.head_dim), config.dtype)
        return cls(empty, empty)

    def __add__(self, other: "KeyValues") -> "KeyValues":
        """Those of these tokens, then of the other ones."""
        join = lambda a, b: jnp.concatenate([a, b], axis=-3)
        return KeyValues(join(self.keys, other.keys), join(self.values, other.values))


def attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    table: TokenTable,
    rope: Float[Array, "_ n half"],
    state: KeyValues,
) -> tuple[Float[Array, "b n h d"], KeyValues]:
    """The hook: reads what is kept, then the tokens' own; gives back the tokens' own keys and values."""
    own = KeyValues(apply_rotary(k, rope), v)
    seen = state + own
    return attention.attention(apply_rotary(q, rope), seen.keys, seen.values, table.self_mask), own


def part(
    layout: TokenLayout, table: TokenTable, own: Sequence[int], seen: Sequence[int]
) -> tuple[TokenLayout, TokenTable]:
    """Layout and table of some visual segments, which read others' kept keys.

    own, seen: numbers of visual segments, counted among those; no token of `own` may read a segment that is in neither.
    The text stays whole. If no segment of `own` is a target, all are made so, since a network must answer something.
    """
    segments, slices = layout.select("visual"), layout.slices("visual")
    chosen = [segments[i] for i in own]
    if not any(segment.target for segment in chosen):
        chosen = [dataclasses.replace(segment, target=True) for segment in chosen]
    texts = layout.select("text")
    places = np.array([*(layout.indices("visual")[i] for i in own), *layout.indices("text")])
    tokens = lambda numbers: np.concatenate([np.arange(slices[i].start, slices[i].stop) for i in numbers])
    queries, keys = tokens(own), tokens([*seen, *own])
    cut = lambda mask, **axes: mask.take(**axes) if isinstance(mask, TokenMask) else None
    return TokenLayout((*chosen, *texts)), TokenTable(
        positions=table.positions[:, queries],
        lengths=table.lengths[:, places],
        subjects=table.subjects[:, places],
        timesteps=table.timesteps[:, np.array(own)],
        loss_weights=table.loss_weights[:, np.array(own)],
        self_mask=cut(table.self_mask, queries=queries, keys=keys),
        text_mask=cut(table.text_mask, queries=queries),
    )


def run_part(
    network: Network,
    tokens: Float[Array, "b n p"],
    table: TokenTable,
    text: Float[Array, "b m d"],
    *,
    layout: TokenLayout,
    own: Sequence[int],
    seen: Sequence[int],
    state: KeyValues,
    image: Float[Array, "b p e"] | None = None,
) -> tuple[Float[Array, "b k o"], KeyValues]:
    """The network's answer for the segments `own`, and their keys and values, given those of the segments `seen`.

    tokens, table, layout: of all segments together.
    """
    slices = layout.slices("visual")
    some, its_table = part(layout, table, own, seen)
    mine = jnp.concatenate([tokens[:, slices[i]] for i in own], axis=1)
    return network(mine, its_table, text, layout=some, attend=attend, state=state, image=image)


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
    kept: KeyValues,
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
