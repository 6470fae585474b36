"""The UMT5 encoder (arXiv 2304.09151): T5's (arXiv 1910.10683), with a relative-position table in every layer.

With `shared_positions` it is T5 1.1's own: one table, which all layers read.

Norms and the softmax are in float32 whatever the type of the activations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kaleido_jax.models.layers import Linear, RMSNorm, scan, stack
from kaleido_jax.models.text.umt5.config import UMT5Config


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs, std: float | None = None) -> Linear:
    """Without bias, and from T5's initial distribution: a normal one of deviation inputs^-1/2 if not given."""
    return Linear(inputs, outputs, rngs, init=nnx.initializers.normal(inputs**-0.5 if std is None else std), bias=False)


def _position_table(config: UMT5Config, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(config.dim**-0.5 * jax.random.normal(rngs.params(), (config.buckets, config.heads)))


class SelfAttention(nnx.Module):
    """Attention with an additive bias by bucketed distance and no 1/sqrt(head_dim) (the initial queries are small)."""

    def __init__(self, config: UMT5Config, rngs: nnx.Rngs):
        self.heads = config.heads
        inner = config.heads * config.head_dim
        self.query = _linear(config.dim, inner, rngs, (config.dim * config.head_dim) ** -0.5)
        self.key = _linear(config.dim, inner, rngs)
        self.value = _linear(config.dim, inner, rngs)
        self.out = _linear(inner, config.dim, rngs)
        self.position_bias = None if config.shared_positions else _position_table(config, rngs)

    def __call__(
        self,
        x: Float[Array, "b m d"],
        buckets: Int[Array, "m m"],
        present: Bool[Array, "b m"],
        shared: Float[Array, "buckets h"] | None,
    ) -> Float[Array, "b m d"]:
        q, k, v = (
            rearrange(project(x), "b m (h d) -> b m h d", h=self.heads)
            for project in (self.query, self.key, self.value)
        )
        einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None)
        scores = einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32)
        table = shared if self.position_bias is None else self.position_bias[...]
        assert table is not None
        bias = rearrange(table.astype(jnp.float32)[buckets], "q k h -> 1 h q k")
        # A finite floor: a text of length 0 has rows with nothing to read, and those must not become NaN.
        scores = jnp.where(present[:, None, None, :], scores + bias, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        return self.out(rearrange(einsum("bhqk,bkhd->bqhd", weights, v), "b m h d -> b m (h d)"))


class FeedForward(nnx.Module):
    """down(gelu(gate(x)) * up(x)) with the tanh form of GELU."""

    def __init__(self, config: UMT5Config, rngs: nnx.Rngs):
        self.gate = _linear(config.dim, config.ffn_dim, rngs)
        self.up = _linear(config.dim, config.ffn_dim, rngs)
        self.down = _linear(config.ffn_dim, config.dim, rngs)

    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        return self.down(jax.nn.gelu(self.gate(x), approximate=True) * self.up(x))


class Block(nnx.Module):
    """Attention and feed-forward, each on the normalised stream and added to it."""

    def __init__(self, config: UMT5Config, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.dim, eps=config.eps)
        self.attention = SelfAttention(config, rngs)
        self.norm2 = RMSNorm(config.dim, eps=config.eps)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self,
        x: Float[Array, "b m d"],
        buckets: Int[Array, "m m"],
        present: Bool[Array, "b m"],
        shared: Float[Array, "buckets h"] | None,
    ) -> Float[Array, "b m d"]:
        x = x + self.attention(self.norm1(x), buckets, present, shared)
        return x + self.feed_forward(self.norm2(x))


class UMT5Encoder(nnx.Module):
    """Token ids to one vector for each token. Parameters of the blocks are stacked on a leading layer axis."""

    def __init__(self, config: UMT5Config, rngs: nnx.Rngs):
        self.config = config
        self.token_embedding = nnx.Param(jax.random.normal(rngs.params(), (config.vocab_size, config.dim)))
        self.position_bias = _position_table(config, rngs) if config.shared_positions else None
        self.blocks = stack(functools.partial(Block, config), config.layers, rngs)
        self.final_norm = RMSNorm(config.dim, eps=config.eps)

    def __call__(self, ids: Int[Array, "b m"], lengths: Int[Array, "b"]) -> Float[Array, "b m d"]:
        """Encodes right-padded ids of which the first `lengths` are real.

        Padding is read by nobody, and its outputs are zero: Wan's transformer takes zero-padded text. FLUX reads its
        padding like words: give it the padded length as `lengths`.
        """
        tokens = ids.shape[1]
        present = jnp.arange(tokens)[None, :] < lengths[:, None]
        buckets = jnp.asarray(distance_buckets(tokens, self.config.buckets, self.config.max_distance))
        x = self.token_embedding[...][ids].astype(self.config.dtype)
        shared = None if self.position_bias is None else self.position_bias[...]
        x, _ = scan(self.blocks, lambda block, x, state: (block(x, buckets, present, shared), state), x)
        return jnp.where(present[:, :, None], self.final_norm(x), jnp.zeros((), x.dtype))


def distance_buckets(tokens: int, buckets: int, max_distance: int) -> np.ndarray:
    """Which row of the table the pair (query, key) reads, int32 [tokens, tokens].

    One half of the rows is for keys at or before the query, the other for keys after it. In a half, the first rows
    are distances 0, 1, 2, ... and the rest divide the distances up to `max_distance` evenly in their logarithm (T5,
    arXiv 1910.10683, section 2.1).
    """
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    half = buckets // 2
    exact = half // 2
    magnitude = np.abs(distance)
    # float32, in the order of the reference: where a logarithm falls on a whole number, rounding picks the row.
    ratio = np.log(np.maximum(magnitude, 1).astype(np.float32) / np.float32(exact))
    far = exact + (ratio / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)).astype(np.int32)
    rows = np.where(magnitude < exact, magnitude, np.minimum(far, half - 1))
    return (rows + half * (distance > 0)).astype(np.int32)
