"""The VAE of pictures: residual blocks with group norms, and attention at the coarsest resolution.

Source: latent diffusion models (arXiv:2112.10752, appendix G); FLUX.1 has 16 channels and no map between moments and
latents.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax.attention import attention
from kaleido_jax.models.image_vae.config import ImageVAEConfig
from kaleido_jax.models.layers import Linear
from kaleido_jax.models.vae.layers import per_channel, same_convolution

Pixels = Float[Array, "b h w 3"]
Latents = Float[Array, "b y x z"]
# A layer may change every size but the batch: what comes out has names of its own.
Input = Float[Array, "b h w c"]
Output = Float[Array, "b y x o"]


class Convolution(nnx.Module):
    """A 2-D convolution: `kernel` [height, width, in, out] and `bias` [out]."""

    def __init__(self, n_in: int, n_out: int, size: int, rngs: nnx.Rngs):
        initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2))
        self.kernel = nnx.Param(initial(rngs.params(), (size, size, n_in, n_out), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((n_out,), jnp.float32))

    def __call__(self, x: Input) -> Output:
        return same_convolution(x, self.kernel[...].astype(x.dtype)) + per_channel(self.bias[...], x)


class GroupNorm(nnx.Module):
    """Normalises groups of channels over a whole picture (Wu and He 2018), in float32 whatever the type of x."""

    def __init__(self, channels: int, config: ImageVAEConfig):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.groups, self.eps = config.groups, config.eps

    def __call__(self, x: Input) -> Input:
        y = rearrange(x.astype(jnp.float32), "b h w (g c) -> b h w g c", g=self.groups)
        mean = y.mean((1, 2, 4), keepdims=True)
        variance = jnp.square(y - mean).mean((1, 2, 4), keepdims=True)
        y = ((y - mean) * jax.lax.rsqrt(variance + self.eps)).reshape(x.shape)
        return (y * per_channel(self.scale[...], y) + per_channel(self.bias[...], y)).astype(x.dtype)


class ResidualBlock(nnx.Module):
    """norm, SiLU, convolution, twice; a 1 x 1 convolution around it where the channels change."""

    def __init__(self, n_in: int, n_out: int, config: ImageVAEConfig, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(n_in, config)
        self.conv1 = Convolution(n_in, n_out, 3, rngs)
        self.norm2 = GroupNorm(n_out, config)
        self.conv2 = Convolution(n_out, n_out, 3, rngs)
        self.shortcut = Convolution(n_in, n_out, 1, rngs) if n_in != n_out else None

    def __call__(self, x: Input) -> Output:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
    """Self-attention with one head among the pixels."""

    def __init__(self, channels: int, config: ImageVAEConfig, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, config)
        self.query = Linear(channels, channels, rngs)
        self.key = Linear(channels, channels, rngs)
        self.value = Linear(channels, channels, rngs)
        self.out = Linear(channels, channels, rngs)

    def __call__(self, x: Input) -> Input:
        y = rearrange(self.norm(x), "b h w c -> b (h w) c")
        q, k, v = (project(y)[:, :, None] for project in (self.query, self.key, self.value))
        # A head as wide as all channels is more than kernels take.
        y = self.out(attention(q, k, v, backend="reference")[:, :, 0])
        return x + y.reshape(x.shape)


class Middle(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, config: ImageVAEConfig, rngs: nnx.Rngs):
        width = config.channels[-1]
        self.before = ResidualBlock(width, width, config, rngs)
        self.attention = AttentionBlock(width, config, rngs)
        self.after = ResidualBlock(width, width, config, rngs)

    def __call__(self, x: Input) -> Input:
        return self.after(self.attention(self.before(x)))


class EncoderStage(nnx.Module):
    """Residual blocks, then a convolution that halves height and width unless it is the coarsest stage."""

    def __init__(self, config: ImageVAEConfig, index: int, rngs: nnx.Rngs):
        n_in, n_out = config.channels[max(index - 1, 0)], config.channels[index]
        self.blocks = nnx.List(
            ResidualBlock(n_out if i else n_in, n_out, config, rngs) for i in range(config.num_res_blocks)
        )
        self.downsample = Convolution(n_out, n_out, 3, rngs) if index < len(config.channels) - 1 else None

    def __call__(self, x: Input) -> Output:
        for block in self.blocks:
            x = block(x)
        if self.downsample is None:
            return x
        y = jax.lax.conv_general_dilated(
            x, self.downsample.kernel[...].astype(x.dtype), (2, 2), ((0, 1), (0, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return y + per_channel(self.downsample.bias[...], x)


class DecoderStage(nnx.Module):
    """Residual blocks, then nearest neighbours doubled and a convolution unless it is the finest stage.

    index counts resolutions as in the config: 0 is the finest, which comes last.
    """

    def __init__(self, config: ImageVAEConfig, index: int, rngs: nnx.Rngs):
        n_in, n_out = config.channels[min(index + 1, len(config.channels) - 1)], config.channels[index]
        self.blocks = nnx.List(
            ResidualBlock(n_out if i else n_in, n_out, config, rngs) for i in range(config.num_res_blocks + 1)
        )
        self.upsample = Convolution(n_out, n_out, 3, rngs) if index else None

    def __call__(self, x: Input) -> Output:
        for block in self.blocks:
            x = block(x)
        return x if self.upsample is None else self.upsample(repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2))


class Encoder(nnx.Module):
    """Pixels to mean and log variance."""

    def __init__(self, config: ImageVAEConfig, rngs: nnx.Rngs):
        self.conv_in = Convolution(3, config.channels[0], 3, rngs)
        self.stages = nnx.List(EncoderStage(config, index, rngs) for index in range(len(config.channels)))
        self.middle = Middle(config, rngs)
        self.norm_out = GroupNorm(config.channels[-1], config)
        self.conv_out = Convolution(config.channels[-1], 2 * config.z_dim, 3, rngs)

    def __call__(self, x: Input) -> Output:
        x = self.conv_in(x)
        for stage in self.stages:
            x = stage(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """Latents to pixels. `stages` are numbered by resolution, the finest first, and run from the coarsest."""

    def __init__(self, config: ImageVAEConfig, rngs: nnx.Rngs):
        self.conv_in = Convolution(config.z_dim, config.channels[-1], 3, rngs)
        self.middle = Middle(config, rngs)
        self.stages = nnx.List(DecoderStage(config, index, rngs) for index in range(len(config.channels)))
        self.norm_out = GroupNorm(config.channels[0], config)
        self.conv_out = Convolution(config.channels[0], 3, 3, rngs)

    def __call__(self, x: Input) -> Output:
        return self.grow(self.core(x))

    def core(self, x: Input) -> Output:
        """What is done at the latents' resolution."""
        return self.middle(self.conv_in(x))

    def grow(self, x: Input) -> Output:
        """From the core's features to pixels."""
        for index in reversed(range(len(self.stages))):
            x = self.stages[index](x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class ImageVAE(nnx.Module):
    """Pictures to normalised latents and back."""

    def __init__(self, config: ImageVAEConfig, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        self.config = config

    def moments(self, pixels: Pixels) -> tuple[Latents, Latents]:
        """Mean and log variance, unnormalised.

        Raises:
          ValueError: (while tracing) if height or width is not divisible by the config's spatial factor.
        """
        factor = self.config.spatial_factor
        for name, size in zip(("height", "width"), pixels.shape[1:3]):
            if size % factor:
                raise ValueError(f"the {name} of the picture is {size}; it must be divisible by {factor}.")
        mean, log_variance = jnp.split(self.encoder(pixels), 2, axis=-1)
        return mean, log_variance

    def encode(self, pixels: Pixels) -> Latents:
        """The normalised mean of pictures in [-1, 1]."""
        return (self.moments(pixels)[0] - self.config.shift) * self.config.scale

    def decode(self, latents: Latents) -> Pixels:
        """Pictures in [-1, 1], clipped, of normalised latents."""
        return jnp.clip(self.decoder(latents / self.config.scale + self.config.shift), -1.0, 1.0)
