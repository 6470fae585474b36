"""MUSIQ (arXiv:2108.05997): a transformer over the patches of a picture at several sizes.

What the paper leaves to its code is as in the networks that VBench reads: convolutions with standardised weights
(the deviation with n - 1 in its denominator), places by the nearest row and column of a table, and resizing without
antialiasing. Patches that only fill up a batch there are left out here: nothing reads them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from kaleido_jax.attention import attention
from kaleido_jax.models.layers import MLP, LayerNorm, Linear, scan, stack
from kaleido_jax.models.musiq.config import MusiqConfig
from kaleido_jax.models.vision import resampling

GROUPS = 32
# A layer may change every size but the batch: what comes out has names of its own.
Input = Float[Array, "b h w c"]
Output = Float[Array, "b y x o"]


class Convolution(nnx.Module):
    """A convolution of standardised weights without bias, `kernel` [size, size, in, out], and group normalisation.

    Its edges are filled up with zeros so that the stride alone says how large the outcome is.
    """

    def __init__(self, n_in: int, n_out: int, size: int, rngs: nnx.Rngs, *, stride: int = 1, eps: float = 1e-4):
        initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2))
        self.kernel = nnx.Param(initial(rngs.params(), (size, size, n_in, n_out), jnp.float32))
        self.scale = nnx.Param(jnp.ones((n_out,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))
        self.stride, self.eps = stride, eps

    def __call__(self, x: Input) -> Output:
        kernel = self.kernel[...]
        inputs = (0, 1, 2)
        kernel = kernel - kernel.mean(inputs, keepdims=True)
        kernel = kernel / (kernel.std(inputs, ddof=1, keepdims=True) + 1e-5)
        x = jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        groups = x.reshape(*x.shape[:-1], GROUPS, -1)
        mean = groups.mean((1, 2, 4), keepdims=True)
        variance = jnp.square(groups - mean).mean((1, 2, 4), keepdims=True)
        x = ((groups - mean) * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
        scale, bias = (values[...][None, None, None] for values in (self.scale, self.bias))
        return x * scale + bias


class Bottleneck(nnx.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, added to a projection."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs):
        self.conv1 = Convolution(n_in, n_in, 1, rngs)
        self.conv2 = Convolution(n_in, n_in, 3, rngs)
        self.conv3 = Convolution(n_in, n_out, 1, rngs)
        self.shortcut = Convolution(n_in, n_out, 1, rngs)

    def __call__(self, x: Input) -> Output:
        y = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
        return jax.nn.relu(self.conv3(y) + self.shortcut(x))


class Block(nnx.Module):
    """Attention and feed-forward layer, each on the normalised stream and added to it."""

    def __init__(self, config: MusiqConfig, rngs: nnx.Rngs):
        dim = config.dim
        self.norm1, self.norm2 = LayerNorm(dim, eps=1e-6), LayerNorm(dim, eps=1e-6)
        self.query, self.key, self.value, self.out = (Linear(dim, dim, rngs) for _ in range(4))
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        self.mlp = MLP(dim, config.ffn_dim, dim, rngs, activation=gelu)
        self.heads = config.heads

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        y = self.norm1(x)
        q, k, v = (project(y).reshape(*y.shape[:2], self.heads, -1) for project in (self.query, self.key, self.value))
        x = x + self.out(attention(q, k, v, backend="reference").reshape(x.shape))
        return x + self.mlp(self.norm2(x))


class Musiq(nnx.Module):
    """Pictures to how good they look: 0 to 100 where it was trained on SPAQ's ratings."""

    def __init__(self, config: MusiqConfig, rngs: nnx.Rngs):
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        self.stem = Convolution(3, config.stem, 7, rngs, stride=2, eps=1e-6)
        self.block = Bottleneck(config.stem, 4 * config.stem, rngs)
        self.embedding = Linear(4 * config.stem * (config.patch // 4) ** 2, config.dim, rngs)
        self.places = normal(config.grid**2, config.dim)
        self.scales = normal(len(config.sides) + 1, config.dim)
        self.summary = normal(config.dim)
        self.blocks = stack(functools.partial(Block, config), config.layers, rngs)
        self.norm_out = LayerNorm(config.dim, eps=1e-6)
        self.head = Linear(config.dim, 1, rngs)
        self.config = config

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
        """The rating of each RGB picture in [-1, 1], of any size."""
        config = self.config
        height, width = pixels.shape[1:3]
        tokens = []
        for scale, side in enumerate((*config.sides, None)):
            picture = pixels
            if side is not None:
                ratio = side / max(height, width)
                rows, columns = (resampling.weights(size, round(size * ratio)) for size in (height, width))
                picture = resampling.resize(pixels, rows, columns)
            patches, count = _patches(picture, config.patch)
            places = self.places[...][_places(config.grid, *count)]
            tokens.append(self._embed(patches) + (places + self.scales[...][scale][None])[None])
        batch = len(pixels)
        first = jnp.broadcast_to(self.summary[...][None, None], (batch, 1, config.dim))
        x, _ = scan(self.blocks, lambda block, x, state: (block(x), state), jnp.concatenate([first, *tokens], axis=1))
        return self.head(self.norm_out(x[:, 0]))[:, 0]

    def _embed(self, patches: Float[Array, "b n p q 3"]) -> Float[Array, "b n d"]:
        x = jax.nn.relu(self.stem(patches.reshape(-1, *patches.shape[2:])))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        return self.embedding(self.block(x).reshape(*patches.shape[:2], -1))


def _patches(x: Float[Array, "b h w 3"], size: int) -> tuple[Float[Array, "b n p q 3"], tuple[int, int]]:
    """Patches row by row of a picture in the middle of zeros, and how many rows and columns of them there are."""
    batch, *extents = x.shape[:3]
    rows, columns = (-(-extent // size) for extent in extents)
    edges = [((n * size - extent) // 2, -((extent - n * size) // 2)) for n, extent in zip((rows, columns), extents)]
    x = jnp.pad(x, ((0, 0), *edges, (0, 0))).reshape(batch, rows, size, columns, size, 3)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, size, size, 3), (rows, columns)


def _places(grid: int, rows: int, columns: int) -> Int[np.ndarray, "n"]:
    """Which of the table's places each of rows x columns patches has: the nearest one, in float32 as PyTorch's."""
    row, column = (
        np.minimum(np.arange(n, dtype=np.float32) * np.float32(grid / n), grid - 1).astype(int) for n in (rows, columns)
    )
    return (row[:, None] * grid + column[None]).ravel()
