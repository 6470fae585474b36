"""Blocks of the MMDiT (Stable Diffusion 3, arXiv:2403.03206, section 4): text and pictures are two streams of tokens.

Each stream has weights of its own; attention joins them, in the layout's order. Queries and keys are normalised head by
head, and where tokens stand is the business of the attention's rotation. Every segment has its own row of modulation.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax.layout import Stream as StreamName
from kaleido_jax.layout import TokenLayout
from kaleido_jax.models.hook import Attend
from kaleido_jax.models.layers import MLP, Linear, RMSNorm, gated, modulate
from kaleido_jax.table import TokenTable

TIME_SCALE = 1000.0  # of times in [0, 1], and of FLUX's guidance scale, before their embedding

_gelu = functools.partial(jax.nn.gelu, approximate=True)


@runtime_checkable
class BlockConfig(Protocol):
    """What the blocks read of a model's config."""

    @property
    def dim(self) -> int: ...

    @property
    def ffn_dim(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def eps(self) -> float: ...


class Projections(nnx.Module):
    """Queries, keys and values; queries and keys are normalised head by head."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.query = Linear(config.dim, config.dim, rngs)
        self.key = Linear(config.dim, config.dim, rngs)
        self.value = Linear(config.dim, config.dim, rngs)
        self.query_norm = RMSNorm(config.head_dim, eps=config.eps)
        self.key_norm = RMSNorm(config.head_dim, eps=config.eps)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "b n c"]) -> tuple[Float[Array, "b n h d"], ...]:
        q, k, v = (project(x).reshape(*x.shape[:2], self.heads, -1) for project in (self.query, self.key, self.value))
        return self.query_norm(q), self.key_norm(k), v


class Stream(nnx.Module):
    """What a double block does to the tokens of one stream, before and after the attention that joins them."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.modulation = Linear(config.dim, 6 * config.dim, rngs, init=nnx.initializers.zeros)
        self.qkv = Projections(config, rngs)
        self.out = Linear(config.dim, config.dim, rngs)
        self.mlp = MLP(config.dim, config.ffn_dim, config.dim, rngs, activation=_gelu)
        self.eps = config.eps

    def rows(self, condition: Float[Array, "b s c"]) -> Float[Array, "b s 6 c"]:
        """Shift, scale and gate of attention, then those of the feed-forward layer, for each segment."""
        return self.modulation(jax.nn.silu(condition)).reshape(*condition.shape[:2], 6, -1)

    def before(
        self, x: Float[Array, "b n c"], rows: Float[Array, "b s 6 c"], sizes: tuple[int, ...]
    ) -> tuple[Float[Array, "b n h d"], ...]:
        return self.qkv(modulate(x, rows[:, :, 0:2], sizes, self.eps))

    def after(
        self,
        x: Float[Array, "b n c"],
        attended: Float[Array, "b n h d"],
        rows: Float[Array, "b s 6 c"],
        sizes: tuple[int, ...],
    ) -> Float[Array, "b n c"]:
        x = gated(x, self.out(attended.reshape(x.shape)), rows[:, :, 2], sizes)
        return gated(x, self.mlp(modulate(x, rows[:, :, 3:5], sizes, self.eps)), rows[:, :, 5], sizes)


class DoubleBlock(nnx.Module):
    """Two streams with weights of their own, joined by attention over the tokens of both, in the layout's order."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.visual = Stream(config, rngs)
        self.text = Stream(config, rngs)

    def __call__(
        self,
        x: Float[Array, "b n c"],
        text: Float[Array, "b m c"],
        condition: Float[Array, "b s c"],
        table: TokenTable,
        rope: Float[Array, "_ q half"],
        *,
        layout: TokenLayout,
        attend: Attend,
        state: Any,
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b m c"], Any]:
        rows = {name: getattr(self, name).rows(pick(condition, layout, name)) for name in ("visual", "text")}
        sizes = {name: segment_sizes(layout, name) for name in ("visual", "text")}
        visual = self.visual.before(x, rows["visual"], sizes["visual"])
        words = self.text.before(text, rows["text"], sizes["text"])
        q, k, v = (join(a, b, layout) for a, b in zip(visual, words))
        out, state = attend(q, k, v, table, rope, state)
        x = self.visual.after(x, part(out, layout, "visual"), rows["visual"], sizes["visual"])
        text = self.text.after(text, part(out, layout, "text"), rows["text"], sizes["text"])
        return x, text, state


class LastBlock(nnx.Module):
    """The last block of an MMDiT that predicts nothing of the text: there the text is read, and changed no more."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.visual = Stream(config, rngs)
        self.text_shift = Linear(config.dim, config.dim, rngs, init=zeros)
        self.text_scale = Linear(config.dim, config.dim, rngs, init=zeros)
        self.text_qkv = Projections(config, rngs)
        self.eps = config.eps

    def __call__(
        self,
        x: Float[Array, "b n c"],
        text: Float[Array, "b m c"],
        condition: Float[Array, "b s c"],
        table: TokenTable,
        rope: Float[Array, "_ q half"],
        *,
        layout: TokenLayout,
        attend: Attend,
        state: Any,
    ) -> tuple[Float[Array, "b n c"], Any]:
        rows, sizes = self.visual.rows(pick(condition, layout, "visual")), segment_sizes(layout, "visual")
        words = jax.nn.silu(pick(condition, layout, "text"))
        text_rows = jnp.stack([self.text_shift(words), self.text_scale(words)], axis=2)
        text = modulate(text, text_rows, segment_sizes(layout, "text"), self.eps)
        q, k, v = (join(a, b, layout) for a, b in zip(self.visual.before(x, rows, sizes), self.text_qkv(text)))
        out, state = attend(q, k, v, table, rope, state)
        return self.visual.after(x, part(out, layout, "visual"), rows, sizes), state


def check_table(table: TokenTable, layout: TokenLayout, batch: int) -> None:
    """Raises ValueError unless the table has a position for every token and a time for every visual segment."""
    if table.positions.shape[1] != layout.tokens():
        raise ValueError(
            f"table.positions has {table.positions.shape[1]} tokens; expected the {layout.tokens()} of text and "
            "picture together (rope.positions with stream=None)."
        )
    times = (batch, len(layout.select("visual")))
    if table.timesteps.shape != times:
        raise ValueError(
            f"table.timesteps has shape {table.timesteps.shape}; expected {times}, "
            "one time for each sample and visual segment."
        )


def text_partners(layout: TokenLayout) -> tuple[int, ...]:
    """For each segment of a layout, the visual segment (counted among those) whose time modulates it.

    That of a visual segment is its own. That of a text is the first one of its shot that is predicted, if there is
    none the first of its shot (LCT's dummy beside the global prompt), if there is none the first of all.
    """
    visual = layout.select("visual")
    own = iter(range(len(visual)))

    def partner(shot: int) -> int:
        same = [index for index, segment in enumerate(visual) if segment.shot == shot]
        return next((index for index in same if visual[index].target), same[0] if same else 0)

    return tuple(next(own) if segment.stream == "visual" else partner(segment.shot) for segment in layout.segments)


def segment_sizes(layout: TokenLayout, stream: StreamName | None) -> tuple[int, ...]:
    """Tokens of each segment of a stream (None: of all)."""
    return tuple(segment.tokens for segment in layout.select(stream))


def pick(rows: Float[Array, "b s ..."], layout: TokenLayout, stream: StreamName) -> Float[Array, "b t ..."]:
    """The rows of the segments of one stream."""
    return jnp.stack([rows[:, index] for index in layout.indices(stream)], axis=1)


def join(
    visual: Float[Array, "b n ..."], text: Float[Array, "b m ..."], layout: TokenLayout
) -> Float[Array, "b q ..."]:
    """The tokens of both streams in the layout's order."""
    pieces = {
        "visual": iter([visual[:, piece] for piece in layout.slices("visual")]),
        "text": iter([text[:, piece] for piece in layout.slices("text")]),
    }
    return jnp.concatenate([next(pieces[segment.stream]) for segment in layout.segments], axis=1)


def part(x: Float[Array, "b q ..."], layout: TokenLayout, stream: StreamName) -> Float[Array, "b n ..."]:
    """The tokens of one stream out of the whole sequence; with the other one's, the inverse of `join`."""
    slices = layout.slices()
    return jnp.concatenate([x[:, slices[index]] for index in layout.indices(stream)], axis=1)
