"""tools/turn_latents.py: new axes of a VAE's latents leave what it encodes and decodes as it is."""

import dataclasses
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.bundle import abstract, merge, parameters
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.testing.tolerance import relative_error

TOOLS = pathlib.Path(__file__).resolve().parents[3] / "tools"


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield importlib.import_module("turn_latents")


def tiny(seed: int) -> WanVAE:
    """Random weights everywhere; what does not depend on the latents is zero before the decoder's padded layer."""
    config = dataclasses.replace(
        VAEConfig.miniature(), z_dim=4, base_dim=4, decoder_base_dim=4, dim_mult=(1, 1), temporal_downsample=(True,),
        latents_mean=(0.0,) * 4, latents_std=(0.5, 2.0, 1.0, 3.0),
    )  # fmt: skip
    graph, shapes = abstract(lambda: WanVAE(config, nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    values = {name: 0.3 * rng.standard_normal(x.shape, np.float32) for name, x in shapes.items()}
    values["post_quant_conv.bias"] = np.zeros(4, np.float32)
    return merge(graph, jax.tree.map(jnp.asarray, values))


def test_axes_weigh_equally_in_pixels_and_are_those_of_the_variance(tool):
    """The metric becomes a multiple of the identity, the covariance diagonal; one axis held nothing."""
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((5000, 3)) @ rng.standard_normal((3, 4)) + 1.5
    root = rng.standard_normal((4, 4))
    metric = root @ root.T
    there, back, variances = tool.axes(latents, metric)
    assert there.shape == (4, 3) and back.shape == (3, 4)
    centred = latents - latents.mean(0)
    np.testing.assert_allclose(centred @ there @ back, centred, atol=1e-9)
    turned = back @ metric @ back.T
    np.testing.assert_allclose(turned, turned[0, 0] * np.eye(3), atol=1e-9 * turned[0, 0])
    np.testing.assert_allclose(np.cov((latents @ there).T), np.diag(variances), atol=1e-9)
    assert variances.mean() == pytest.approx(1) and (np.diff(variances) <= 0).all()


def test_the_turned_vae_encodes_to_turned_latents_and_decodes_the_same(tool):
    """float32 through a few layers; with fewer axes than channels, latents of the remaining directions."""
    vae = tiny(1)
    rng = np.random.default_rng(2)
    there = np.linalg.qr(rng.standard_normal((4, 3)))[0] * [2.0, 1.0, 0.5]
    back = np.linalg.pinv(there)
    clip = jnp.asarray(rng.uniform(-1, 1, (1, 5, 16, 16, 3)), jnp.float32)
    latents = jnp.asarray(rng.standard_normal((1, 3, 4, 4, 3)), jnp.float32)
    result = tool.turned(vae, there, back, np.zeros(4))
    assert result.config.z_dim == 3 and result.config.latents_std == (1.0,) * 3
    assert relative_error(result.encode(clip), np.asarray(vae.encode(clip)) @ there) < 1e-5
    offset = tool.turned(vae, there, back, np.full(4, 0.7))
    assert relative_error(offset.encode(clip), (np.asarray(vae.encode(clip)) - 0.7) @ there) < 1e-5
    assert (
        relative_error(result.decode(latents), vae.decode(jnp.asarray(np.asarray(latents) @ back, jnp.float32))) < 1e-5
    )


def test_sensitivity_is_the_squared_change_of_pixels(tool):
    """Against differences, summed over all latents: the estimate by random signs is unbiased, so many are averaged."""
    vae = tiny(3)
    z = np.random.default_rng(4).standard_normal((1, 2, 2, 4)).astype(np.float32) * 0.1
    found = tool.sensitivity(vae, np.repeat(z[None, 0], 400, axis=0).reshape(400, 1, 2, 2, 4)) / 400
    graph, values = nnx.split(vae)[0], parameters(vae)
    decode = jax.jit(lambda z: merge(graph, values).reconstruct(merge(graph, values).unnormalise(z)))
    jacobian = jax.jacrev(lambda z: decode(z[None])[0])(z).reshape(-1, 4, 4)  # pixels, places, channels
    expected = np.einsum("pli,plj->ij", jacobian, jacobian)
    assert relative_error(found, expected) < 0.2
