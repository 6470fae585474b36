"""Wan's video transformer (Wan 2.1, arXiv:2503.20314, section 4.2) with a time and a modulation for every segment."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax import masks
from kaleido_jax.attention import attention
from kaleido_jax.layout import TokenLayout
from kaleido_jax.masks import TokenMask
from kaleido_jax.models.hook import Attend, default_attend
from kaleido_jax.models.layers import (
    KEEP_PRODUCTS,
    MLP,
    LayerNorm,
    Linear,
    Remat,
    RMSNorm,
    gated,
    modulate,
    scan,
    stack,
    time_frequencies,
)
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.rope import rotary_angles
from kaleido_jax.table import TokenTable

TIME_SCALE = 1000.0  # the networks were trained on times in [0, 1000]
SMALLEST_TIME = 0.05  # by which what is wrong in a predicted clean latent is divided (arXiv:2511.13720)

_gelu = functools.partial(jax.nn.gelu, approximate=True)
_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)


def velocity_towards(
    clean: Float[Array, "b n p"], noisy: Float[Array, "b n p"], times: Float[Array, "b n"]
) -> Float[Array, "b n p"]:
    """The velocity e - x at the noisy (1 - t) x + t e, where x is `clean` (arXiv:2511.13720, section 4).

    Times below SMALLEST_TIME count as that, so that what is wrong in `clean` is not blown up. At time 0 there is no
    noise to tell, so e is taken for 0: there the velocity is -x, as ContextAnyone's painted references have it.
    """
    times = times[..., None].astype(noisy.dtype)
    return jnp.where(times == 0, -clean, (noisy - clean) / jnp.maximum(times, SMALLEST_TIME))


class SelfAttention(nnx.Module):
    """Queries and keys are normalised over the full width, before the split into heads."""

    def __init__(self, config: WanConfig, rngs: nnx.Rngs, *, out_init: Any = None):
        self.query = Linear(config.dim, config.dim, rngs)
        self.key = Linear(config.dim, config.dim, rngs)
        self.value = Linear(config.dim, config.dim, rngs)
        self.out = Linear(config.dim, config.dim, rngs, init=out_init)
        self.query_norm = RMSNorm(config.dim, eps=config.eps)
        self.key_norm = RMSNorm(config.dim, eps=config.eps)
        self.heads = config.heads

    def split(self, x: Float[Array, "b n c"]) -> Float[Array, "b n h d"]:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def __call__(
        self, x: Float[Array, "b n c"], table: TokenTable, rope: Float[Array, "_ n half"], attend: Attend, state: Any
    ) -> tuple[Float[Array, "b n c"], Any]:
        q, k = self.query_norm(self.query(x)), self.key_norm(self.key(x))
        out, state = attend(self.split(q), self.split(k), self.split(self.value(x)), table, rope, state)
        return self.out(out.reshape(x.shape)), state


class CrossAttention(SelfAttention):
    """Video tokens read text and, in image-to-video models, CLIP's image tokens by keys and values of their own."""

    def __init__(self, config: WanConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        image = config.image_dim is not None
        self.image_key = Linear(config.dim, config.dim, rngs) if image else None
        value_init = nnx.initializers.zeros if config.emphasis else None
        self.image_value = Linear(config.dim, config.dim, rngs, init=value_init) if image else None
        self.image_key_norm = RMSNorm(config.dim, eps=config.eps) if image else None

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Array, "b n c"],
        text: Float[Array, "b m c"],
        image: Float[Array, "b p c"] | None,
        table: TokenTable,
    ) -> Float[Array, "b n c"]:
        q = self.split(self.query_norm(self.query(x)))
        out = attention(q, self.split(self.key_norm(self.key(text))), self.split(self.value(text)), table.text_mask)
        if image is not None:
            assert self.image_key is not None and self.image_value is not None and self.image_key_norm is not None
            k = self.image_key_norm(self.image_key(image))
            out = out + attention(q, self.split(k), self.split(self.image_value(image)))
        return self.out(out.reshape(x.shape))


