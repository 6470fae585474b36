"""Samplers for the flow ODE dx/dt = v(x, t), from noise at t = 1 to a sample at t = 0.

Every sampler here is Euler's step plus multiples of how much the clean estimate x - t v changed since the step before,
so one loop serves them all, and what tells them apart is a table of numbers computed in float64 on the host:

    euler                first order, Kaleido's (50 steps, shift 7)
    unipc_wan            UniPC as in Wan's own code: starts at 0.999 before the shift, whole-number timesteps
    unipc_diffusers      UniPC as in diffusers' UniPCMultistepScheduler (use_flow_sigmas): starts at 1 - 1e-6
    dpmpp_2m_wan         DPM-Solver++ 2M as in Wan's own code: starts at 1
    dpmpp_2m_diffusers   the same as in diffusers' DPMSolverMultistepScheduler (use_flow_sigmas): starts at 0.999

Wan's code and diffusers hand the network timesteps truncated to whole numbers out of 1000 while the solver itself uses
the exact ones; the `time` column holds what the network sees.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax.diffusion.flow import shift_times
from kaleido_jax.typing import AnyArray

# v(x, t): x of any shape, t a scalar of x's dtype in [0, 1]; returns dx/dt of x's shape.
Velocity = Callable[[AnyArray, AnyArray], AnyArray]


class Steps(NamedTuple):
    """The table of a sampler. Each column is float64 [steps]; a row of it drives one step.

    With d_k the change of the clean estimate at step k:
    x <- x + correct_last * d_(k-1) + correct_this * d_k, then x <- x + delta * v + predict * d_k.
    """

    time: np.ndarray  # what the network is told, in [0, 1]
    sigma: np.ndarray  # the true time of x
    delta: np.ndarray  # the next sigma minus this one (negative)
    correct_last: np.ndarray
    correct_this: np.ndarray
    predict: np.ndarray


class State(NamedTuple):
    """What a step hands to the next: the sample, its clean estimate, and the change of the latter."""

    x: AnyArray
    clean: AnyArray
    change: AnyArray


def sample(
    velocity: Velocity, noise: AnyArray, steps: Steps, *, progress: Callable[[int, int], None] | None = None
) -> AnyArray:
    """Integrates from `noise` to a sample in a Python loop. Works on jax and on numpy arrays, in the dtype of `noise`.

    `progress(done, total)` is called after each step, when its numbers are there. Raise in it to stop.
    """
    total = len(steps.time)
    state = start(noise)
    for index in range(total):
        row = Steps(*(noise.dtype.type(column[index]) for column in steps))
        state = advance(state, velocity(state.x, row.time), row)
        if progress is not None:
            jax.block_until_ready(state.x)
            progress(index + 1, total)
    return state.x


def sample_scan(velocity: Velocity, noise: jax.Array, steps: Steps) -> jax.Array:
    """The same as `sample` in one `lax.scan`: one compiled program whatever the number of steps; call it under jit."""
    return continued(velocity, start(noise), steps).x


def continued(velocity: Velocity, state: State, steps: Steps) -> State:
    """The state after some more steps, in one `lax.scan`: for a table of steps that is gone through in parts."""

    def body(state: State, row: Steps) -> tuple[State, None]:
        return advance(state, velocity(state.x, row.time), row), None

    table = Steps(*(jnp.asarray(column, state.x.dtype) for column in steps))
    return jax.lax.scan(body, state, table)[0]


def start(noise: AnyArray) -> State:
    """The state before the first step (whose coefficients on the zeros are 0)."""
    return State(noise, 0 * noise, 0 * noise)


def advance(state: State, velocity: AnyArray, row: Steps) -> State:
    """One step, given the velocity at (state.x, row.time)."""
    velocity = velocity.astype(state.x.dtype)
    clean = state.x - row.sigma * velocity
    change = clean - state.clean
    # Moving x while the clean estimate stands moves the velocity that leads to that estimate.
    correction = row.correct_last * state.change + row.correct_this * change
    velocity = velocity + correction / row.sigma
    return State(state.x + correction + row.delta * velocity + row.predict * change, clean, change)


def euler(steps: int, shift: float = 7.0) -> Steps:
    """Euler's method on u = 1, ..., 0 in equal parts, shifted. Kaleido: 50 steps, shift 7."""
    sigmas = shift_times(np.linspace(1.0, 0.0, _checked(steps, shift) + 1), shift)
    zero = np.zeros(steps)
    return Steps(sigmas[:-1], sigmas[:-1], np.diff(sigmas), zero, zero, zero)


