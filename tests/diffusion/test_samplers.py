"""Samplers: against diffusers' schedulers, against the papers' formulas in float64, and their own properties."""

from fractions import Fraction

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_jax.diffusion import samplers
from kaleido_jax.diffusion.samplers import SAMPLERS, Steps

WIDTH = 7


def random_velocity(seed: int):
    """A smooth nonlinear velocity field of random weights that depends on time, on numpy arrays."""
    rng = np.random.default_rng(seed)
    first, second, phase = rng.normal(size=(WIDTH, WIDTH)), rng.normal(size=(WIDTH, WIDTH)), rng.normal(size=WIDTH)
    return lambda x, t: np.tanh(x @ first + phase * 3 * t) @ second + (1 + t) * x


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def trajectory(velocity, noise: np.ndarray, steps: Steps) -> list[np.ndarray]:
    """x after every step, in the float64 of numpy."""
    state, result = samplers.start(noise), []
    for index in range(len(steps.time)):
        row = Steps(*(column[index] for column in steps))
        state = samplers.advance(state, velocity(state.x, row.time), row)
        result.append(state.x)
    return result


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def diffusers_scheduler(name: str, count: int, shift: float):
    if name == "euler":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, count + 1)[:-1])
        return scheduler
    kind = {
        "unipc_diffusers": diffusers.UniPCMultistepScheduler,
        "dpmpp_2m_diffusers": diffusers.DPMSolverMultistepScheduler,
    }[name]
    scheduler = kind(flow_shift=shift, **FLOW)
    scheduler.set_timesteps(count)
    return scheduler


# numpy's complaint about torch comes from the constructor of diffusers' DPM-Solver.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 14, 15, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 7.0])
@pytest.mark.parametrize("name", ["euler", "unipc_diffusers", "dpmpp_2m_diffusers"])
def test_every_step_equals_diffusers(name, shift, count):
    scheduler = diffusers_scheduler(name, count, shift)
    steps = SAMPLERS[name](count, shift)
    velocity, noise = random_velocity(count), np.random.default_rng(1).normal(size=(2, WIDTH))
    theirs, worst = torch.from_numpy(noise), 0.0
    times = scheduler.timesteps.numpy().astype(np.float64) / 1000
    np.testing.assert_allclose(steps.time, times, rtol=0, atol=2e-7)
    np.testing.assert_allclose(np.append(steps.sigma, 0), scheduler.sigmas.numpy(), rtol=0, atol=2e-7)
    for index, ours in enumerate(trajectory(velocity, noise, steps)):
        output = torch.from_numpy(velocity(theirs.numpy(), times[index]))
        theirs = scheduler.step(output, scheduler.timesteps[index], theirs, return_dict=False)[0]
        worst = max(worst, relative_error(ours, theirs.numpy()))
    print(f"relative error {worst:.1e}")
    # Their coefficients are float32 (6e-8 each), ours float64: the errors of up to 50 steps add up, seen up to 7e-7.
    assert worst <= 2e-6


def shifted(times, shift: float) -> np.ndarray:
    return np.asarray([shift * t / (1 + (shift - 1) * t) for t in times])


def log_snr(sigma: float) -> float:
    return np.log((1 - sigma) / sigma) if sigma < 1 else -np.inf


def exponential_integral(nodes: list[float], values: list[np.ndarray], start: float, end: float) -> np.ndarray:
    """The integral of e^lambda p(lambda) over [start, end], p the polynomial through (nodes, values), by quadrature."""
    points, weights = np.polynomial.legendre.leggauss(60)
    points = start + (end - start) * (points + 1) / 2
    weights = weights * (end - start) / 2 * np.exp(points)
    total = np.zeros_like(values[0])
    for i, node in enumerate(nodes):
        basis = np.prod([(points - other) / (node - other) for j, other in enumerate(nodes) if j != i], axis=0)
        total = total + np.sum(weights * basis) * values[i]
    return total


