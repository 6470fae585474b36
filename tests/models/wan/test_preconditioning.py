"""What a network with data_std predicts, against regression on samples and against the network without it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax.bundle import merge
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.models.wan.modeling import preconditioning
from kaleido_jax.testing.wan import TINY, graph, pair, plain_table

STD = (2.5, 0.3, 1.0)


def test_is_the_best_linear_share_and_leaves_the_rest_of_unit_size():
    """Least squares on 200,000 draws, whose own error is below 1 %."""
    rng = np.random.default_rng(0)
    times = np.array([[0.05, 0.5, 0.95]], np.float32)
    given, left = preconditioning(jnp.asarray(times), jnp.asarray(STD))
    for i, t in enumerate(times[0]):
        for j, std in enumerate(STD):
            x, noise = std * rng.standard_normal(200_000), rng.standard_normal(200_000)
            noisy, velocity = (1 - t) * x + t * noise, noise - x
            share = np.dot(noisy, velocity) / np.dot(noisy, noisy)
            np.testing.assert_allclose(given[0, i, j], share, atol=0.02)
            np.testing.assert_allclose(left[0, i, j], np.std(velocity - share * noisy), rtol=0.01)


def test_joins_that_share_of_the_targets_to_what_the_head_says():
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
    given, left = preconditioning(jnp.repeat(times[:, jnp.array([0, 2])], 4, axis=1), jnp.tile(jnp.asarray(STD), 4))
    targets = jnp.concatenate([tokens[:, :4], tokens[:, 8:]], axis=1)
    np.testing.assert_allclose(run(config), given * targets + left * run(plain), atol=2e-5, rtol=1e-4)
