"""The VAE of pictures against diffusers' AutoencoderKL, which nobody here wrote, on random weights.

Tolerance 1e-4 (relative, 2-norm): group norms divide by the spread of whole pictures in float32, block after block.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.models.image_vae import ImageVAE, ImageVAEConfig, decode_tiled
from kaleido_jax.models.image_vae import params as vae_params
from kaleido_jax.testing import randomise, relative_error, state

# Odd sizes: stages that keep their channels and one that does not, a picture that is not square.
CONFIG = ImageVAEConfig(z_dim=3, channels=(6, 6, 9), num_res_blocks=1, shift=0.2, scale=0.7, groups=3)
TOLERANCE = 1e-4


def peer(config: ImageVAEConfig) -> AutoencoderKL:
    return AutoencoderKL(**{k: v for k, v in vae_params.config_document(config, "diffusers").items() if k[0] != "_"})


@pytest.fixture(scope="module")
def pair():
    model = randomise(peer(CONFIG))
    parameters = {k: jnp.asarray(x) for k, x in vae_params.FAMILY.from_torch(state(model), CONFIG).items()}
    return model, merge(abstract(lambda: ImageVAE(CONFIG, nnx.Rngs(0)))[0], parameters)


def channels_first(x):
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))


def test_encoding_equals_diffusers(pair, record_property):
    model, ours = pair
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 12, 20, 3)).astype(np.float32)
    with torch.no_grad():
        moments = model.encode(channels_first(pixels)).latent_dist
        mean, spread = moments.mean, moments.logvar
        normalised = (mean - model.config.shift_factor) * model.config.scaling_factor
    (our_mean, our_spread), latents = jax.jit(lambda x: (ours.moments(x), ours.encode(x)))(jnp.asarray(pixels))
    errors = [relative_error(channels_first(a), b) for a, b in ((our_mean, mean), (latents, normalised))]
    record_property("relative_error", max(errors))
    assert max(errors) <= TOLERANCE
    # diffusers clips the log variance to [-30, 20], far outside of what is seen.
    assert relative_error(channels_first(our_spread), spread) <= TOLERANCE


def test_decoding_equals_diffusers(pair, record_property):
    model, ours = pair
    latents = np.random.default_rng(1).standard_normal((2, 3, 5, CONFIG.z_dim)).astype(np.float32)
    with torch.no_grad():
        expected = model.decode(channels_first(latents) / CONFIG.scale + CONFIG.shift).sample
    assert 0.2 < (expected.abs() < 1).float().mean() < 0.99  # most values are compared, and some are clipped
    actual = jax.jit(lambda x: ours.decode(x))(jnp.asarray(latents))
    error = relative_error(channels_first(actual), expected.clip(-1, 1))
    record_property("relative_error", error)
    assert error <= TOLERANCE


def test_decoding_in_tiles(pair, record_property):
    """One tile is the picture; several are no further off than diffusers' tiles of the same size, by half at most."""
    model, ours = pair
    latents = np.random.default_rng(1).standard_normal((1, 20, 28, CONFIG.z_dim)).astype(np.float32)
    run = jax.jit(lambda x: (ours.decode(x), decode_tiled(ours, x, tile=28), decode_tiled(ours, x, tile=16, overlap=4)))
    whole, one, several = run(jnp.asarray(latents))
    assert relative_error(one, whole) < 1e-5
    with torch.no_grad():
        raw = channels_first(latents) / CONFIG.scale + CONFIG.shift
        theirs = model.decode(raw).sample.clip(-1, 1)
        model.enable_tiling()
        model.tile_latent_min_size, model.tile_sample_min_size = 16, 16 * CONFIG.spatial_factor
        theirs_tiled = model.decode(raw).sample.clip(-1, 1)
        model.disable_tiling()
    error, their_error = relative_error(several, whole), relative_error(theirs_tiled, theirs)
    record_property("relative_error", (error, their_error))
    assert 0 < error < 1.5 * their_error
    with pytest.raises(ValueError, match="overlap is 4; expected 0 to 3, for tiles of 4 latents"):
        decode_tiled(ours, jnp.asarray(latents), tile=4, overlap=4)


