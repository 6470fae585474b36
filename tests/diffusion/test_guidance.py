"""Guidance: the rules as the papers write them, and branches batched or one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.diffusion import guidance as g


def branches(count: int) -> list[jax.Array]:
    return list(jax.random.normal(jax.random.key(0), (count, 2, 4, 3)))


def test_text_guidance_keeps_the_references():
    rule = g.text_guidance()
    assert [(b.text, b.references) for b in rule.branches] == [("negative", "kept"), ("prompt", "kept")]
    u, c = branches(2)
    np.testing.assert_allclose(rule.combine([u, c]), u + 6.0 * (c - u), atol=1e-5)


def test_joint_guidance_has_one_empty_condition():
    rule = g.joint_guidance()
    assert [(b.text, b.references) for b in rule.branches] == [("empty", "zero_pixels"), ("prompt", "kept")]
    u, c = branches(2)
    np.testing.assert_allclose(rule.combine([u, c]), -4.0 * u + 5.0 * c, atol=1e-5)


def test_image_text_guidance_has_three_passes():
    rule = g.image_text_guidance()
    names = [(b.text, b.references) for b in rule.branches]
    assert names == [("negative", "zero_latents"), ("negative", "kept"), ("prompt", "kept")]
    n, r, c = branches(3)
    np.testing.assert_allclose(rule.combine([n, r, c]), n + 5.0 * (r - n) + 7.5 * (c - r), atol=1e-5)


@pytest.mark.parametrize(
    "rule", [g.text_guidance(3.5), g.joint_guidance(2.0), g.image_text_guidance(2.0, 5.0), g.image_text_guidance()]
)
def test_equal_branches_are_left_alone(rule):
    velocity = branches(1)[0]
    assert sum(rule.weights) == pytest.approx(1)
    np.testing.assert_allclose(rule.combine([velocity] * len(rule.branches)), velocity, atol=1e-5)


def test_branches_without_weight_are_not_computed():
    assert g.text_guidance(1.0).branches == (g.PROMPT,)
    assert g.joint_guidance(1.0).branches == (g.PROMPT,)
    assert g.image_text_guidance(1.0, 1.0).branches == (g.PROMPT,)
    assert len(g.image_text_guidance(5.0, 5.0).branches) == 2
    assert g.text_guidance(0.0).branches == (g.Branch(text="negative", references="kept"),)


@pytest.mark.parametrize("rule", [g.text_guidance(1.0), g.text_guidance(), g.image_text_guidance()])
def test_batched_equals_one_by_one(rule):
    conditions = [
        {"text": jax.random.normal(jax.random.key(i), (2, 3)), "scale": jnp.full((2,), 1.0 + i)}
        for i in range(len(rule.branches))
    ]
    calls = []

    def velocity(x, t, condition):
        calls.append(x.shape)
        return t * jnp.tanh(x + condition["text"][:, None, :]) * condition["scale"][:, None, None]

    x, t = jax.random.normal(jax.random.key(9), (2, 4, 3)), jnp.float32(0.7)
    together = g.guided(velocity, conditions, rule)(x, t)
    assert calls == [(2 * len(rule.branches), 4, 3)]
    apart = g.guided(velocity, conditions, rule, batched=False)(x, t)
    assert calls[1:] == [(2, 4, 3)] * len(rule.branches)
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_bfloat16_branches_are_combined_in_float32():
    u, c = (x.astype(jnp.bfloat16) for x in branches(2))
    result = g.text_guidance().combine([u, c])
    assert result.dtype == jnp.float32
    expected = -5.0 * np.asarray(u, np.float64) + 6.0 * np.asarray(c, np.float64)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_wrong_number_of_conditions_is_refused():
    with pytest.raises(ValueError, match="each of the 2 branches, got 1"):
        g.guided(lambda x, t, condition: x, [None], g.text_guidance())


def test_weights_may_be_traced():
    rule = g.image_text_guidance()
    velocities = branches(3)
    combine = jax.jit(lambda weights, parts: g.Guidance(rule.branches, tuple(jnp.unstack(weights))).combine(parts))
    result = combine(jnp.asarray(rule.weights, jnp.float32), velocities)
    np.testing.assert_allclose(result, rule.combine(velocities), atol=1e-5)