def reference_multistep(velocity, noise, sigmas, times, *, corrector: bool) -> list[np.ndarray]:
    """UniPC-2 or DPM-Solver++ 2M from the papers, in float64, sharing no formula with the code under test.

    Both discretise the exact solution in lambda = log(alpha / sigma) (arXiv 2211.01095, equation 8):
    x(t) = sigma_t / sigma_s x(s) + sigma_t * integral of e^lambda x_0(lambda) from lambda_s to lambda_t.
    Predictor (algorithm 2 there): x_0 is the constant (1 + 1/2r) m_k - 1/2r m_(k-1). Corrector of order 2 (arXiv
    2302.04867, theorem 3.1): its conditions say that the integral is exact for quadratics, so it is that of the
    parabola through three estimates; of order 1 it takes x_0 as the mean of the two (their a_1 = 1/2).
    """
    sigmas = [float(sigma) for sigma in sigmas]
    x, result, base, estimates, lambdas = noise, [], None, [], []

    def advance(x, sigma, sigma_next, constant):
        return sigma_next / sigma * x + ((1 - sigma_next) - sigma_next * (1 - sigma) / sigma) * constant

    for k, sigma in enumerate(sigmas):
        estimates.append(x - sigma * velocity(x, times[k]))
        lambdas.append(log_snr(sigma))
        if corrector and k == 1:
            x = advance(base, sigmas[0], sigma, (estimates[0] + estimates[1]) / 2)
        elif corrector and k > 1:
            integral = exponential_integral(lambdas[-3:], estimates[-3:], lambdas[-2], lambdas[-1])
            x = sigma / sigmas[k - 1] * base + sigma * integral
        base = x
        if k == len(sigmas) - 1:
            x = estimates[-1]
        else:
            constant = estimates[-1]
            if k > 0:
                r = (lambdas[-1] - lambdas[-2]) / (log_snr(sigmas[k + 1]) - lambdas[-1])
                constant = (1 + 1 / (2 * r)) * estimates[-1] - 1 / (2 * r) * estimates[-2]
            x = advance(base, sigma, sigmas[k + 1], constant)
        result.append(x)
    return result


@pytest.mark.parametrize(("count", "shift"), [(1, 5.0), (2, 5.0), (3, 1.0), (20, 8.0), (40, 3.0), (50, 5.0)])
@pytest.mark.parametrize(("name", "first"), [("unipc_wan", 0.999), ("dpmpp_2m_wan", 1.0)])
def test_official_samplers_equal_the_papers(name, first, count, shift):
    exact = shifted(np.linspace(first, 0, count + 1)[:-1], shift)
    times = np.floor(exact * 1000) / 1000
    sigmas = exact.astype(np.float32).astype(np.float64)  # the official code keeps them so
    velocity, noise = random_velocity(count), np.random.default_rng(2).normal(size=(2, WIDTH))
    ours = trajectory(velocity, noise, SAMPLERS[name](count, shift))
    theirs = reference_multistep(velocity, noise, sigmas, times, corrector=name == "unipc_wan")
    worst = max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True))
    print(f"relative error {worst:.1e}")
    # Both are float64; the 2 x 2 systems and 1 - sigma near sigma = 1 lose some digits. Seen up to 2e-14.
    assert worst <= 1e-12


