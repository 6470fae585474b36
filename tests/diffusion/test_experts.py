"""Two networks with a boundary in time, on plain functions; tests/models/wan compares with diffusers' pipeline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.diffusion import samplers
from kaleido_jax.diffusion.experts import high_noise_steps, split, switched

HIGH, LOW = (lambda x, t: x * 0.5 + t), (lambda x, t: -x * t)


def test_the_step_at_the_boundary_belongs_to_high_noise():
    """0.9 is no number of float32: told to the network in float32, it is still not below the boundary."""
    steps = samplers.euler(10, 1.0)  # times 1, 0.9, ..., 0.1
    assert high_noise_steps(steps, 0.9) == 2
    asked = []
    velocity = switched(
        lambda x, t: asked.append("high") or HIGH(x, t), lambda x, t: asked.append("low") or LOW(x, t), 0.9
    )
    samplers.sample(velocity, np.ones(3, np.float32), steps)
    assert asked == ["high"] * 2 + ["low"] * 8


@pytest.mark.parametrize("sampler", ["euler", "unipc_wan"])
@pytest.mark.parametrize("boundary", [0.001, 0.875, 0.999])
def test_a_loop_a_scan_and_one_expert_after_the_other_are_the_same(sampler, boundary):
    steps = samplers.SAMPLERS[sampler](12, 5.0)
    noise = jax.random.normal(jax.random.key(0), (5,))
    velocity = switched(HIGH, LOW, boundary)
    loop = samplers.sample(velocity, noise, steps)
    scan = jax.jit(lambda noise: samplers.sample_scan(velocity, noise, steps))(noise)
    state = samplers.start(noise)
    for expert, part in zip((HIGH, LOW), split(steps, boundary)):
        state = samplers.continued(expert, state, part)
    # The same sums in other orders of rounding, over 12 steps of float32.
    np.testing.assert_allclose(scan, loop, rtol=1e-5)
    np.testing.assert_allclose(state.x, loop, rtol=1e-5)
    assert sum(len(part.time) for part in split(steps, boundary)) == 12 and jnp.isfinite(loop).all()
