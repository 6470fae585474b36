"""Layers of the causal video VAE: each maps (activations, cache) to (activations, cache).

A cache is what a layer must remember of the frames before the given ones; `None` says that the given frames begin the
clip. So coding a clip whole, or chunk by chunk with the caches carried, is the same function. A `Split` says that the
given pictures are one device's part of wider ones.
"""

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax.attention import attention
from kaleido_jax.models.vae.split import Split

# A layer may change every size but the batch: what comes out has names of its own.
Input = Float[Array, "b f h w c"]
Output = Float[Array, "b g y x o"]
Cache = Float[Array, "b _ _ _ _"] | None


Padding = str | tuple[tuple[int, int], tuple[int, int]]  # of height and width


def same_convolution(
    x: Float[Array, "n h w i"], kernel: Float[Array, "y x i o"], padding: Padding = "SAME"
) -> Float[Array, "n a e o"]:
    """A 2-D convolution that keeps height and width, unless padded otherwise; a 1 x 1 kernel is a matrix product."""
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0]
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolution(
    x: Float[Array, "b f h w i"], kernel: Float[Array, "t y x i o"], stride: int = 1, split: Split | None = None
) -> Float[Array, "b g h w o"]:
    """A 3-D convolution, "valid" in time with a stride there, "same" in height and width.

    It is computed as a sum over the kernel's frames of 2-D convolutions: on a CPU, XLA's 2-D convolution reaches two to
    four times the speed of its 3-D one (tools/bench_vae.py).
    """
    taps = kernel.shape[0]
    frames = (x.shape[1] - taps) // stride + 1
    padding: Padding = "SAME"
    if split is not None and kernel.shape[1:3] == (3, 3):
        x, padding = split.extended(x, 1, 1), split.padding(1, 1)

    def tap(index: int) -> Array:
        picked = jax.lax.slice_in_dim(x, index, index + (frames - 1) * stride + 1, stride, axis=1)
        return same_convolution(rearrange(picked, "b f h w c -> (b f) h w c"), kernel[index], padding)

    return rearrange(sum((tap(i) for i in range(1, taps)), tap(0)), "(b f) h w c -> b f h w c", f=frames)


def per_channel(values: Float[Array, "c"], x: Array) -> Array:
    """Values of the channels, of x's type and ready to be combined with it."""
    return values.astype(x.dtype).reshape((1,) * (x.ndim - 1) + values.shape)


class RMSNorm(nnx.Module):
    """x / |x| * sqrt(channels) * scale, in float32 whatever the type of x."""

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        wide = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
        normalised = wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * x.shape[-1] ** 0.5
        return normalised.astype(x.dtype) * per_channel(self.scale[...], x)


