"""Flow-DPO's loss and its gradient against the formula, written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax.diffusion.preference import flow_dpo_loss

BETA = 3.0


def test_the_gradient_of_a_linear_model_is_that_of_the_formula():
    """v = x W, errors are means of squares; d loss / dW = beta sigmoid(beta A) (d s+ / dW - d s- / dW); float32."""
    random = np.random.default_rng(0)
    tuned, reference = random.normal(size=(2, 4, 3))
    x, y = random.normal(size=(2, 5, 4)), random.normal(size=(2, 5, 3))  # chosen and rejected: five tokens each

    def loss(weights):
        error = lambda w, side: jnp.mean(
            (jnp.asarray(x[side], jnp.float32) @ w - jnp.asarray(y[side], jnp.float32)) ** 2
        )
        plain = jnp.asarray(reference, jnp.float32)
        found = [error(w, side)[None] for w in (weights, plain) for side in (0, 1)]
        return flow_dpo_loss(*found, BETA)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(tuned, jnp.float32))
    errors = [[((x[side] @ w - y[side]) ** 2).mean() for side in (0, 1)] for w in (tuned, reference)]
    advantage = (errors[0][0] - errors[1][0]) - (errors[0][1] - errors[1][1])
    expected = np.log1p(np.exp(BETA * advantage))
    slopes = [2 * x[side].T @ (x[side] @ tuned - y[side]) / 15 for side in (0, 1)]
    direction = BETA / (1 + np.exp(-BETA * advantage)) * (slopes[0] - slopes[1])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, direction, rtol=1e-4, atol=1e-5)


def test_it_falls_as_the_chosen_sample_is_predicted_better():
    at = lambda chosen, rejected: float(
        flow_dpo_loss(*(jnp.asarray([v], jnp.float32) for v in (chosen, rejected, 1.0, 1.0)), BETA)[0]
    )
    assert np.isclose(at(1.0, 1.0), np.log(2))
    assert at(0.9, 1.0) < at(1.0, 1.0) < at(1.0, 0.9)
    assert np.isclose(at(0.9, 1.0), at(1.0, 1.1))
    assert np.isfinite(at(1e4, 0.0))
