"""Two networks for one flow, one for high noise and one for low, as Wan 2.2's A14B models are.

The network changes once, where the time that it is told falls below the boundary; the sampler goes on across it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from kaleido_jax.diffusion.samplers import Steps, Velocity
from kaleido_jax.typing import AnyArray


def high_noise_steps(steps: Steps, boundary: float) -> int:
    """How many steps, from the first, belong to the network for high noise: their times are at least `boundary`."""
    return int(np.count_nonzero(steps.time >= boundary))


def split(steps: Steps, boundary: float) -> tuple[Steps, Steps]:
    """The steps of the network for high noise, then those of the other; either may be empty.

    With `samplers.continued` one network's steps run after the other's, and only one has to be in memory.
    """
    count = high_noise_steps(steps, boundary)
    return Steps(*(column[:count] for column in steps)), Steps(*(column[count:] for column in steps))


def switched(high: Velocity, low: Velocity, boundary: float) -> Velocity:
    """v(x, t) for a sampler: `high` where t >= boundary, `low` below.

    Of a concrete t only the function that is asked runs, so that it may load its network when it is first called. Of a
    traced t (as in `samplers.sample_scan`) both are compiled and one runs.
    """

    def velocity(x: AnyArray, t: Any) -> AnyArray:
        # In the precision of t: the step at the boundary itself belongs to high noise.
        is_high = t >= np.asarray(boundary, t.dtype)
        if isinstance(is_high, Tracer):
            return jax.lax.cond(is_high, high, low, jnp.asarray(x), t)
        return high(x, t) if is_high else low(x, t)

    return velocity
