"""An MMDiT of videos in shots, each with its own text and its own time (LCT, arXiv:2503.10589, section 3).

LCT adds no weights to a video MMDiT: scenes are token layouts. Its sequence is [global text][dummy] [text][video]
[text][video] ..., placed by `rope.Interleaved`; each shot has its own time, which modulates its text too; who reads
whom is the table's mask.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax.layout import TokenLayout
from kaleido_jax.models.hook import Attend, default_attend
from kaleido_jax.models.layers import (
    KEEP_PRODUCTS,
    MLP,
    Linear,
    Remat,
    modulate,
    scan,
    stack,
    time_frequencies,
)
from kaleido_jax.models.mmdit.blocks import (
    TIME_SCALE,
    DoubleBlock,
    LastBlock,
    check_table,
    segment_sizes,
    text_partners,
)
from kaleido_jax.models.mmdit.config import MMDiTConfig
from kaleido_jax.rope import rotary_angles
from kaleido_jax.table import TokenTable


class VideoMMDiT(nnx.Module):
    """Velocity of the target segments' tokens, given texts; other visual segments (a dummy, references) are read."""

    def __init__(self, config: MMDiTConfig, rngs: nnx.Rngs):
        # By the width that is read: at a fixed deviation of 0.02, as MMDiTs of thousands of channels have it, what a
        # small network knows of time would be many times too small, and it would learn to do without.
        fan_in, zeros = nnx.initializers.lecun_normal(), nnx.initializers.zeros
        values = math.prod(config.patch) * config.channels
        self.patch_embedding = Linear(values, config.dim, rngs)
        self.text_embedding = Linear(config.text_dim, config.dim, rngs)
        self.time_embedding = MLP(config.freq_dim, config.dim, config.dim, rngs, activation=jax.nn.silu, init=fan_in)
        self.blocks = stack(lambda rngs: DoubleBlock(config, rngs), config.layers - 1, rngs)
        self.last_block = LastBlock(config, rngs)
        self.shift = Linear(config.dim, config.dim, rngs, init=zeros)
        self.scale = Linear(config.dim, config.dim, rngs, init=zeros)
        self.projection = Linear(config.dim, values, rngs, init=zeros)
        self.config = config

    def __call__(
        self,
        tokens: Float[Array, "b n i"],
        table: TokenTable,
        text: Float[Array, "b m d"],
        *,
        layout: TokenLayout,
        attend: Attend = default_attend,
        state: Any = None,
        remat: Remat = KEEP_PRODUCTS,
    ) -> Any:
        """The velocity of the target segments' tokens.

        Args:
          tokens: patches of all visual segments in the layout's order, channels inside a patch as patchify makes them.
          table: positions and self_mask of *all* tokens, text and visual, in the layout's order
            (`rope.positions(..., stream=None)`, `masks.visibility(..., queries=None, keys=None)`), and times in [0, 1]
            of the visual segments; a text is modulated with the time of its shot (`text_partners`).
          text: the text encoder's output for all text segments, one after another in the layout's order.
          layout: the segments; their boundaries are static.
          attend: the attention of every block, attend(q, k, v, table, rope, state) -> (out, state) with q and k before
            rotation, over all tokens in the layout's order.
          state: what `attend` keeps, a pytree with a leading layer axis, or None.
          remat: what the backward pass makes again rather than keeps, as in `layers.scan`.

        Returns:
          [b, tokens of the target segments, patch size * channels] in the dtype of `tokens`; where a state was given,
          that and the new state.

        Raises:
          ValueError: (while tracing) if tokens, text, positions or times do not fit the layout or the config.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        for name, array, expected in (
            ("tokens", tokens, (layout.tokens("visual"), math.prod(config.patch) * config.channels)),
            ("text", text, (layout.tokens("text"), config.text_dim)),
        ):
            if array.shape[1:] != expected:
                raise ValueError(f"{name} has shape {array.shape}; expected [batch, {expected[0]}, {expected[1]}].")
        check_table(table, layout, tokens.shape[0])

        x = self.patch_embedding(tokens.astype(dtype))
        words = self.text_embedding(text.astype(dtype))
        time = self.time_embedding(time_frequencies(table.timesteps.astype(jnp.float32) * TIME_SCALE, config.freq_dim))
        condition = jnp.stack([time[:, index] for index in text_partners(layout)], axis=1)
        rope = rotary_angles(table.positions, config.head_dim, axes=config.axes)

        def double(block: DoubleBlock, carry: tuple[Array, Array], state: Any) -> tuple[tuple[Array, Array], Any]:
            x, words, state = block(*carry, condition, table, rope, layout=layout, attend=attend, state=state)
            return (x, words), state

        first, last = jax.tree.map(lambda leaf: leaf[:-1], state), jax.tree.map(lambda leaf: leaf[-1], state)
        (x, words), first = scan(self.blocks, double, (x, words), first, remat=remat)
        x, last = self.last_block(x, words, condition, table, rope, layout=layout, attend=attend, state=last)

        # Only what is predicted goes through the head.
        segments, sizes = layout.select("visual"), segment_sizes(layout, "visual")
        targets = [(index, piece) for index, piece in enumerate(layout.slices("visual")) if segments[index].target]
        x = jnp.concatenate([x[:, piece] for _, piece in targets], axis=1)
        time = jax.nn.silu(jnp.stack([time[:, index] for index, _ in targets], axis=1))
        rows = jnp.stack([self.shift(time), self.scale(time)], axis=2)
        x = modulate(x, rows, tuple(sizes[index] for index, _ in targets), config.eps)
        velocity = self.projection(x).astype(tokens.dtype)
        if state is None:
            return velocity
        return velocity, jax.tree.map(lambda some, one: jnp.concatenate([some, one[None]]), first, last)
