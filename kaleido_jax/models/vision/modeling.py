"""The vision transformer (arXiv:2010.11929) in the forms of CLIP, DINO and DINOv2."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from kaleido_jax.attention import attention
from kaleido_jax.models.layers import MLP, LayerNorm, Linear, scan, stack
from kaleido_jax.models.vision import resampling
from kaleido_jax.models.vision.config import VisionConfig

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class SelfAttention(nnx.Module):
    """Attention among all tokens of a picture; `first`: what the first of them reads, alone."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.query = Linear(config.dim, config.dim, rngs)
        self.key = Linear(config.dim, config.dim, rngs)
        self.value = Linear(config.dim, config.dim, rngs)
        self.out = Linear(config.dim, config.dim, rngs)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "b n d"], *, first: bool = False) -> Float[Array, "b m d"]:
        reading = x[:, :1] if first else x
        q, k, v = self.query(reading), self.key(x), self.value(x)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))
        # A picture has a few hundred tokens: not worth a kernel, and heads of 80 are none of the kernels' widths.
        return self.out(attention(q, k, v, backend="reference").reshape(reading.shape))


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        self.gate = Linear(config.dim, config.ffn_dim, rngs)
        self.up = Linear(config.dim, config.ffn_dim, rngs)
        self.down = Linear(config.ffn_dim, config.dim, rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Scale(nnx.Module):
    """One factor for each channel (LayerScale, arXiv:2103.17239)."""

    def __init__(self, dim: int):
        self.factor = nnx.Param(jnp.ones((dim,), jnp.float32))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return x * self.factor[...].astype(x.dtype)[None, None]


class Block(nnx.Module):
    """Attention and feed-forward layer, each on the normalised stream and added to it; `first`: of the first token."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        scaled = config.family == "dinov2"
        self.norm1 = LayerNorm(config.dim, eps=config.eps)
        self.attention = SelfAttention(config, rngs)
        self.scale1 = Scale(config.dim) if scaled else None
        self.norm2 = LayerNorm(config.dim, eps=config.eps)
        if config.activation == "swiglu":
            self.mlp = GatedMLP(config, rngs)
        else:
            activation = _ACTIVATIONS[config.activation]
            self.mlp = MLP(config.dim, config.ffn_dim, config.dim, rngs, activation=activation)
        self.scale2 = Scale(config.dim) if scaled else None

    def __call__(self, x: Float[Array, "b n d"], *, first: bool = False) -> Float[Array, "b m d"]:
        y = self.attention(self.norm1(x), first=first)
        x = x[:, :1] if first else x
        x = x + (y if self.scale1 is None else self.scale1(y))
        y = self.mlp(self.norm2(x))
        return x + (y if self.scale2 is None else self.scale2(y))


class VisionEncoder(nnx.Module):
    """Pictures to tokens: a summary, the registers if there are any, then the patches row by row."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        clip = config.family == "clip"
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        self.patch_embedding = Linear(3 * config.patch**2, config.dim, rngs, bias=not clip)
        self.summary = normal(config.dim)
        self.registers = normal(config.registers, config.dim) if config.registers else None
        self.mask_token = normal(config.dim) if config.mask_token else None
        self.positions = normal(1 + config.grid**2, config.dim)
        self.norm_in = LayerNorm(config.dim, eps=config.eps) if clip else None
        self.blocks = stack(functools.partial(Block, config), config.layers, rngs)
        self.norm_out = LayerNorm(config.dim, eps=config.eps)
        self.projection = (
            Linear(config.dim, config.projection, rngs, bias=False) if config.projection is not None else None
        )
        self.config = config

    def __call__(
        self, pixels: Float[Array, "b h w 3"], hidden: Bool[Array, "b p"] | None = None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b e"]]:
        """(normalised tokens, the summary: the first of them, projected where the config has a projection).

        The arguments are those of `stream`. The summary is the picture's embedding: CLIP's image embedding, or DINO's
        class token.
        """
        tokens = self.norm_out(self.stream(pixels, hidden=hidden))
        return tokens, self._projected(tokens[:, 0])

    def summarise(self, pixels: Float[Array, "b h w 3"], layers: Sequence[Any]) -> Float[Array, "b e"]:
        """The summary that `__call__` gives, alone, on a CPU in an eighth less time.

        No layer's weights are copied out of the stack, and the last block is computed for the summary only.

        Args:
          layers: the state of each block (`unstacked`); that of `self.blocks` is not read.
        """
        x, graph = self._embedded(pixels), nnx.split(self.blocks)[0]
        for number, values in enumerate(layers, 1):
            x = nnx.merge(graph, values)(x, first=number == len(layers))
        return self._projected(self.norm_out(x)[:, 0])

    def unstacked(self) -> list[Any]:
        """The state of each block, as `summarise` takes them."""
        state = nnx.split(self.blocks)[1]
        return [jax.tree.map(lambda leaf: leaf[number], state) for number in range(self.config.layers)]

    def _projected(self, summary: Float[Array, "b d"]) -> Float[Array, "b e"]:
        return summary if self.projection is None else self.projection(summary)

    def stream(
        self, pixels: Float[Array, "b h w 3"], *, skip: int = 0, hidden: Bool[Array, "b p"] | None = None
    ) -> Float[Array, "b n d"]:
        """The tokens after all blocks but the last `skip`, not normalised.

        CLIP's `last_hidden_state` is that of skip=0; Wan's image-to-video models read that of skip=1.

        Args:
          pixels: normalised as the release has it (`Preprocessing`), at least one patch high and wide; what is left
            beyond whole patches on the right and below is not read.
          hidden: patches that are replaced by the mask token, for a config with mask_token.

        Returns:
          [b, 1 + registers + patches, dim] in the config's dtype.
        """
        config = self.config
        if not 0 <= skip < config.layers:
            raise ValueError(f"skip is {skip}; expected 0 to {config.layers - 1}, for {config.layers} blocks.")
        x = self._embedded(pixels, hidden)
        graphdef, blocks = nnx.split(self.blocks)
        blocks = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[: config.layers - skip], blocks))
        return scan(blocks, lambda block, x, state: (block(x), state), x)[0]

    def _embedded(
        self, pixels: Float[Array, "b h w 3"], hidden: Bool[Array, "b p"] | None = None
    ) -> Float[Array, "b n d"]:
        """The tokens that the first block reads."""
        config = self.config
        x = self.patch_embedding(self._patches(pixels.astype(config.dtype)))
        batch, dtype = x.shape[0], x.dtype
        if hidden is not None:
            if self.mask_token is None:
                raise ValueError("hidden was given, but this config has no mask token (mask_token is False).")
            x = jnp.where(hidden[..., None], self.mask_token[...].astype(dtype)[None, None], x)
        table = self._positions(*pixels.shape[1:3])
        first = jnp.broadcast_to((self.summary[...] + table[0]).astype(dtype)[None, None], (batch, 1, config.dim))
        parts = [first, x + table[1:].astype(dtype)[None]]
        if self.registers is not None:  # they have no position
            registers = self.registers[...].astype(dtype)[None]
            parts.insert(1, jnp.broadcast_to(registers, (batch, *registers.shape[1:])))
        x = jnp.concatenate(parts, axis=1)
        return x if self.norm_in is None else self.norm_in(x)

    def _patches(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b p i"]:
        size = self.config.patch
        rows, columns = (extent // size for extent in pixels.shape[1:3])
        if not rows or not columns:
            raise ValueError(f"pixels have shape {pixels.shape}; expected at least a patch of {size} x {size}.")
        whole = pixels[:, : rows * size, : columns * size]
        return rearrange(whole, "b (h p) (w q) c -> b (h w) (p q c)", p=size, q=size)

    def _positions(self, height: int, width: int) -> Float[Array, "n d"]:
        """The summary's position and those of the patches, interpolated for pictures of another size."""
        config, table = self.config, self.positions[...].astype(jnp.float32)
        rows, columns = height // config.patch, width // config.patch
        # As the official code of DINO and DINOv2 decides it: by pixels, so that 224 x 230 is interpolated.
        if rows * columns == config.grid**2 and height == width:
            return table

        def matrix(count: int):
            ratio = (count + config.position_offset) / config.grid
            return resampling.weights(config.grid, count, antialias=config.position_antialias, ratio=ratio)

        square = table[1:].reshape(config.grid, config.grid, -1)
        patches = resampling.resize(square, matrix(rows), matrix(columns))
        return jnp.concatenate([table[:1], patches.reshape(rows * columns, -1)])
