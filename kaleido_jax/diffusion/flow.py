"""Flow matching: the straight path from data to noise, its velocity, how times are drawn, and the loss.

Time t lies in [0, 1], 0 clean and 1 noise; x_t = (1 - t) x_0 + t noise, and the velocity is noise - x_0 (Wan's sign).
Everything random is a function of (seed, step, sample index): one key a sample, so that neither the size of a batch nor
the way it is spread over devices changes what a sample sees.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sample_keys(seed: int, step: int | Int[Array, ""], indices: Int[Array, "b"]) -> Key[Array, "b"]:
    """One random key for each sample, from the run's seed, the step, and the sample's index in the epoch or batch."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda index: jax.random.fold_in(step_key, index))(indices)


def sample_noise(keys: Key[Array, "b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal float32 noise, `[b, *shape]`; row i depends on keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def sample_times(
    keys: Key[Array, "b"],
    *,
    draws: int = 1,
    mean: float = 0.0,
    std: float = 1.0,
    shift: float | Float[Array, ""] = 1.0,
) -> Float[Array, "b draws"]:
    """Logit-normal times, then shifted: sigmoid(mean + std * normal), pulled towards noise by `shift`.

    `draws` is 1 where a sample has one time, or its number of segments where each has its own (asynchronous times).
    Source: Stable Diffusion 3 (arXiv 2403.03206), sections 3.1 and 5.3.2; Kaleido trains with mean 0 and std 1.
    """
    normal = sample_noise(keys, (draws,))
    return shift_times(jax.nn.sigmoid(mean + std * normal), shift)


def shift_times(times, shift):
    """s t / (1 + (s - 1) t): keeps 0 and 1 where they are, and moves everything between towards 1 (noise) when s > 1.

    Works on floats, numpy and jax arrays; `shift` must be positive. Source: arXiv 2403.03206, equation 23.
    """
    return shift * times / (1.0 + (shift - 1.0) * times)


def resolution_shift(tokens: int) -> float:
    """The shift for a video of which one frame has `tokens` tokens: exp(mu), mu linear, 0.5 at 256 and 1.15 at 4096.

    Bigger pictures keep more of their content at a given noise level and so need more of it. Source: FLUX.1's schedule,
    used by Kaleido for training with the tokens of one frame (references and other frames are not counted).
    """
    if tokens < 1:
        raise ValueError(f"tokens of one frame must be at least 1, got {tokens}.")
    slope = (1.15 - 0.5) / (4096 - 256)
    return math.exp(0.5 + slope * (tokens - 256))


def add_noise(
    clean: Float[Array, "b *n"], noise: Float[Array, "b *n"], times: Float[Array, "b *#n"]
) -> Float[Array, "b *n"]:
    """x_t = (1 - t) x_0 + t noise. `times` has the rank of `clean`, with 1 wherever a time is shared."""
    return (1.0 - times) * clean + times * noise


def velocity_target(clean: Float[Array, "b *n"], noise: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """dx/dt along the straight path: noise - x_0, what the network is trained to predict."""
    return noise - clean


def clean_estimate(
    noisy: Float[Array, "b *n"], velocity: Float[Array, "b *n"], times: Float[Array, "b *#n"]
) -> Float[Array, "b *n"]:
    """The clean sample that a velocity implies: x_t - t v."""
    return noisy - times * velocity


def segment_loss(
    prediction: Float[Array, "b n c"],
    target: Float[Array, "b n c"],
    *,
    tokens: Sequence[int],
    lengths: Int[Array, "b s"],
    weights: Float[Array, "b s"],
    emphasis: Float[Array, "b n"] | None = None,
) -> Float[Array, "b s"]:
    """Squared error of each segment, the mean over its own tokens first and its weight after that.

    So a short segment counts as much as a long one of equal weight, and padding counts for nothing.

    Args:
        prediction, target: velocities of the segments that are in the loss, one after another along n.
        tokens: how many of the n tokens each segment has room for (static; sums to n).
        lengths: how many of those are really present; they come first in the segment. A segment of length 0 adds 0.
        weights: of each segment, e.g. 1 for the video, 1 / shots for LCT, f_r / f_v for ContextAnyone's reference.
        emphasis: how much each token counts in its segment's mean; None: all the same.

    Returns:
        float32; the loss of a sample is the sum of its segments'.
    """
    if sum(tokens) != prediction.shape[1] or len(tokens) != lengths.shape[1]:
        raise ValueError(
            f"tokens {tuple(tokens)} must be {lengths.shape[1]} segments that sum to {prediction.shape[1]} tokens."
        )
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    squared = jnp.mean(difference * difference, axis=-1)
    counted = jnp.ones_like(squared) if emphasis is None else emphasis
    found, start = [], 0
    for index, room in enumerate(tokens):
        own = slice(start, start + room)
        present = jnp.arange(room)[None, :] < lengths[:, index, None]
        share = jnp.where(present, counted[:, own], 0.0)
        total = jnp.sum(jnp.where(present, share * squared[:, own], 0.0), axis=1)
        found.append(weights[:, index] * total / jnp.maximum(jnp.sum(share, axis=1), 1e-6))
        start += room
    return jnp.stack(found, axis=1)