@pytest.mark.parametrize(
    ("name", "count", "shift", "first", "last"),
    [
        ("unipc_wan", 50, 5, Fraction(999, 1000), 0),
        ("unipc_wan", 40, 3, Fraction(999, 1000), 0),
        ("dpmpp_2m_wan", 50, 5, 1, 0),
        ("unipc_diffusers", 50, 5, 1, Fraction(1, 1000)),
        ("dpmpp_2m_diffusers", 50, 3, Fraction(999, 1000), 0),
        ("euler", 50, 7, 1, 0),
    ],
)
def test_schedules_in_exact_fractions(name, count, shift, first, last):
    grid = [first + (last - first) * Fraction(k, count) for k in range(count)]
    sigmas = [shift * t / (1 + (shift - 1) * t) for t in grid]
    steps = SAMPLERS[name](count, float(shift))
    exact = np.asarray([float(sigma) for sigma in sigmas])
    np.testing.assert_allclose(steps.sigma, exact, rtol=0, atol=2e-6)  # float32, and diffusers' 1e-6 off the first
    # Truncation may fall either way where a time is a whole number up to float64's rounding.
    whole = np.abs(exact * 1000 - np.round(exact * 1000)) < 1e-3
    times = exact if name == "euler" else np.asarray([int(1000 * sigma) / 1000 for sigma in sigmas])
    np.testing.assert_allclose(steps.time[~whole], times[~whole], rtol=0, atol=1e-12)
    np.testing.assert_allclose(steps.time, times, rtol=0, atol=1.001e-3)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLERS)),
    count=st.integers(1, 60),
    shift=st.floats(0.2, 30.0),
    ends=st.tuples(*[st.floats(-100, 100)] * 4),
)
def test_exact_on_constant_velocity(name, count, shift, ends):
    """Along a straight path the clean estimate never changes, so that no sampler has anything to get wrong."""
    noise, velocity = np.asarray(ends[:2]), np.asarray(ends[2:])
    steps = SAMPLERS[name](count, shift)
    result = samplers.sample(lambda x, t: velocity, noise, steps)
    np.testing.assert_allclose(result, noise - steps.sigma[0] * velocity, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SAMPLERS)),
    count=st.integers(1, 60),
    shifts=st.tuples(st.floats(0.2, 30.0), st.floats(0.2, 30.0)),
)
def test_schedules_fall_and_rise_with_the_shift(name, count, shifts):
    low, high = sorted(shifts)
    below, above = SAMPLERS[name](count, low), SAMPLERS[name](count, high)
    for steps in (below, above):
        assert np.all(steps.delta < 0) and steps.sigma[0] <= 1 + 1e-12 and steps.sigma[-1] > 0
        assert np.isclose(steps.sigma[0] + steps.delta.sum(), 0, atol=1e-12)
        assert all(np.isfinite(column).all() for column in steps)
    assert np.all(above.sigma >= below.sigma - 1e-7)
    assert np.all(above.time >= below.time - 1e-12)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("dpmpp_2m", 2), ("unipc", 3)])
def test_order_of_convergence(method, order):
    """Twice the steps, 2^order less error, on a grid that gets finer everywhere.

    (The schedules in use do not: their last two steps always halve the noise, whatever the number of steps.) The field
    does not depend on the time, which the official samplers truncate.
    """
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(WIDTH, WIDTH)) / 2
    velocity = lambda x, t: np.tanh(x @ weights) + 0.3 * x
    noise = rng.normal(size=(1, WIDTH))

    def runge_kutta(x, time, count=1000):
        h = -time / count
        for _ in range(count):
            k1 = velocity(x, 0)
            k2 = velocity(x + h / 2 * k1, 0)
            k3 = velocity(x + h / 2 * k2, 0)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(x + h * k3, 0))
        return x

    errors = []
    for count in (10, 20, 40, 80):
        if method == "euler":
            steps = samplers.euler(count, 3.0)
            exact = runge_kutta(noise, 1.0)
        else:
            sigmas = 1 / (1 + np.exp(np.linspace(-2, 2, count + 1)))
            steps = samplers._multistep(sigmas, corrector=method == "unipc")
            exact = runge_kutta(noise, steps.sigma[0] - steps.sigma[-1])
        errors.append(relative_error(trajectory(velocity, noise, steps)[count - 1], exact))
    slopes = np.log2(np.asarray(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(slopes, order, atol=0.2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_loop_and_scan_agree(name):
    weights = jnp.asarray(np.random.default_rng(6).normal(size=(WIDTH, WIDTH)), jnp.float32)
    velocity = lambda x, t: jnp.tanh(x @ weights) * (1 + t)
    noise = jax.random.normal(jax.random.key(0), (2, WIDTH))
    steps = SAMPLERS[name](9)
    seen = []
    loop = samplers.sample(velocity, noise, steps, progress=lambda done, total: seen.append((done, total)))
    scan = jax.jit(lambda noise: samplers.sample_scan(velocity, noise, steps))(noise)
    assert seen == [(k, 9) for k in range(1, 10)]
    assert loop.dtype == scan.dtype == jnp.float32
    # float32 sums in another order, nine steps of them.
    assert relative_error(loop, scan) <= 1e-6


def test_a_velocity_in_bfloat16_keeps_the_state_in_float32():
    noise = jax.random.normal(jax.random.key(1), (2, WIDTH))
    result = samplers.sample(lambda x, t: x.astype(jnp.bfloat16), noise, samplers.unipc_wan(4))
    assert result.dtype == jnp.float32


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("count", "shift", "message"), [(0, 5.0, "steps .* 0"), (5, 0.0, "shift .* 0"), (5, -1.0, "-1")]
)
def test_impossible_arguments_are_named(name, count, shift, message):
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name](count, shift)