class Block(nnx.Module):
    """Self-attention and feed-forward layer, modulated by time, with unmodulated cross-attention between them."""

    def __init__(self, config: WanConfig, rngs: nnx.Rngs):
        modulation = nnx.initializers.normal(config.dim**-0.5)
        self.modulation = nnx.Param(modulation(rngs.params(), (6, config.dim), jnp.float32))
        self.self_attention = SelfAttention(config, rngs)
        zeros = nnx.initializers.zeros
        self.emphasis_norm = LayerNorm(config.dim, eps=config.eps) if config.emphasis else None
        self.emphasis_attention = SelfAttention(config, rngs, out_init=zeros) if config.emphasis else None
        self.cross_norm = LayerNorm(config.dim, eps=config.eps)
        self.cross_attention = CrossAttention(config, rngs)
        self.mlp = MLP(config.dim, config.ffn_dim, config.dim, rngs, activation=_gelu)
        self.eps = config.eps

    def __call__(
        self,
        x: Float[Array, "b n c"],
        time: Float[Array, "b s 6 c"],
        text: Float[Array, "b m c"],
        image: Float[Array, "b p c"] | None,
        table: TokenTable,
        rope: Float[Array, "_ n half"],
        *,
        emphasis: TokenMask | None,
        sizes: tuple[int, ...],
        attend: Attend,
        state: Any,
    ) -> tuple[Float[Array, "b n c"], Any]:
        # Rows: shift, scale and gate of self-attention, then those of the feed-forward layer, all in float32.
        rows = time + self.modulation[...].astype(jnp.float32)[None, None]
        y, state = self.self_attention(modulate(x, rows[:, :, 0:2], sizes, self.eps), table, rope, attend, state)
        x = gated(x, y, rows[:, :, 2], sizes)
        if self.emphasis_attention is not None and self.emphasis_norm is not None:
            # The paper does not say where it stands: here it reinforces what self-attention has just read.
            own = dataclasses.replace(table, self_mask=emphasis)
            x = x + self.emphasis_attention(self.emphasis_norm(x), own, rope, attend, None)[0]
        x = x + self.cross_attention(self.cross_norm(x), text, image, table)
        return gated(x, self.mlp(modulate(x, rows[:, :, 3:5], sizes, self.eps)), rows[:, :, 5], sizes), state


class ImageEmbedding(nnx.Module):
    """CLIP's image tokens, normalised and brought to the transformer's width."""

    def __init__(self, config: WanConfig, rngs: nnx.Rngs):
        assert config.image_dim is not None
        positions = config.image_positions
        self.positions = nnx.Param(jnp.zeros((positions, config.image_dim))) if positions else None
        # The released networks keep PyTorch's default eps here, whatever the blocks' is.
        self.norm_in = LayerNorm(config.image_dim, eps=1e-5)
        self.mlp = MLP(config.image_dim, config.image_dim, config.dim, rngs, activation=_exact_gelu)
        self.norm_out = LayerNorm(config.dim, eps=1e-5)

    def __call__(self, image: Float[Array, "b p i"]) -> Float[Array, "b p c"]:
        if self.positions is not None:
            image = image + self.positions[...].astype(image.dtype)[None]
        return self.norm_out(self.mlp(self.norm_in(image)))


class Head(nnx.Module):
    """From tokens to patches of velocity; modulated by the time embedding itself rather than by its projection."""

    def __init__(self, config: WanConfig, rngs: nnx.Rngs):
        modulation = nnx.initializers.normal(config.dim**-0.5)
        self.modulation = nnx.Param(modulation(rngs.params(), (2, config.dim), jnp.float32))
        outputs = math.prod(config.patch) * config.out_channels
        self.projection = Linear(config.dim, outputs, rngs, init=nnx.initializers.zeros)
        self.eps = config.eps

    def __call__(
        self, x: Float[Array, "b n c"], time: Float[Array, "b s c"], sizes: tuple[int, ...]
    ) -> Float[Array, "b n o"]:
        rows = time[:, :, None] + self.modulation[...].astype(jnp.float32)[None, None]
        return self.projection(modulate(x, rows, sizes, self.eps))


