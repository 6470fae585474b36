"""Coding divided over eight devices against coding on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.models.vae import VAEConfig, WanVAE, decode_on_mesh, encode_on_mesh
from kaleido_jax.testing import relative_error

WAN_2_1 = VAEConfig(
    z_dim=3, base_dim=6, decoder_base_dim=6, dim_mult=(1, 2), num_res_blocks=1, temporal_downsample=(True,),
    patch_size=1, residual=False, latents_mean=(0.3, -0.2, 0.1), latents_std=(0.7, 1.6, 1.1),
)  # fmt: skip
WAN_2_2 = dataclasses.replace(WAN_2_1, decoder_base_dim=10, dim_mult=(2, 2), patch_size=2, residual=True)
LIMIT = 1e-5  # the project's


def mesh(*sizes: int) -> Mesh:
    return Mesh(np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), ("data", "space")[-len(sizes) :])


def random_vae(config: VAEConfig):
    """The graph, and weights of which none is zero."""
    random = np.random.default_rng(0)
    graph, shapes = abstract(lambda: WanVAE(config, nnx.Rngs(0)))
    draw = lambda leaf: random.standard_normal(leaf.shape) * max(np.prod(leaf.shape[:-1]), 16) ** -0.5
    return graph, {name: jnp.asarray(draw(leaf), jnp.float32) for name, leaf in shapes.items()}


@pytest.mark.parametrize(
    ("config", "shape", "devices", "side", "divided"),
    [
        # Two latents a device, which is as few as a convolution of stride 2 can be given; time in chunks.
        (WAN_2_1, (1, 3, 5, 16), mesh(8), None, 3),
        # The height, over an axis of a mesh with another one.
        (WAN_2_2, (2, 2, 8, 12), mesh(2, 4), "height", 2),
    ],
)
def test_codes_on_eight_devices_what_it_codes_on_one(config, shape, devices, side, divided):
    graph, values = random_vae(config)
    factor = config.spatial_factor
    latents = np.random.default_rng(1).standard_normal((*shape, 3)).astype(np.float32)
    frames = config.temporal_factor * (shape[1] - 1) + 1
    video = np.random.default_rng(2).uniform(-1, 1, (shape[0], frames, shape[2] * factor, shape[3] * factor, 3))
    video = video.astype(np.float32)

    @jax.jit
    def one(values, latents, video):
        vae = merge(graph, values)
        return vae.decode(latents), vae.encode(video)

    @jax.jit
    def many(values, latents, video):
        vae = merge(graph, values)
        options = {"mesh": devices, "axis": "space", "side": side}
        return decode_on_mesh(vae, latents, **options), encode_on_mesh(vae, video, **options)

    decoded, encoded = many(values, latents, video)
    expected = one(values, latents, video)
    assert np.mean(np.abs(np.asarray(expected[0])) == 1) < 0.2  # clipping hides errors
    assert relative_error(decoded, expected[0]) < LIMIT
    assert relative_error(encoded, expected[1]) < LIMIT
    part = NamedSharding(devices, PartitionSpec(*[None] * divided, "space"))
    assert decoded.sharding.is_equivalent_to(part, 5) and encoded.sharding.is_equivalent_to(part, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": "width"}, "axis is 'width'; expected one of the mesh's, space"),
        ({}, "height is 9 latents and width is 12 latents; expected a multiple of the 8 devices of the mesh axis 'sp"),
        ({"side": "height"}, "height is 9 latents; expected a multiple of the 8 devices"),
    ],
)
def test_refuses_pictures_that_do_not_divide(options, message):
    vae = nnx.eval_shape(lambda: WanVAE(WAN_2_1, nnx.Rngs(0)))
    options = {"axis": "space", **options}
    with pytest.raises(ValueError, match=message):
        decode_on_mesh(vae, jnp.zeros((1, 1, 9, 12, 3)), mesh(8), **options)
    with pytest.raises(ValueError, match=message):
        encode_on_mesh(vae, jnp.zeros((1, 1, 18, 24, 3)), mesh(8), **options)
