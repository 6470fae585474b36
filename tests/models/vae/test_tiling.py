"""Coding in tiles against coding at once, and against what diffusers loses in tiles of the same size."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.models.vae import VAEConfig, WanVAE, decode_tiled, encode_tiled
from kaleido_jax.models.vae import params as vae_params
from kaleido_jax.models.vae.tiling import fades, starts
from kaleido_jax.testing import randomise, relative_error, state

# Two stages: what the decoder does above the latents' resolution reaches 7 latents to the side (4 convolutions there,
# 5 at twice the resolution, and one at the end).
SMALL = VAEConfig(
    z_dim=3, base_dim=8, decoder_base_dim=6, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,),
    patch_size=1, residual=False, latents_mean=(0.3, -0.2, 0.1), latents_std=(0.7, 1.6, 1.1),
)  # fmt: skip
REACH = 7
PATCHES = dataclasses.replace(SMALL, dim_mult=(2, 2), patch_size=2, residual=True)
LIMIT = 1e-5  # sums in another order


def peer(config: VAEConfig) -> diffusers.AutoencoderKLWan:
    """diffusers' class of the same sizes, with random weights and pixels that are not clipped."""
    pixels = 3 * config.patch_size**2
    model = diffusers.AutoencoderKLWan(
        base_dim=config.base_dim, decoder_base_dim=config.decoder_base_dim, z_dim=config.z_dim,
        dim_mult=list(config.dim_mult), num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample), is_residual=config.residual,
        in_channels=pixels, out_channels=pixels, patch_size=None if config.patch_size == 1 else config.patch_size,
        scale_factor_spatial=config.spatial_factor, scale_factor_temporal=config.temporal_factor,
        latents_mean=list(config.latents_mean), latents_std=list(config.latents_std),
    )  # fmt: skip
    model = randomise(model)
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(0.2)
    return model


def ours(config: VAEConfig, model: diffusers.AutoencoderKLWan):
    values = vae_params.FAMILY.from_torch(state(model), config)
    graph = abstract(lambda: WanVAE(config, nnx.Rngs(0)))[0]
    return graph, {name: jnp.asarray(value) for name, value in values.items()}


def test_tiles_cover_every_place_once_in_sum():
    for length in (1, 9, 20, 21, 33, 60, 104):
        for tile, overlap in ((20, 0), (20, 5), (20, 15), (8, 3)):
            begin = starts(length, tile, overlap)
            size = min(tile, length)
            assert begin[0] == 0 and begin[-1] + size == length
            assert all(a + size - b >= overlap for a, b in zip(begin, begin[1:]))
            total = np.zeros(length)
            for start, row in zip(begin, fades(begin, size, length)):
                assert row.min() >= 0
                total[start : start + size] += row
            np.testing.assert_allclose(total, 1, atol=1e-6)


def test_decodes_in_tiles():
    """Exact where only one tile counts and none of its inner borders is within reach; better than diffusers elsewhere.

    20 x 40 latents in two tiles of 24, the second from 16 on: they fade into each other from 16 to 24.
    """
    model = peer(SMALL)
    graph, values = ours(SMALL, model)
    z = np.random.default_rng(0).standard_normal((1, 3, 20, 40, 3)).astype(np.float32)
    assert starts(40, 24, 6) == [0, 16]

    @jax.jit
    def run(values, z):
        vae = merge(graph, values)
        return vae.decode(z), decode_tiled(vae, z, tile=24, overlap=6)

    whole, tiled = (np.asarray(x) for x in run(values, z))
    for exact in (slice(0, 2 * 16), slice(2 * 24, None)):
        assert REACH <= 24 - 16
        assert relative_error(tiled[:, :, :, exact], whole[:, :, :, exact]) < LIMIT
    assert np.all(np.any(tiled != whole, axis=(0, 1, 2, 4))[36:44])

    raw = torch.from_numpy(z * np.float32(SMALL.latents_std) + np.float32(SMALL.latents_mean)).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        theirs = model.decode(raw).sample
        model.enable_tiling(48, 48, 32, 32)
        theirs_tiled = model.decode(raw).sample
    assert relative_error(whole, theirs.permute(0, 2, 3, 4, 1)) < 1e-4
    assert relative_error(tiled, whole) < relative_error(theirs_tiled, theirs) / 3


