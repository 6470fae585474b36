"""What a network with data_std predicts, against the flow it is to follow and against the network without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax.bundle import merge
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.models.wan.modeling import SMALLEST_TIME, velocity_towards
from kaleido_jax.testing.wan import TINY, graph, pair, plain_table

STD = (2.5, 0.3, 1.0)


def test_is_the_flows_velocity_where_the_clean_latent_is_right():
    """One rounding of float32 in each operation; at t = 0.01 the division is by SMALLEST_TIME, at 0 the noise is 0."""
    rng = np.random.default_rng(0)
    clean, noise = rng.standard_normal((2, 1, 3, 5)).astype(np.float32)
    times = jnp.asarray([[0.01, 0.3, 1.0]], jnp.float32)
    noisy = jnp.asarray((1 - times[..., None]) * clean + times[..., None] * noise)
    velocity = velocity_towards(jnp.asarray(clean), noisy, times)
    shrunk = np.array([0.01 / SMALLEST_TIME, 1.0, 1.0], np.float32)[None, :, None]
    np.testing.assert_allclose(velocity, shrunk * (noise - clean), atol=2e-5)
    still = velocity_towards(jnp.asarray(clean), jnp.asarray(noise), 0 * times)
    np.testing.assert_array_equal(still, -clean)


def test_what_the_head_says_is_the_targets_clean_latent():
    """Each target segment by its own time; references have no part in it."""
    plain = dataclasses.replace(TINY, in_channels=3, out_channels=3, patch=(1, 2, 2))
    config = dataclasses.replace(plain, data_std=STD)
    _, parameters = pair(plain)
    video, reference = Segment(kind="video", grid=(1, 2, 2)), Segment(kind="reference", grid=(1, 2, 2))
    layout = TokenLayout((dataclasses.replace(video, shot=0), reference, dataclasses.replace(video, shot=1)))
    rng = np.random.default_rng(1)
    tokens = jnp.asarray(rng.standard_normal((2, 12, 12)), jnp.float32)
    text = jnp.asarray(rng.standard_normal((2, 4, plain.text_dim)), jnp.float32)
    times = jnp.asarray([[0.9, 0.0, 0.2], [0.4, 0.0, 0.7]], jnp.float32)
    table = plain_table(layout, times)
    run = lambda config: jax.jit(lambda p, x: merge(graph(config), p)(x, table, text, layout=layout))(
        parameters, tokens
    )
    clean = jnp.tile(jnp.asarray(STD), 4)[None, None] * run(plain)
    targets = jnp.concatenate([tokens[:, :4], tokens[:, 8:]], axis=1)
    expected = velocity_towards(clean, targets, jnp.repeat(times[:, jnp.array([0, 2])], 4, axis=1))
    np.testing.assert_allclose(run(config), expected, atol=2e-5, rtol=1e-4)
