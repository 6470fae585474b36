"""FLUX.1's transformer: text and picture in one sequence, first with weights of their own, then with shared ones.

The double blocks are those of the MMDiT (`models.mmdit.blocks`) with rotary positions; the single blocks run attention
and feed-forward layer side by side (Dehghani et al. 2023, arXiv:2302.05442).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax.layout import TokenLayout
from kaleido_jax.models.flux.config import FluxConfig
from kaleido_jax.models.hook import Attend, default_attend
from kaleido_jax.models.layers import (
    KEEP_PRODUCTS,
    MLP,
    Linear,
    Remat,
    gated,
    modulate,
    scan,
    stack,
    time_frequencies,
)
from kaleido_jax.models.mmdit.blocks import (
    TIME_SCALE,
    DoubleBlock,
    Projections,
    check_table,
    join,
    segment_sizes,
    text_partners,
)
from kaleido_jax.rope import rotary_angles
from kaleido_jax.table import TokenTable

_gelu = functools.partial(jax.nn.gelu, approximate=True)


class SingleBlock(nnx.Module):
    """One stream of all tokens; attention and feed-forward layer read the same input and share their last map."""

    def __init__(self, config: FluxConfig, rngs: nnx.Rngs):
        self.modulation = Linear(config.dim, 3 * config.dim, rngs, init=nnx.initializers.zeros)
        self.qkv = Projections(config, rngs)
        self.mlp = Linear(config.dim, config.ffn_dim, rngs)
        self.out = Linear(config.dim + config.ffn_dim, config.dim, rngs)
        self.eps = config.eps

    def __call__(
        self,
        x: Float[Array, "b n c"],
        condition: Float[Array, "b s c"],
        table: TokenTable,
        rope: Float[Array, "_ n half"],
        *,
        sizes: tuple[int, ...],
        attend: Attend,
        state: Any,
    ) -> tuple[Float[Array, "b n c"], Any]:
        # Rows: shift, scale and gate.
        rows = self.modulation(jax.nn.silu(condition)).reshape(*condition.shape[:2], 3, -1)
        y = modulate(x, rows[:, :, 0:2], sizes, self.eps)
        out, state = attend(*self.qkv(y), table, rope, state)
        y = jnp.concatenate([out.reshape(x.shape), _gelu(self.mlp(y))], axis=-1)
        return gated(x, self.out(y), rows[:, :, 2], sizes), state


class Head(nnx.Module):
    """From tokens to patches of velocity."""

    def __init__(self, config: FluxConfig, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros
        self.shift = Linear(config.dim, config.dim, rngs, init=zeros)
        self.scale = Linear(config.dim, config.dim, rngs, init=zeros)
        self.projection = Linear(config.dim, math.prod(config.patch) * config.channels, rngs, init=zeros)
        self.eps = config.eps

    def __call__(
        self, x: Float[Array, "b n c"], condition: Float[Array, "b s c"], sizes: tuple[int, ...]
    ) -> Float[Array, "b n o"]:
        condition = jax.nn.silu(condition)
        rows = jnp.stack([self.shift(condition), self.scale(condition)], axis=2)
        return self.projection(modulate(x, rows, sizes, self.eps))


class FluxTransformer(nnx.Module):
    """Velocity of a picture's tokens, given text; any other visual segments of the layout are read beside them."""

    def __init__(self, config: FluxConfig, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        embedding = lambda inputs: MLP(inputs, config.dim, config.dim, rngs, activation=jax.nn.silu, init=small)
        self.patch_embedding = Linear(math.prod(config.patch) * config.channels, config.dim, rngs)
        self.text_embedding = Linear(config.text_dim, config.dim, rngs)
        self.time_embedding = embedding(config.freq_dim)
        self.pooled_embedding = embedding(config.pooled_dim)
        self.guidance_embedding = embedding(config.freq_dim) if config.guidance else None
        self.double_blocks = stack(lambda rngs: DoubleBlock(config, rngs), config.double_layers, rngs)
        self.single_blocks = stack(lambda rngs: SingleBlock(config, rngs), config.single_layers, rngs)
        self.head = Head(config, rngs)
        self.config = config

    def __call__(
        self,
        tokens: Float[Array, "b n i"],
        table: TokenTable,
        text: Float[Array, "b m d"],
        pooled: Float[Array, "b e"],
        *,
        layout: TokenLayout,
        guidance: Float[Array, "b"] | None = None,
        attend: Attend = default_attend,
        state: tuple[Any, Any] | None = None,
        remat: Remat = KEEP_PRODUCTS,
    ) -> Any:
        """The velocity of the target segments' tokens.

        Args:
          tokens: patches of all visual segments in the layout's order, channels inside a patch as patchify makes them.
          table: positions and self_mask of *all* tokens, text and visual, in the layout's order
            (`rope.positions(layout, rope.Flat(), stream=None)`), and times in [0, 1] of the visual segments. A text is
            modulated with the time of the picture of its shot (`text_partners`).
          text: T5's output for all text segments; the released models read padding too.
          pooled: CLIP's pooled output.
          layout: the segments; their boundaries are static. The released models have the text first.
          guidance: the guidance scale, for a config with guidance.
          attend: the attention of every block, attend(q, k, v, table, rope, state) -> (out, state) with q and k before
            rotation, over all tokens in the layout's order; out is what the block's output map reads.
          state: what `attend` keeps: one pytree with a leading layer axis for the double blocks and one for the single
            blocks. Where one of the two is None, `attend` is given None in those blocks, and can tell them so.
          remat: what the backward pass makes again rather than keeps, as in `layers.scan`.

        Returns:
          [b, tokens of the target segments, patch size * channels] in the dtype of `tokens`; where a state was given,
          that and the new state.

        Raises:
          ValueError: (while tracing) if tokens, text, positions, times or guidance do not fit the layout or the config.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self._check(tokens, table, text, guidance, layout)

        x = self.patch_embedding(tokens.astype(dtype))
        words = self.text_embedding(text.astype(dtype))
        condition = self._condition(table, pooled, guidance, layout)
        rope = rotary_angles(table.positions, config.head_dim, axes=config.axes)
        double_state, single_state = (None, None) if state is None else state

        def double(block: DoubleBlock, carry: tuple[Array, Array], state: Any) -> tuple[tuple[Array, Array], Any]:
            x, words, state = block(*carry, condition, table, rope, layout=layout, attend=attend, state=state)
            return (x, words), state

        def single(block: SingleBlock, x: Array, state: Any) -> tuple[Array, Any]:
            return block(x, condition, table, rope, sizes=segment_sizes(layout, None), attend=attend, state=state)

        (x, words), double_state = scan(self.double_blocks, double, (x, words), double_state, remat=remat)
        x, single_state = scan(self.single_blocks, single, join(x, words, layout), single_state, remat=remat)

        # Only what is predicted goes through the head: text and references end here.
        targets = [index for index, segment in enumerate(layout.segments) if segment.target]
        slices = layout.slices()
        x = jnp.concatenate([x[:, slices[index]] for index in targets], axis=1)
        condition = jnp.stack([condition[:, index] for index in targets], axis=1)
        velocity = self.head(x, condition, tuple(layout.segments[index].tokens for index in targets))
        velocity = velocity.astype(tokens.dtype)
        return velocity if state is None else (velocity, (double_state, single_state))

    def _condition(
        self, table: TokenTable, pooled: Array, guidance: Array | None, layout: TokenLayout
    ) -> Float[Array, "b s c"]:
        """The sum of the embeddings of time, guidance and pooled text for each segment of the layout, in float32."""
        embed = lambda x: time_frequencies(x.astype(jnp.float32) * TIME_SCALE, self.config.freq_dim)
        shared = self.pooled_embedding(pooled.astype(jnp.float32))
        if self.guidance_embedding is not None and guidance is not None:
            shared = shared + self.guidance_embedding(embed(guidance))
        visual = self.time_embedding(embed(table.timesteps)) + shared[:, None]
        return jnp.stack([visual[:, index] for index in text_partners(layout)], axis=1)

    def _check(
        self, tokens: Array, table: TokenTable, text: Array, guidance: Array | None, layout: TokenLayout
    ) -> None:
        expected = (layout.tokens("visual"), math.prod(self.config.patch) * self.config.channels)
        if tokens.shape[1:] != expected:
            raise ValueError(f"tokens have shape {tokens.shape}; expected [batch, {expected[0]}, {expected[1]}].")
        if text.shape[1:] != (layout.tokens("text"), self.config.text_dim):
            raise ValueError(
                f"text has shape {text.shape}; expected [batch, {layout.tokens('text')}, {self.config.text_dim}], "
                "a row for each text token of the layout."
            )
        check_table(table, layout, tokens.shape[0])
        if (guidance is None) == self.config.guidance:
            raise ValueError(
                "guidance is missing; this config reads a guidance scale."
                if self.config.guidance
                else "guidance was given, but this config reads no guidance scale (guidance=False)."
            )