def test_encodes_in_tiles():
    """The core reads all of the features, so that no latent is exact; diffusers' latents are further off."""
    model = peer(SMALL)
    graph, values = ours(SMALL, model)
    video = np.random.default_rng(0).uniform(-1, 1, (1, 5, 40, 80, 3)).astype(np.float32)

    @jax.jit
    def run(values, video):
        vae = merge(graph, values)
        return vae.encode(video), encode_tiled(vae, video, tile=24, overlap=6)

    whole, tiled = run(values, video)
    raw = torch.from_numpy(video).permute(0, 4, 1, 2, 3)
    with torch.no_grad():
        theirs = model.encode(raw).latent_dist.mean
        model.enable_tiling(48, 48, 32, 32)
        theirs_tiled = model.encode(raw).latent_dist.mean
    assert relative_error(tiled, whole) < relative_error(theirs_tiled, theirs) / 3


def test_patches_of_pixels_and_shortcuts_in_tiles():
    """The other family: tiles in both directions, of which the overlap hides the borders almost wholly."""
    graph, values = ours(PATCHES, peer(PATCHES))
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 18, 22, 3)), jnp.float32)

    @jax.jit
    def run(values):
        vae = merge(graph, values)
        return vae.decode(z), decode_tiled(vae, z, tile=16, overlap=6), decode_tiled(vae, z, tile=22, overlap=4)

    whole, tiled, one = run(values)
    assert relative_error(one, whole) < LIMIT
    assert relative_error(tiled, whole) < 0.02  # measured 0.005
    assert tiled.shape == (2, 3, 72, 88, 3)


def test_memory_does_not_grow_with_the_picture():
    """Four times the pixels take room for what comes out and for the core's features, and for nothing else."""
    graph, shapes = abstract(lambda: WanVAE(SMALL, nnx.Rngs(0)))

    def temporary(side: int) -> int:
        z = jax.ShapeDtypeStruct((1, 5, side, side, 3), jnp.float32)
        decode = jax.jit(lambda values, z: decode_tiled(merge(graph, values), z, tile=16, overlap=4))
        return decode.lower(shapes, z).compile().memory_analysis().temp_size_in_bytes

    pixels, features = 9 * 2 * 2 * 3, 5 * 12  # numbers for one latent of a frame
    assert temporary(64) - temporary(32) < 1.5 * 4 * (pixels + features) * (64**2 - 32**2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": -1}, "overlap is -1; expected 0 to 31, for tiles of 32 latents"),
        ({"tile": 16, "overlap": 16}, "overlap is 16; expected 0 to 15, for tiles of 16 latents"),
        ({"tile": 0}, "tile is 0; expected a positive number of latents"),
    ],
)
def test_refuses_tiles_that_are_all_overlap(options, message):
    vae = nnx.eval_shape(lambda: WanVAE(PATCHES, nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        decode_tiled(vae, jnp.zeros((1, 1, 20, 20, 3)), **options)
    with pytest.raises(ValueError, match=message):
        encode_tiled(vae, jnp.zeros((1, 1, 80, 80, 3)), **options)


def test_refuses_what_coding_at_once_refuses():
    vae = nnx.eval_shape(lambda: WanVAE(PATCHES, nnx.Rngs(0)))
    with pytest.raises(ValueError, match="latents have 4 channels; this VAE has 3"):
        decode_tiled(vae, jnp.zeros((1, 1, 20, 20, 4)))
    with pytest.raises(ValueError, match="height is 30; it must be a multiple of 4"):
        encode_tiled(vae, jnp.zeros((1, 1, 30, 20, 3)))