class Convolution(nnx.Module):
    """A convolution that sees the present and the past: `kernel` [time, height, width, in, out] and `bias` [out]."""

    def __init__(self, n_in: int, n_out: int, size: tuple[int, int, int], rngs: nnx.Rngs, *, zero: bool = False):
        initial = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal(in_axis=(0, 1, 2, 3))
        self.kernel = nnx.Param(initial(rngs.params(), (*size, n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))

    def apply(self, x: Input, stride: int = 1, split: Split | None = None) -> Output:
        """Of frames that already hold the past that the kernel needs."""
        return convolution(x, self.kernel[...].astype(x.dtype), stride, split) + per_channel(self.bias[...], x)

    def __call__(self, x: Input, cache: Cache, split: Split | None = None) -> tuple[Output, Cache]:
        x = _after(x, cache, self.kernel.shape[0] - 1)
        return self.apply(x, split=split), x[:, x.shape[1] - self.kernel.shape[0] + 1 :]


def _after(x: Input, cache: Cache, past: int) -> Output:
    """The cached frames (zeros at the beginning of a clip), then x."""
    if cache is None:
        return jnp.pad(x, ((0, 0), (past, 0), (0, 0), (0, 0), (0, 0)))
    return jnp.concatenate([cache, x], axis=1)


class ResidualBlock(nnx.Module):
    """norm, SiLU, convolution, twice; a 1 x 1 convolution around it where the channels change."""

    def __init__(self, n_in: int, n_out: int, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(n_in)
        self.conv1 = Convolution(n_in, n_out, (3, 3, 3), rngs)
        self.norm2 = RMSNorm(n_out)
        self.conv2 = Convolution(n_out, n_out, (3, 3, 3), rngs, zero=True)
        self.shortcut = Convolution(n_in, n_out, (1, 1, 1), rngs) if n_in != n_out else None

    def __call__(self, x: Input, cache: tuple | None, split: Split | None = None) -> tuple[Output, tuple]:
        first, second = (None, None) if cache is None else cache
        y, first = self.conv1(jax.nn.silu(self.norm1(x)), first, split)
        y, second = self.conv2(jax.nn.silu(self.norm2(y)), second, split)
        return y + (x if self.shortcut is None else self.shortcut.apply(x)), (first, second)


class AttentionBlock(nnx.Module):
    """Self-attention with one head among the pixels of each frame."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.norm = RMSNorm(channels)
        self.qkv = Convolution(channels, 3 * channels, (1, 1, 1), rngs)
        self.out = Convolution(channels, channels, (1, 1, 1), rngs, zero=True)

    def __call__(self, x: Input, split: Split | None = None) -> Input:
        q, k, v = rearrange(self.qkv.apply(self.norm(x)), "b f h w (three c) -> three (b f) (h w) 1 c", three=3)
        if split is not None:
            k, v = split.everywhere(k), split.everywhere(v)
        # A head as wide as all channels (384 to 1024) is more than kernels take, and the pixels of a frame are few.
        y = attention(q, k, v, backend="reference")
        return x + self.out.apply(rearrange(y, "(b f) (h w) 1 c -> b f h w c", b=x.shape[0], h=x.shape[2]))


class Downsample(nnx.Module):
    """Halves height and width and, if temporal, the frames after the clip's first one."""

    def __init__(self, channels: int, temporal: bool, rngs: nnx.Rngs):
        self.spatial = Convolution(channels, channels, (1, 3, 3), rngs)
        self.temporal = Convolution(channels, channels, (3, 1, 1), rngs) if temporal else None

    def __call__(self, x: Input, cache: Cache, split: Split | None = None) -> tuple[Output, Cache]:
        kernel = self.spatial.kernel[0].astype(x.dtype)
        wide, padding = (x, ((0, 1), (0, 1))) if split is None else (split.extended(x, 0, 1), split.padding(0, 1))
        y = jax.lax.conv_general_dilated(
            rearrange(wide, "b f h w c -> (b f) h w c"), kernel, (2, 2), padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        x = rearrange(y, "(b f) h w c -> b f h w c", b=x.shape[0])
        x = x + per_channel(self.spatial.bias[...], x)
        if self.temporal is None:
            return x, None
        last = x[:, -1:]
        if cache is not None:
            return self.temporal.apply(jnp.concatenate([cache, x], axis=1), stride=2), last
        if x.shape[1] == 1:  # the first frame stands for itself
            return x, last
        return jnp.concatenate([x[:, :1], self.temporal.apply(x, stride=2)], axis=1), last


class Upsample(nnx.Module):
    """Doubles height and width and, if temporal, the frames after the clip's first one."""

    def __init__(self, n_in: int, n_out: int, temporal: bool, rngs: nnx.Rngs):
        self.spatial = Convolution(n_in, n_out, (1, 3, 3), rngs)
        self.temporal = Convolution(n_in, 2 * n_in, (3, 1, 1), rngs) if temporal else None

    def __call__(self, x: Input, cache: Cache, split: Split | None = None) -> tuple[Output, Cache]:
        if self.temporal is not None:
            begins = cache is None
            # The first frame stays single and is not in the past that the temporal convolution sees.
            first, rest = (x[:, :1], x[:, 1:]) if begins else (x[:, :0], x)
            past = _after(rest, cache, 2)
            cache = past[:, past.shape[1] - 2 :]
            if rest.shape[1]:
                rest = rearrange(self.temporal.apply(past), "b f h w (two c) -> b (f two) h w c", two=2)
                x = jnp.concatenate([first, rest], axis=1) if begins else rest
        return self.spatial.apply(repeat(x, "b f h w c -> b f (h p) (w q) c", p=2, q=2), split=split), cache


def average_down(x: Input, channels: int, temporal: int, spatial: int, begins: bool) -> Output:
    """Parameter-free shortcut of an encoder stage: pixels become channels, of which groups are averaged."""
    if begins and temporal > 1:
        x = jnp.pad(x, ((0, 0), (temporal - 1, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "b (f t) (h p) (w q) c -> b f h w (c t p q)", t=temporal, p=spatial, q=spatial)
    return reduce(x, "b f h w (c group) -> b f h w c", "mean", c=channels)


def repeat_up(x: Input, channels: int, temporal: int, spatial: int, begins: bool) -> Output:
    """Parameter-free shortcut of a decoder stage: channels are repeated and become pixels."""
    x = jnp.repeat(x, channels * temporal * spatial * spatial // x.shape[-1], axis=-1)
    x = rearrange(x, "b f h w (c t p q) -> b (f t) (h p) (w q) c", t=temporal, p=spatial, q=spatial)
    return x[:, temporal - 1 :] if begins else x