class WanTransformer(nnx.Module):
    """Velocity of video tokens, given text, and any other segments (references) that the layout holds beside them."""

    def __init__(self, config: WanConfig, rngs: nnx.Rngs):
        # Wan draws both embeddings with a deviation of 0.02, which its widths of thousands make right for text. At a
        # width of a hundred, text would come out a hundred times too small, and training would learn to do without it.
        # Time stays small: the blocks' gates then begin near those of `modulation`, whatever the time.
        fan_in, small = nnx.initializers.lecun_normal(), nnx.initializers.normal(0.02)
        self.patch_embedding = Linear(math.prod(config.patch) * config.in_channels, config.dim, rngs)
        self.text_embedding = MLP(config.text_dim, config.dim, config.dim, rngs, activation=_gelu, init=fan_in)
        self.time_embedding = MLP(config.freq_dim, config.dim, config.dim, rngs, activation=jax.nn.silu, init=small)
        self.time_projection = Linear(config.dim, 6 * config.dim, rngs)
        self.image_embedding = ImageEmbedding(config, rngs) if config.image_dim is not None else None
        self.blocks = stack(lambda rngs: Block(config, rngs), config.layers, rngs)
        self.head = Head(config, rngs)
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
        image: Float[Array, "b p e"] | None = None,
        remat: Remat = KEEP_PRODUCTS,
    ) -> Any:
        """The velocity of the target segments' tokens.

        Args:
          tokens: patches of all visual segments in the layout's order, channels inside a patch as patchify makes them.
          table: positions, times in [0, 1] of the visual segments, and the masks of self- and cross-attention.
          text: the text encoder's output, zero past the end of the text; the released models read all of it.
          layout: the segments; their boundaries are static.
          attend: the self-attention of every block, attend(q, k, v, table, rope, state) -> (out, state) with q and k
            before rotation and rope the angles of `rope.rotary_angles`.
          state: what `attend` keeps, a pytree with a leading layer axis, or None.
          image: CLIP's image tokens, for a config with image_dim.
          remat: what the backward pass makes again rather than keeps, as in `layers.scan`.

        Returns:
          [b, tokens of the target segments, patch size * out_channels] in the dtype of `tokens`, channels inside a
          patch as unpatchify reads them; where a state was given, that and the new state.

        Raises:
          ValueError: (while tracing) if tokens, times or image do not fit the layout or the config.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        segments = layout.select("visual")
        sizes = tuple(segment.tokens for segment in segments)
        self._check(tokens, table, image, sizes)

        x = self.patch_embedding(tokens.astype(dtype))
        text = self.text_embedding(text.astype(dtype))
        if self.image_embedding is not None and image is not None:
            image = self.image_embedding(image.astype(dtype))
        frequencies = time_frequencies(table.timesteps.astype(jnp.float32) * TIME_SCALE, config.freq_dim)
        time = self.time_embedding(frequencies)
        rows = self.time_projection(jax.nn.silu(time)).reshape(*time.shape[:2], 6, config.dim)
        rope = rotary_angles(table.positions, config.head_dim)
        emphasis = masks.visibility(layout, masks.emphasis) if config.emphasis else None
        if emphasis is not None and table.self_mask is not None:
            emphasis = emphasis & table.self_mask

        def block(block: Block, x: Array, state: Any) -> tuple[Array, Any]:
            return block(x, rows, text, image, table, rope, emphasis=emphasis, sizes=sizes, attend=attend, state=state)

        x, new_state = scan(self.blocks, block, x, state, remat=remat)

        # Only what is predicted goes through the head: references end here.
        targets = [(index, part) for index, part in enumerate(layout.slices("visual")) if segments[index].target]
        if len(targets) < len(segments):
            x = jnp.concatenate([x[:, part] for _, part in targets], axis=1)
            time = jnp.stack([time[:, index] for index, _ in targets], axis=1)
        velocity = self.head(x, time, tuple(sizes[index] for index, _ in targets)).astype(tokens.dtype)
        if config.data_std is not None:
            noisy = jnp.concatenate([tokens[:, part] for _, part in targets], axis=1)
            times = [jnp.broadcast_to(table.timesteps[:, i, None], (x.shape[0], sizes[i])) for i, _ in targets]
            std = jnp.tile(jnp.asarray(config.data_std, noisy.dtype), math.prod(config.patch))[None, None]
            velocity = velocity_towards(std * velocity, noisy, jnp.concatenate(times, axis=1).astype(jnp.float32))
        return velocity if state is None else (velocity, new_state)

    def _check(self, tokens: Array, table: TokenTable, image: Array | None, sizes: tuple[int, ...]) -> None:
        expected = (sum(sizes), math.prod(self.config.patch) * self.config.in_channels)
        if tokens.shape[1:] != expected:
            raise ValueError(f"tokens have shape {tokens.shape}; expected [batch, {expected[0]}, {expected[1]}].")
        if table.timesteps.shape != (tokens.shape[0], len(sizes)):
            raise ValueError(
                f"table.timesteps has shape {table.timesteps.shape}; expected {(tokens.shape[0], len(sizes))}, "
                "one time for each sample and visual segment."
            )
        if (image is None) != (self.image_embedding is None):
            raise ValueError(
                "image is missing; this config has an image branch (image_dim is set)."
                if image is None
                else "image was given, but this config has no image branch (image_dim is None)."
            )
        positions = self.config.image_positions
        if image is not None and positions not in (None, image.shape[1]):
            raise ValueError(f"image has {image.shape[1]} tokens; expected {positions}, as many as have positions.")
