"""The causal video VAE of Wan 2.1 and Wan 2.2.

A clip of `temporal_factor * n + 1` frames becomes n + 1 latent frames. Nothing looks ahead in time, so a clip of any
length is coded chunk by chunk in constant memory; the result is that of coding it whole. Encoder and decoder have two
parts: the core, at the resolution of the latents, whose attention sees whole frames, and what lies between it and the
pixels, where nothing looks far to the side. `tiling` and `mesh` build on this.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from kaleido_jax.models.vae.config import VAEConfig
from kaleido_jax.models.vae.layers import (
    AttentionBlock,
    Convolution,
    Downsample,
    ResidualBlock,
    RMSNorm,
    Upsample,
    average_down,
    repeat_up,
)
from kaleido_jax.models.vae.split import Split

Pixels = Float[Array, "b f h w 3"]
Latents = Float[Array, "b g y x z"]  # g frames of y x x: other numbers than those of the pixels
Caches = Any  # a pytree of arrays [b, frames, h, w, c]; None at the beginning of a clip


class EncoderStage(nnx.Module):
    """Residual blocks, then a downsampling unless it is the last stage."""

    def __init__(self, config: VAEConfig, index: int, rngs: nnx.Rngs):
        n_in, self.channels, _ = config.encoder_shortcuts()[index]
        last = index == len(config.dim_mult) - 1
        temporal = not last and config.temporal_downsample[index]
        self.residual = config.residual
        self.factors = (2 if temporal else 1, 1 if last else 2)
        self.blocks = nnx.List(
            ResidualBlock(n_in if i == 0 else self.channels, self.channels, rngs) for i in range(config.num_res_blocks)
        )
        self.downsample = None if last else Downsample(self.channels, temporal, rngs)

    def __call__(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        blocks, resample = (None, None) if caches is None else caches
        y, blocks = _run(self.blocks, x, blocks, split)
        if self.downsample is not None:
            y, resample = self.downsample(y, resample, split)
        if self.residual:
            y = y + average_down(x, self.channels, *self.factors, begins=caches is None)
        return y, (blocks, resample)


class DecoderStage(nnx.Module):
    """Residual blocks, then an upsampling unless it is the last stage."""

    def __init__(self, config: VAEConfig, index: int, rngs: nnx.Rngs):
        dims = [config.decoder_base_dim * m for m in (config.dim_mult[-1], *config.dim_mult[::-1])]
        n_in, n_out = dims[index], dims[index + 1]
        if not config.residual and index > 0:
            n_in //= 2  # Wan 2.1 halves the channels in the upsampling before
        last = index == len(config.dim_mult) - 1
        temporal = not last and config.temporal_downsample[::-1][index]
        self.residual = config.residual and not last
        self.channels, self.factors = n_out, (2 if temporal else 1, 2)
        self.blocks = nnx.List(
            ResidualBlock(n_in if i == 0 else n_out, n_out, rngs) for i in range(config.num_res_blocks + 1)
        )
        resampled = n_out if config.residual else n_out // 2
        self.upsample = None if last else Upsample(n_out, resampled, temporal, rngs)

    def __call__(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        blocks, resample = (None, None) if caches is None else caches
        y, blocks = _run(self.blocks, x, blocks, split)
        if self.upsample is not None:
            y, resample = self.upsample(y, resample, split)
        if self.residual:
            y = y + repeat_up(x, self.channels, *self.factors, begins=caches is None)
        return y, (blocks, resample)


def _run(layers: Any, x: Array, caches: Caches, split: Split | None) -> tuple[Array, Caches]:
    """Layers one after the other, each with its own cache."""
    carried = []
    for layer, cache in zip(layers, [None] * len(layers) if caches is None else caches, strict=True):
        x, cache = layer(x, cache, split)
        carried.append(cache)
    return x, tuple(carried)


class Middle(nnx.Module):
    """Residual block, attention within each frame, residual block."""

    def __init__(self, channels: int, rngs: nnx.Rngs):
        self.before = ResidualBlock(channels, channels, rngs)
        self.attention = AttentionBlock(channels, rngs)
        self.after = ResidualBlock(channels, channels, rngs)

    def __call__(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        before, after = (None, None) if caches is None else caches
        x, before = self.before(x, before, split)
        x, after = self.after(self.attention(x, split), after, split)
        return x, (before, after)


class Encoder(nnx.Module):
    """Pixels (as channels, where patch_size is above 1) to mean and log variance."""

    def __init__(self, config: VAEConfig, rngs: nnx.Rngs):
        width = config.base_dim * config.dim_mult[-1]
        self.conv_in = Convolution(3 * config.patch_size**2, config.base_dim, (3, 3, 3), rngs)
        self.stages = nnx.List(EncoderStage(config, i, rngs) for i in range(len(config.dim_mult)))
        self.middle = Middle(width, rngs)
        self.norm_out = RMSNorm(width)
        self.conv_out = Convolution(width, 2 * config.z_dim, (3, 3, 3), rngs)

    def __call__(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        shrink, core = (None, None) if caches is None else caches
        x, shrink = self.shrink(x, shrink, split)
        x, core = self.core(x, core, split)
        return x, (shrink, core)

    def shrink(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        """From pixels to features at the resolution of the latents."""
        conv_in, stages = (None, None) if caches is None else caches
        x, conv_in = self.conv_in(x, conv_in, split)
        x, stages = _run(self.stages, x, stages, split)
        return x, (conv_in, stages)

    def core(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        """The rest, at the resolution of the latents."""
        middle, conv_out = (None, None) if caches is None else caches
        x, middle = self.middle(x, middle, split)
        x, conv_out = self.conv_out(jax.nn.silu(self.norm_out(x)), conv_out, split)
        return x, (middle, conv_out)


class Decoder(nnx.Module):
    """Latents to pixels (as channels, where patch_size is above 1)."""

    def __init__(self, config: VAEConfig, rngs: nnx.Rngs):
        width = config.decoder_base_dim * config.dim_mult[-1]
        self.conv_in = Convolution(config.z_dim, width, (3, 3, 3), rngs)
        self.middle = Middle(width, rngs)
        self.stages = nnx.List(DecoderStage(config, i, rngs) for i in range(len(config.dim_mult)))
        width = config.decoder_base_dim * config.dim_mult[0]
        self.norm_out = RMSNorm(width)
        self.conv_out = Convolution(width, 3 * config.patch_size**2, (3, 3, 3), rngs)

    def __call__(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        core, grow = (None, None) if caches is None else caches
        x, core = self.core(x, core, split)
        x, grow = self.grow(x, grow, split)
        return x, (core, grow)

    def core(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        """From latents to features at their resolution."""
        conv_in, middle = (None, None) if caches is None else caches
        x, conv_in = self.conv_in(x, conv_in, split)
        x, middle = self.middle(x, middle, split)
        return x, (conv_in, middle)

    def grow(self, x: Array, caches: Caches, split: Split | None = None) -> tuple[Array, Caches]:
        """The rest, up to the pixels."""
        stages, conv_out = (None, None) if caches is None else caches
        x, stages = _run(self.stages, x, stages, split)
        x, conv_out = self.conv_out(jax.nn.silu(self.norm_out(x)), conv_out, split)
        return x, (stages, conv_out)


class WanVAE(nnx.Module):
    """The video autoencoder; which release it is, is a matter of its config.

    `encode` and `decode` are for use: deterministic, normalised, in chunks. `moments` and `reconstruct` are the same
    maths on a whole clip and on unnormalised latents, for training.
    """

    def __init__(self, config: VAEConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.quant_conv = Convolution(2 * config.z_dim, 2 * config.z_dim, (1, 1, 1), rngs)
        self.post_quant_conv = Convolution(config.z_dim, config.z_dim, (1, 1, 1), rngs)
        self.decoder = Decoder(config, rngs)

    def encode(self, video: Pixels, *, chunk: int | None = 1, split: Split | None = None) -> Latents:
        """Normalised latents (the posterior's mean) of clips.

        Args:
          video: pixels in [-1, 1]; `temporal_factor * n + 1` frames, height and width multiples of `spatial_factor`.
          chunk: latent frames coded at a time after the first, which is coded alone; None codes the clip whole.
            The result does not depend on it, memory does.
          split: the clips are one device's part of larger ones (`encode_on_mesh`).

        Returns:
          Latents [b, n + 1, height / spatial_factor, width / spatial_factor, z_dim].
        """
        return self.normalise(self._encode(video, chunk, split)[0])

    def decode(self, latents: Latents, *, chunk: int | None = 1, split: Split | None = None) -> Pixels:
        """Clips, in [-1, 1], of normalised latents [b, n + 1, h, w, z_dim]; `chunk` and `split` as in `encode`."""
        self.check_latents(latents)
        return jnp.clip(self._decode(self.unnormalise(latents), chunk, split), -1, 1)

    def moments(self, video: Pixels) -> tuple[Latents, Latents]:
        """Mean and log variance (clipped to [-30, 20]) of the unnormalised latents of whole clips."""
        return self._encode(video, None, None)

    def reconstruct(self, z: Latents) -> Pixels:
        """Whole clips, not clipped to [-1, 1], of unnormalised latents."""
        return self._decode(z, None, None)

    def _encode(self, video: Array, chunk: int | None, split: Split | None) -> tuple[Array, Array]:
        self.check_video(video)
        frames = None if chunk is None else chunk * self.config.temporal_factor
        return self.posterior(in_chunks(self.encoder, self.shuffle(video), frames, split))

    def _decode(self, z: Array, chunk: int | None, split: Split | None) -> Array:
        self.check_latents(z)
        return self.unshuffle(in_chunks(self.decoder, self.post_quant_conv.apply(z), chunk, split))

    def posterior(self, features: Array) -> tuple[Array, Array]:
        """Mean and log variance from the encoder's outcome."""
        mean, log_variance = jnp.split(self.quant_conv.apply(features), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)

    def shuffle(self, video: Array) -> Array:
        """Squares of `patch_size` pixels become channels."""
        p = self.config.patch_size
        return rearrange(video, "b f (h p) (w q) c -> b f h w (c q p)", p=p, q=p)

    def unshuffle(self, x: Array) -> Array:
        """The inverse of `shuffle`."""
        p = self.config.patch_size
        return rearrange(x, "b f h w (c q p) -> b f (h p) (w q) c", p=p, q=p)

    def normalise(self, mean: Latents) -> Latents:
        """By the statistics of the release."""
        return (mean - self._statistic("latents_mean", mean)) / self._statistic("latents_std", mean)

    def unnormalise(self, latents: Latents) -> Latents:
        """The inverse of `normalise`."""
        return latents * self._statistic("latents_std", latents) + self._statistic("latents_mean", latents)

    def _statistic(self, name: str, like: Array) -> Array:
        return jnp.asarray(getattr(self.config, name), like.dtype)[None, None, None, None]

    def check_latents(self, latents: Array) -> None:
        """Raises ValueError where the channels are not those of this VAE."""
        if latents.shape[-1] != self.config.z_dim:
            raise ValueError(f"latents have {latents.shape[-1]} channels; this VAE has {self.config.z_dim}")

    def check_video(self, video: Array) -> None:
        """Raises ValueError where frames, height or width are no whole number of latents."""
        self.config.latent_frames(video.shape[1])
        factor = self.config.spatial_factor
        for name, size in zip(("height", "width"), video.shape[2:4], strict=True):
            if size % factor or size == 0:
                lower = max(size // factor * factor, factor)
                raise ValueError(
                    f"{name} is {size}; it must be a multiple of {factor}, such as {lower} or {lower + factor}"
                )


def in_chunks(
    coder: Callable[..., tuple[Array, Caches]], x: Array, chunk: int | None, split: Split | None = None
) -> Array:
    """`coder` on a clip: whole, or the first frame and then `chunk` frames at a time with its caches carried.

    It is an encoder, a decoder, or a part of one: coder(frames, caches, split) -> (what becomes of them, new caches).

    All chunks of one size run in one compiled loop, so compile time does not grow with length.
    """
    if chunk is None or x.shape[1] == 1:
        return coder(x, None, split)[0]
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1, or None for the whole clip")
    first, caches = coder(x[:, :1], None, split)
    steps, remainder = divmod(x.shape[1] - 1, chunk)

    def step(caches: Caches, index: Array) -> tuple[Caches, Array]:
        y, caches = coder(jax.lax.dynamic_slice_in_dim(x, 1 + index * chunk, chunk, axis=1), caches, split)
        return caches, y

    parts = [first]
    if steps:
        caches, middle = jax.lax.scan(step, caches, jnp.arange(steps))
        parts.append(rearrange(middle, "n b f h w c -> b (n f) h w c"))
    if remainder:
        parts.append(coder(x[:, x.shape[1] - remainder :], caches, split)[0])
    return jnp.concatenate(parts, axis=1)
