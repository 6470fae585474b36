"""CLIP's text tower (arXiv:2103.00020, section 2.4): a causal transformer, read at the end of the text."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from kaleido_jax.models.layers import MLP, LayerNorm, Linear, scan, stack
from kaleido_jax.models.text.clip.config import CLIPTextConfig


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The approximation of GELU that OpenAI's CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


class SelfAttention(nnx.Module):
    """Attention among at most 77 tokens."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.query = Linear(config.dim, config.dim, rngs)
        self.key = Linear(config.dim, config.dim, rngs)
        self.value = Linear(config.dim, config.dim, rngs)
        self.out = Linear(config.dim, config.dim, rngs)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "b m d"], visible: Bool[Array, "m m"]) -> Float[Array, "b m d"]:
        q, k, v = (project(x).reshape(*x.shape[:2], self.heads, -1) for project in (self.query, self.key, self.value))
        einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None)
        scores = einsum("bqhd,bkhd->bhqk", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(visible[None, None], scores, -jnp.inf), axis=-1).astype(x.dtype)
        return self.out(einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


class Block(nnx.Module):
    """Attention and feed-forward layer, each on the normalised stream and added to it."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config.dim, eps=config.eps)
        self.attention = SelfAttention(config, rngs)
        self.norm2 = LayerNorm(config.dim, eps=config.eps)
        self.mlp = MLP(config.dim, config.ffn_dim, config.dim, rngs, activation=quick_gelu)

    def __call__(self, x: Float[Array, "b m d"], visible: Bool[Array, "m m"]) -> Float[Array, "b m d"]:
        x = x + self.attention(self.norm1(x), visible)
        return x + self.mlp(self.norm2(x))


class CLIPTextEncoder(nnx.Module):
    """Token ids to one vector for each token and one for the text."""

    def __init__(self, config: CLIPTextConfig, rngs: nnx.Rngs):
        normal = lambda rows, std: nnx.Param(std * jax.random.normal(rngs.params(), (rows, config.dim)))
        self.token_embedding = normal(config.vocab_size, 0.02)
        self.position_embedding = normal(config.positions, 0.01)
        self.blocks = stack(functools.partial(Block, config), config.layers, rngs)
        self.final_norm = LayerNorm(config.dim, eps=config.eps)
        self.config = config

    def __call__(self, ids: Int[Array, "b m"]) -> tuple[Float[Array, "b m d"], Float[Array, "b d"]]:
        """The normalised tokens, and of each text the token at its first `end_id` (CLIP's pooled output).

        A token reads those before it only, so that padding after the end of a text changes nothing before it.

        Raises:
          ValueError: (while tracing) if the texts are longer than the table of positions.
        """
        tokens = ids.shape[1]
        if tokens > self.config.positions:
            raise ValueError(f"ids have {tokens} tokens; CLIP reads at most {self.config.positions}.")
        x = self.token_embedding[...][ids] + self.position_embedding[...][None, :tokens]
        visible = jnp.tril(jnp.ones((tokens, tokens), bool))
        block = lambda block, x, state: (block(x, visible), state)
        x, _ = scan(self.blocks, block, x.astype(self.config.dtype))
        x = self.final_norm(x)
        end = jnp.argmax(ids == self.config.end_id, axis=1)
        return x, jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
