"""The residual network with normalisation first that ArcFace (arXiv:1801.07698, section 3.1) calls IResNet or IR.

InsightFace's releases of ArcFace and Tencent's of CurricularFace (arXiv:2004.00288) differ in one thing: how a block
that halves the picture, and keeps its channels, passes on what it is added to.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax.models.faces.config import FaceConfig
from kaleido_jax.models.layers import Linear, scan, stack

# A layer may change every size but the batch: what comes out has names of its own.
Input = Float[Array, "b h w c"]
Output = Float[Array, "b y x o"]


def _channelwise(values: Float[Array, " c"], x: Array) -> Array:
    return jnp.expand_dims(values.astype(x.dtype), range(x.ndim - 1))


class BatchNorm(nnx.Module):
    """Batch normalisation by the statistics that training left, of the last axis."""

    def __init__(self, channels: int, eps: float, *, affine: bool = True):
        full = lambda value: nnx.Param(jnp.full((channels,), value, jnp.float32))
        self.mean, self.variance = full(0.0), full(1.0)
        self.scale, self.bias = (full(1.0), full(0.0)) if affine else (None, None)
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows c"]) -> Float[Array, "*rows c"]:
        factor = jax.lax.rsqrt(self.variance[...] + self.eps)
        if self.scale is not None:
            factor = factor * self.scale[...]
        offset = -self.mean[...] * factor
        if self.bias is not None:
            offset = offset + self.bias[...]
        return x * _channelwise(factor, x) + _channelwise(offset, x)


class Convolution(nnx.Module):
    """A convolution without bias that keeps height and width before its stride: `kernel` [size, size, in, out]."""

    def __init__(self, n_in: int, n_out: int, size: int, rngs: nnx.Rngs, *, stride: int = 1):
        initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2))
        self.kernel = nnx.Param(initial(rngs.params(), (size, size, n_in, n_out), jnp.float32))
        self.stride = stride

    def __call__(self, x: Input) -> Output:
        edge = self.kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            x, self.kernel[...].astype(x.dtype), (self.stride, self.stride), ((edge, edge), (edge, edge)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip


class PReLU(nnx.Module):
    """x, and below 0 a multiple of it, one for each channel."""

    def __init__(self, channels: int):
        self.slope = nnx.Param(jnp.full((channels,), 0.25, jnp.float32))

    def __call__(self, x: Input) -> Input:
        return jnp.where(x > 0, x, x * _channelwise(self.slope[...], x))


class Block(nnx.Module):
    """norm, convolution, norm, PReLU, convolution (of the stride), norm; added to a shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, config: FaceConfig, rngs: nnx.Rngs):
        self.norm1 = BatchNorm(n_in, config.eps)
        self.conv1 = Convolution(n_in, n_out, 3, rngs)
        self.norm2 = BatchNorm(n_out, config.eps)
        self.act = PReLU(n_out)
        self.conv2 = Convolution(n_out, n_out, 3, rngs, stride=stride)
        self.norm3 = BatchNorm(n_out, config.eps)
        projected = n_in != n_out or (stride > 1 and not config.subsampled)
        self.shortcut = Convolution(n_in, n_out, 1, rngs, stride=stride) if projected else None
        self.shortcut_norm = BatchNorm(n_out, config.eps) if projected else None
        self.stride = stride

    def __call__(self, x: Input) -> Output:
        y = self.conv1(self.norm1(x))
        y = self.norm3(self.conv2(self.act(self.norm2(y))))
        if self.shortcut is None or self.shortcut_norm is None:
            return y + x[:, :: self.stride, :: self.stride]
        return y + self.shortcut_norm(self.shortcut(x))


class Stage(nnx.Module):
    """A block that halves height and width, then blocks that keep them, stacked."""

    def __init__(self, n_in: int, n_out: int, depth: int, config: FaceConfig, rngs: nnx.Rngs):
        self.first = Block(n_in, n_out, 2, config, rngs)
        rest = lambda rngs: Block(n_out, n_out, 1, config, rngs)
        self.rest = stack(rest, depth - 1, rngs) if depth > 1 else None

    def __call__(self, x: Input) -> Output:
        x = self.first(x)
        return x if self.rest is None else scan(self.rest, lambda block, x, state: (block(x), state), x)[0]


class FaceEncoder(nnx.Module):
    """Aligned faces to features, whose cosines tell whether two faces are one person's."""

    def __init__(self, config: FaceConfig, rngs: nnx.Rngs):
        first, *channels = config.channels
        self.conv_in = Convolution(3, first, 3, rngs)
        self.norm_in = BatchNorm(first, config.eps)
        self.act_in = PReLU(first)
        inputs = config.channels[:-1]
        self.stages = nnx.List(Stage(i, o, depth, config, rngs) for i, o, depth in zip(inputs, channels, config.depths))
        self.norm_out = BatchNorm(channels[-1], config.eps)
        self.out = Linear(config.grid**2 * channels[-1], config.features, rngs)
        self.features_norm = BatchNorm(config.features, config.eps, affine=not config.subsampled)
        self.config = config

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Features, of any length, of RGB faces in [-1, 1] whose sides are the config's image_size."""
        size = self.config.image_size
        if pixels.shape[1:3] != (size, size):
            raise ValueError(f"pixels have shape {pixels.shape}; expected aligned faces of {size} x {size}.")
        x = self.act_in(self.norm_in(self.conv_in(pixels)))
        for stage in self.stages:
            x = stage(x)
        x = self.norm_out(x)
        return self.features_norm(self.out(x.reshape(x.shape[0], -1)))
