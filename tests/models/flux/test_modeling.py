"""FLUX's transformer against diffusers' FluxTransformer2DModel, which nobody here wrote, on random weights.

Tolerances, as relative errors in the 2-norm: 1e-5 forward, what float32 leaves of 1.2e-7 after some tens of operations
in sequence; 1e-4 for gradients, which are sums over all tokens and layers of values that carry that error.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kaleido_jax.bundle import merge
from kaleido_jax.layout import Segment, TokenLayout, patchify
from kaleido_jax.masks import TokenMask
from kaleido_jax.models.flux import FluxConfig
from kaleido_jax.models.flux.params import FAMILY
from kaleido_jax.models.hook import default_attend
from kaleido_jax.testing import relative_error, relative_errors
from kaleido_jax.testing.flux import (
    TINY,
    graph,
    pair,
    plain_table,
    random_inputs,
    run_ours,
    run_peer,
)

FORWARD, GRADIENT = 1e-5, 1e-4
CASES = {
    "dev": (TINY, (2, 6, 10)),
    "schnell, one head, one block of each": (
        FluxConfig(
            dim=20, ffn_dim=80, heads=1, double_layers=1, single_layers=1, guidance=False, channels=3, text_dim=9,
            pooled_dim=5, axes=(8, 4, 8),
        ),
        (3, 2, 4),
    ),
}  # fmt: skip


def unpacked(tokens, config, height, width):
    grid = (height // 2, width // 2, 2, 2, config.channels)
    return np.asarray(tokens).reshape(-1, *grid).swapaxes(2, 3).reshape(-1, height, width, config.channels)


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_diffusers(case, record_property):
    config, (batch, height, width) = CASES[case]
    model, parameters = pair(config)
    inputs = random_inputs(config, batch, height, width)
    with torch.no_grad():
        expected = run_peer(model, inputs).numpy()
    error = relative_error(unpacked(run_ours(parameters, inputs.arrays, config), config, height, width), expected)
    record_property("relative_error", error)
    assert error <= FORWARD


def test_the_guidance_scale_in_use_is_as_near_as_its_embedding_allows():
    """3.5 is embedded as sines of angles up to 3500, in which float32 itself is off by some 3e-5 (relative)."""
    model, parameters = pair(TINY)
    inputs = dataclasses.replace(random_inputs(TINY, 2, 6, 10), guidance=np.array([3.5, 1.0], np.float32))
    with torch.no_grad():
        expected = run_peer(model, inputs).numpy()
    assert relative_error(unpacked(run_ours(parameters, inputs.arrays, TINY), TINY, 6, 10), expected) <= 5e-5


def test_gradients_of_all_parameters_and_of_the_input(record_property):
    config, (batch, height, width) = CASES["dev"]
    model, parameters = pair(config, seed=1)
    inputs = random_inputs(config, batch, height, width, seed=1)
    weights = np.random.default_rng(2).standard_normal((batch, height, width, config.channels)).astype(np.float32)
    latents = torch.from_numpy(inputs.latents[:, 0]).requires_grad_()
    (run_peer(model, inputs, latents) * torch.from_numpy(weights)).sum().backward()
    expected = FAMILY.from_torch({name: p.grad.numpy() for name, p in model.named_parameters()}, config)

    packed = patchify(jnp.asarray(weights)[:, None], config.patch)
    _, *rest = inputs.arrays

    @jax.jit
    def gradients(parameters, latents):
        loss = lambda p, x: (run_ours(p, (x, *rest), config) * packed).sum()
        return jax.grad(loss, argnums=(0, 1))(parameters, latents)

    actual, actual_latents = gradients(parameters, jnp.asarray(inputs.latents))
    errors = relative_errors(actual, expected)
    record_property("largest_relative_error", max(errors.values()))
    assert max(errors.values()) <= GRADIENT, errors
    assert relative_error(actual_latents[:, 0], latents.grad.numpy()) <= GRADIENT


TEXT = Segment(kind="text", grid=(4, 1, 1))
PICTURE = Segment(kind="video", grid=(1, 3, 2))
REFERENCE = Segment(kind="reference", grid=(1, 2, 2))


@pytest.fixture(scope="module")
def tiny():
    """Parameters, and tokens, text, pooled vector and guidance for TEXT, PICTURE and REFERENCE."""
    _, parameters = pair(TINY)
    r = np.random.default_rng(5)
    normal = lambda *shape: jnp.asarray(r.standard_normal(shape).astype(np.float32))
    return parameters, (normal(2, 10, 20), normal(2, 4, TINY.text_dim), normal(2, TINY.pooled_dim), normal(2))


def run(parameters, inputs, layout, times, config=TINY, attend=default_attend, state=None, **masks):
    @jax.jit
    def run(parameters, inputs, times, state):
        tokens, text, pooled, guidance = inputs
        table = plain_table(layout, times, **masks)
        return merge(graph(config), parameters)(
            tokens, table, text, pooled, layout=layout, guidance=guidance, attend=attend, state=state
        )

    return run(parameters, inputs, jnp.asarray(times, jnp.float32), state)


def test_a_reference_takes_part_with_its_own_time_but_is_not_predicted(tiny):
    parameters, inputs = tiny
    layout = TokenLayout((TEXT, PICTURE, REFERENCE))
    out = run(parameters, inputs, layout, [[0.5, 0.5]] * 2)
    assert out.shape == (2, PICTURE.tokens, 20)
    assert relative_error(run(parameters, inputs, layout, [[0.5, 0.0]] * 2), out) > 1e-3
    # All predicted, in another order of tokens: attention does not mind, and the reference's rows are dropped.
    moved = (jnp.concatenate([inputs[0][:, 6:], inputs[0][:, :6]], axis=1), *inputs[1:])
    everything = TokenLayout((dataclasses.replace(REFERENCE, target=True), PICTURE, TEXT))
    np.testing.assert_allclose(run(parameters, moved, everything, [[0.5, 0.5]] * 2)[:, 4:], out, atol=2e-5, rtol=1e-4)


def test_tokens_that_nobody_reads_change_nothing(tiny):
    parameters, inputs = tiny
    seen = np.repeat(np.array([1, 0], np.uint32), (10, REFERENCE.tokens))
    mask = TokenMask(np.ones(14, np.uint32), seen, width=1)
    masked = run(parameters, inputs, TokenLayout((TEXT, PICTURE, REFERENCE)), [[0.5, 0.5]] * 2, self_mask=mask)
    alone = run(parameters, (inputs[0][:, :6], *inputs[1:]), TokenLayout((TEXT, PICTURE)), [[0.5]] * 2)
    np.testing.assert_allclose(masked, alone, atol=2e-5, rtol=1e-4)


def test_the_hook_reads_and_replaces_what_every_layer_attends_to(tiny):
    """Queries and keys before rotation, of all tokens; a state of each layer of one kind of block only."""
    parameters, inputs = tiny
    layout, times = TokenLayout((TEXT, PICTURE, REFERENCE)), [[0.5, 0.5]] * 2
    shape = (2, 14, TINY.heads, TINY.head_dim)

    def attend(q, k, v, table, rope, state):
        assert q.shape == shape and rope.shape == (1, 14, TINY.head_dim // 2)
        if state is None:  # the double blocks
            return default_attend(q, k, v, table, rope, None)
        k = jnp.where(state["replace"], state["key"], k)
        out, _ = default_attend(q, k, v, table, rope, None)
        return out, state | {"key": k, "out": out}

    empty = jnp.zeros((TINY.single_layers, *shape))
    state = {"replace": jnp.array([False] * 3), "key": empty, "out": empty}
    out, (double, single) = run(parameters, inputs, layout, times, attend=attend, state=(None, state))
    assert double is None
    np.testing.assert_allclose(out, run(parameters, inputs, layout, times), atol=1e-5, rtol=1e-4)
    # Keys by hand: after the norm of each head, before rotation.
    scale = np.asarray(parameters["single_blocks.qkv.key_norm.scale"])[:, None, None, None]
    np.testing.assert_allclose(np.square(np.asarray(single["key"]) / scale).mean(-1), 1.0, rtol=1e-3)
    # What is put in place is what is used, in its layer and in no earlier one.
    replaced = single | {"replace": jnp.array([False, True, False]), "key": single["key"] * 0.5}
    other, (_, after) = run(parameters, inputs, layout, times, attend=attend, state=(None, replaced))
    assert relative_error(other, out) > 1e-3
    np.testing.assert_allclose(after["out"][0], single["out"][0], atol=1e-6)
    assert relative_error(after["out"][1], single["out"][1]) > 1e-3


def test_bfloat16_stays_near_float32():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    model, parameters = pair(TINY)
    inputs = random_inputs(TINY, 2, 6, 10)
    exact = run_ours(parameters, inputs.arrays, TINY)
    error = relative_error(run_ours(parameters, inputs.arrays, config), exact)
    with torch.no_grad():
        peer = relative_error(unpacked(exact, TINY, 6, 10), run_peer(model.bfloat16(), inputs).float().numpy())
    # One rounding is up to 4e-3; and not worse than diffusers with everything in bfloat16.
    assert error <= 2e-2
    assert error <= 1.5 * peer


def test_bad_input_is_an_error_that_names_it(tiny):
    parameters, (tokens, text, pooled, guidance) = tiny
    layout, model = TokenLayout((TEXT, PICTURE, REFERENCE)), merge(graph(TINY), parameters)
    table = plain_table(layout, jnp.full((2, 2), 0.5))
    given = {"layout": layout, "guidance": guidance}
    with pytest.raises(ValueError, match=r"tokens have shape \(2, 9, 20\); expected \[batch, 10, 20\]"):
        model(tokens[:, 1:], table, text, pooled, **given)
    with pytest.raises(ValueError, match=r"text has shape \(2, 3, 20\); expected \[batch, 4, 20\]"):
        model(tokens, table, text[:, 1:], pooled, **given)
    with pytest.raises(ValueError, match="guidance is missing"):
        model(tokens, table, text, pooled, layout=layout)
    with pytest.raises(ValueError, match=r"timesteps has shape \(2, 1\); expected \(2, 2\)"):
        model(tokens, plain_table(layout, jnp.ones(2)), text, pooled, **given)
    short = dataclasses.replace(table, positions=table.positions[:, :8])
    with pytest.raises(ValueError, match="positions has 8 tokens; expected the 14"):
        model(tokens, short, text, pooled, **given)
    without = dataclasses.replace(TINY, guidance=False)
    kept = {name: x for name, x in parameters.items() if not name.startswith("guidance")}
    with pytest.raises(ValueError, match="guidance was given"):
        merge(graph(without), kept)(tokens, table, text, pooled, **given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 50}, "dim is 50; expected 48, 3 heads of the 16"),
        ({"axes": (4, 5, 7)}, "three even widths"),
        ({"single_layers": 0}, "single_layers is 0; expected a positive integer"),
        ({"freq_dim": 31}, "expected an even number"),
        ({"patch": (1, 0, 2)}, "three positive integers"),
        ({"dtype": "int8"}, "expected float32, bfloat16 or float16"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