def unipc_wan(steps: int, shift: float = 5.0) -> Steps:
    """UniPC of order 2 (bh2, corrector at every step but the first) as in Wan's code. Wan: 50 steps, shift 5."""
    start_times = np.linspace(0.999, 0.0, _checked(steps, shift) + 1)[:-1]
    return _multistep(shift_times(start_times, shift), corrector=True)


def unipc_diffusers(steps: int, shift: float = 5.0) -> Steps:
    """UniPC of order 2 as in diffusers 0.42: times from 1 - 1e-6 down to a thousandth instead of from 0.999 to 0."""
    sigmas = shift_times(np.linspace(1.0, 1e-3, _checked(steps, shift) + 1)[:-1], shift)
    sigmas[0] -= 1e-6
    return _multistep(sigmas, corrector=True)


def dpmpp_2m_wan(steps: int, shift: float = 5.0) -> Steps:
    """DPM-Solver++ 2M (midpoint) as in Wan's code: starts at exactly 1, hence its second step is still first order."""
    return _multistep(shift_times(np.linspace(1.0, 0.0, _checked(steps, shift) + 1)[:-1], shift), corrector=False)


def dpmpp_2m_diffusers(steps: int, shift: float = 5.0) -> Steps:
    """DPM-Solver++ 2M (midpoint) as in diffusers 0.42, which starts at 0.999 before the shift."""
    start_times = 1.0 - np.linspace(1.0, 1e-3, _checked(steps, shift) + 1)
    return _multistep(np.flip(shift_times(start_times, shift))[:-1], corrector=False)


SAMPLERS: dict[str, Callable[..., Steps]] = {
    function.__name__: function for function in (euler, unipc_wan, unipc_diffusers, dpmpp_2m_wan, dpmpp_2m_diffusers)
}


def _checked(steps: int, shift: float) -> int:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not 0 < shift < np.inf:
        raise ValueError(f"shift must be a positive number, got {shift}.")
    return steps


def _multistep(sigmas: np.ndarray, *, corrector: bool) -> Steps:
    """Coefficients of the second-order data-prediction multistep methods; the last step, to 0, is of first order.

    With lambda = log((1 - sigma) / sigma), h the step in lambda and r the step before it over h, the predictor is
    DPM-Solver++ 2M's (arXiv 2211.01095, algorithm 2), which UniP-2 with B(h) = e^-h - 1 shares (arXiv 2302.04867,
    section 3.1, a_1 = 1/2). The corrector is UniC-2 (equation 9), which solves a 2 x 2 system at every step.
    """
    steps = len(sigmas)
    times = np.trunc(sigmas * 1000.0) / 1000.0
    # Both codes keep sigmas in float32. Near 1 that moves 1 - sigma visibly, so it belongs to the method.
    sigmas = np.append(sigmas, 0.0).astype(np.float32).astype(np.float64)
    with np.errstate(divide="ignore"):
        lambdas = np.log1p(-sigmas) - np.log(sigmas)
    correct_last, correct_this, predict = np.zeros(steps), np.zeros(steps), np.zeros(steps)
    for k in range(1, steps - 1):
        h = lambdas[k + 1] - lambdas[k]
        r = (lambdas[k] - lambdas[k - 1]) / h
        predict[k] = -(1.0 - sigmas[k + 1]) * np.expm1(-h) / (2.0 * r)
    if corrector and steps > 1:
        correct_this[1] = -(1.0 - sigmas[1]) * np.expm1(lambdas[0] - lambdas[1]) / 2.0
        for k in range(2, steps):
            h = lambdas[k] - lambdas[k - 1]
            r = (lambdas[k - 1] - lambdas[k - 2]) / h
            scale = -(1.0 - sigmas[k]) * np.expm1(-h)
            # Weights of the earlier and of the new change that integrate e^lambda times a polynomial of degree 2.
            phi_2 = (np.expm1(-h) / -h - 1.0) / np.expm1(-h)
            phi_3 = 2.0 * ((np.expm1(-h) / -h - 1.0) / -h - 0.5) / np.expm1(-h)
            earlier, new = np.linalg.solve([[1.0, 1.0], [-r, 1.0]], [phi_2, phi_3])
            correct_this[k] = scale * new
            # The predictor's own term is in x already; the corrector replaces it.
            correct_last[k] = scale * earlier / r - predict[k - 1]
    return Steps(times, sigmas[:-1], np.diff(sigmas), correct_last, correct_this, predict)