def test_names_and_shapes_of_diffusers_at_full_size():
    config = ImageVAEConfig.flux()
    with torch.device("meta"):
        theirs = {name: tuple(x.shape) for name, x in peer(config).state_dict().items()}
    assert vae_params.FAMILY.torch_shapes(config, "diffusers") == theirs
    for layout in ("diffusers", "original"):
        shapes = vae_params.FAMILY.torch_shapes(config, layout)
        assert vae_params.config_from(shapes, layout, vae_params.config_document(config, layout)) == config


def test_names_and_shapes_of_the_original_at_full_size():
    """Written from the description of the release: latent diffusion's names, up.0 the finest stage, no quant_conv."""
    channels, shapes = (128, 256, 512, 512), {}

    def convolution(name, n_in, n_out, size=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_out, n_in, size, size), (n_out,)

    def norm(name, n):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (n,)

    def block(name, n_in, n_out):
        norm(f"{name}.norm1", n_in)
        convolution(f"{name}.conv1", n_in, n_out)
        norm(f"{name}.norm2", n_out)
        convolution(f"{name}.conv2", n_out, n_out)
        if n_in != n_out:
            convolution(f"{name}.nin_shortcut", n_in, n_out, 1)

    for coder, n_in, n_out in (("encoder", 3, 32), ("decoder", 16, 3)):
        convolution(f"{coder}.conv_in", n_in, 128 if coder == "encoder" else 512)
        convolution(f"{coder}.conv_out", 512 if coder == "encoder" else 128, n_out)
        norm(f"{coder}.norm_out", 512 if coder == "encoder" else 128)
        for which in (1, 2):
            block(f"{coder}.mid.block_{which}", 512, 512)
        norm(f"{coder}.mid.attn_1.norm", 512)
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{coder}.mid.attn_1.{part}", 512, 512, 1)
    for i in range(4):
        for j in range(2):
            block(f"encoder.down.{i}.block.{j}", channels[max(i - 1, 0)] if j == 0 else channels[i], channels[i])
        for j in range(3):
            block(f"decoder.up.{i}.block.{j}", channels[min(i + 1, 3)] if j == 0 else channels[i], channels[i])
    for i in range(3):
        convolution(f"encoder.down.{i}.downsample.conv", channels[i], channels[i])
        convolution(f"decoder.up.{i + 1}.upsample.conv", channels[i + 1], channels[i + 1])
    assert vae_params.FAMILY.torch_shapes(ImageVAEConfig.flux(), "original") == shapes
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 83_819_683


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_there_and_back_is_bitwise(layout):
    r = np.random.default_rng(2)
    shapes = vae_params.FAMILY.abstract_parameters(CONFIG)
    ours = {name: r.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}
    tensors = vae_params.FAMILY.to_torch(ours, CONFIG, layout)
    assert {name: x.shape for name, x in tensors.items()} == vae_params.FAMILY.torch_shapes(CONFIG, layout)
    back = vae_params.FAMILY.from_torch(tensors, CONFIG, layout)
    assert back.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(back[name], ours[name])
    document = vae_params.config_document(CONFIG, "diffusers")
    assert vae_params.config_from({k: x.shape for k, x in tensors.items()}, layout, document) == CONFIG


def test_diffusers_own_conversion_of_the_original_agrees():
    r = np.random.default_rng(3)
    shapes = vae_params.FAMILY.abstract_parameters(CONFIG)
    ours = {name: r.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}
    original = {name: torch.from_numpy(x) for name, x in vae_params.FAMILY.to_torch(ours, CONFIG, "original").items()}
    converted = convert_ldm_vae_checkpoint(original, vae_params.config_document(CONFIG, "diffusers"))
    expected = vae_params.FAMILY.to_torch(ours, CONFIG, "diffusers")
    assert converted.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(converted[name].numpy(), x)


def test_bad_input_is_an_error_that_names_it(pair):
    with pytest.raises(ValueError, match="width of the picture is 18; it must be divisible by 4"):
        pair[1].encode(jnp.zeros((1, 12, 18, 3)))
    with pytest.raises(ValueError, match=r"channels is \(6, 6, 9\); expected positive multiples of the 2 groups"):
        dataclasses.replace(CONFIG, groups=2)
    with pytest.raises(ValueError, match="z_dim is 0; expected a positive integer"):
        dataclasses.replace(CONFIG, z_dim=0)
    with pytest.raises(ValueError, match="scale is 0"):
        dataclasses.replace(CONFIG, scale=0.0)
