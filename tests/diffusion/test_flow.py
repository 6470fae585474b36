"""Noising, times, shifts and the loss: closed forms, statistics, and diffusers' own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_jax.diffusion import flow


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_path_and_velocity():
    clean, noise = normal(0, 3, 4, 5), normal(1, 3, 4, 5)
    times = jnp.asarray([0.0, 1.0, 0.3])[:, None, None]
    noisy, velocity = flow.add_noise(clean, noise, times), flow.velocity_target(clean, noise)
    np.testing.assert_array_equal(noisy[0], clean[0])
    np.testing.assert_array_equal(noisy[1], noise[1])
    # dx/dt by differentiation of the path itself.
    tangent = jax.jvp(lambda t: flow.add_noise(clean, noise, t), (times,), (jnp.ones_like(times),))[1]
    np.testing.assert_allclose(tangent, velocity, atol=1e-6)
    np.testing.assert_allclose(flow.clean_estimate(noisy, velocity, times), clean, atol=1e-6)


def test_times_may_differ_by_token():
    clean, noise, times = normal(0, 2, 6, 3), normal(1, 2, 6, 3), jax.random.uniform(jax.random.key(2), (2, 6, 1))
    noisy = np.asarray(flow.add_noise(clean, noise, times))
    for b in range(2):
        for n in range(6):
            t = float(times[b, n, 0])
            np.testing.assert_allclose(noisy[b, n], (1 - t) * clean[b, n] + t * noise[b, n], atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
def test_shift_equals_diffusers(shift):
    base = np.linspace(1.0, 0.01, 30)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=base)
    np.testing.assert_allclose(flow.shift_times(base, shift), scheduler.sigmas.numpy()[:-1], rtol=1e-6)


@pytest.mark.parametrize("tokens", [1, 256, 1000, 1560, 4096, 20000])
def test_resolution_shift_equals_diffusers(tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    base = np.linspace(1.0, 0.01, 30)
    scheduler.set_timesteps(sigmas=base, mu=calculate_shift(tokens))
    ours = flow.shift_times(base, flow.resolution_shift(tokens))
    np.testing.assert_allclose(ours, scheduler.sigmas.numpy()[:-1], rtol=1e-6)


def test_resolution_shift_needs_tokens():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        flow.resolution_shift(0)


@settings(max_examples=80, deadline=None)
@given(st.floats(0.05, 20), st.floats(0.05, 20), st.floats(0, 1))
def test_shift_is_a_monotone_group(first, second, time):
    assert flow.shift_times(0.0, first) == 0 and flow.shift_times(1.0, first) == pytest.approx(1)
    once = flow.shift_times(flow.shift_times(time, first), second)
    assert once == pytest.approx(flow.shift_times(time, first * second), abs=1e-12)
    assert flow.shift_times(flow.shift_times(time, first), 1 / first) == pytest.approx(time, abs=1e-12)
    if 0 < time < 1 and first < second:
        assert flow.shift_times(time, first) <= flow.shift_times(time, second)


def test_times_are_logit_normal_and_shifted():
    count = 20_000
    keys = flow.sample_keys(0, 0, jnp.arange(count))
    times = np.asarray(flow.sample_times(keys, mean=0.5, std=1.5, shift=3.0), np.float64)
    assert times.shape == (count, 1) and times.min() > 0 and times.max() < 1
    logits = np.log(times / (1 - times))
    # A shift adds its logarithm to the logit. Five standard errors of a sample of this size.
    assert abs(logits.mean() - (0.5 + np.log(3))) < 5 * 1.5 / np.sqrt(count)
    assert abs(logits.std() - 1.5) < 5 * 1.5 / np.sqrt(2 * count)
    skewness = np.mean(((logits - logits.mean()) / logits.std()) ** 3)
    assert abs(skewness) < 5 * np.sqrt(6 / count)


def test_a_sample_is_a_function_of_seed_step_and_index():
    whole = flow.sample_keys(3, 7, jnp.arange(8))
    part = flow.sample_keys(3, 7, jnp.arange(4, 8))
    for draw in (lambda keys: flow.sample_noise(keys, (5,)), lambda keys: flow.sample_times(keys, draws=2)):
        rows = np.asarray(draw(whole))
        np.testing.assert_array_equal(rows[4:], draw(part))
        assert len(np.unique(rows)) == rows.size
        for other in (flow.sample_keys(4, 7, jnp.arange(8)), flow.sample_keys(3, 8, jnp.arange(8))):
            assert not np.any(np.asarray(draw(other)) == rows)


def test_asynchronous_times_of_a_sample_are_independent():
    times = np.asarray(flow.sample_times(flow.sample_keys(1, 0, jnp.arange(4000)), draws=3))
    correlation = np.corrcoef(np.log(times / (1 - times)).T)
    assert np.abs(correlation[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(4000)


def test_loss_is_the_mean_over_a_segments_own_tokens():
    tokens, rng = (4, 1, 6), np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 2, 11, 3)).astype(np.float32)
    lengths = np.asarray([[4, 1, 2], [3, 0, 6]])
    weights = np.asarray([[1.0, 0.5, 2.0], [1.0, 9.0, 0.25]], np.float32)
    ours = flow.segment_loss(
        jnp.asarray(prediction), jnp.asarray(target), tokens=tokens, lengths=jnp.asarray(lengths, jnp.int32),
        weights=jnp.asarray(weights),
    ).sum(axis=1)  # fmt: skip
    for b in range(2):
        expected, start = 0.0, 0
        for s, room in enumerate(tokens):
            own = slice(start, start + lengths[b, s])
            if lengths[b, s]:
                expected += weights[b, s] * np.mean((prediction[b, own] - target[b, own]) ** 2)
            start += room
        assert float(ours[b]) == pytest.approx(expected, rel=1e-6)


def test_emphasised_tokens_count_more_in_the_mean_of_their_segment():
    prediction, target, lengths = normal(0, 1, 5, 2), normal(1, 1, 5, 2), jnp.asarray([[2, 2]], jnp.int32)
    emphasis = jnp.asarray([[1.0, 3.0, 9.0, 2.0, 2.0]])
    ours = flow.segment_loss(
        prediction, target, tokens=(3, 2), lengths=lengths, weights=jnp.asarray([[1.0, 0.5]]), emphasis=emphasis
    )
    squared = np.mean((np.asarray(prediction) - np.asarray(target)) ** 2, axis=-1)[0]
    expected = (squared[0] + 3 * squared[1]) / 4 + 0.5 * (squared[3] + squared[4]) / 2
    assert float(ours.sum()) == pytest.approx(expected, rel=1e-6)


def test_loss_does_not_see_padding_nor_its_gradient():
    target, lengths = normal(1, 1, 5, 2), jnp.asarray([[2, 0]], jnp.int32)
    loss = lambda x: flow.segment_loss(x, target, tokens=(3, 2), lengths=lengths, weights=jnp.ones((1, 2))).sum()
    gradient = jax.grad(loss)(normal(0, 1, 5, 2))
    assert np.all(gradient[0, 2:] == 0) and np.all(gradient[0, :2] != 0)


def test_loss_of_wrong_boundaries_is_refused():
    x, lengths, weights = normal(0, 1, 5, 2), jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2))
    with pytest.raises(ValueError, match="2 segments that sum to 5 tokens"):
        flow.segment_loss(x, x, tokens=(3, 3), lengths=lengths, weights=weights)
