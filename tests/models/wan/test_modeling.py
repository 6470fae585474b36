"""Wan's transformer against diffusers' WanTransformer3DModel with equal weights, all of them random."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kaleido_jax.bundle import merge
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import TokenMask
from kaleido_jax.models.wan import default_attend
from kaleido_jax.models.wan.params import FAMILY
from kaleido_jax.testing import relative_error, relative_errors
from kaleido_jax.testing.wan import (
    TINY,
    graph,
    pair,
    plain_table,
    random_inputs,
    run_ours,
    run_peer,
)

FORWARD, GRADIENT = 1e-5, 1e-4  # float32 rounding through a few layers is about 5e-7
# Beside these fixed limits: how many times the peer's own float32 error ours may be.
MULTIPLE = 8

CASES = {
    "odd heads, grid not square": (TINY, (2, 3, 6, 8)),
    "head_dim not a multiple of 6": (
        dataclasses.replace(TINY, dim=100, heads=5, in_channels=16, out_channels=3),
        (1, 2, 4, 10),
    ),
    "image branch, one frame": (dataclasses.replace(TINY, image_dim=24, in_channels=9), (1, 1, 10, 6)),
    "other patches, one head": (dataclasses.replace(TINY, dim=24, heads=1, patch=(2, 1, 3), layers=3), (2, 4, 3, 9)),
}


def float64(model):
    return copy.deepcopy(model).double()


def cotangents(config, inputs):
    shape = (*inputs.video.shape[:4], config.out_channels)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def peer(model, inputs, config, time=None):
    """diffusers' velocity, and the gradient of sum(velocity * cotangents): of all parameters, and of the video."""
    model = copy.deepcopy(model)
    video = torch.from_numpy(inputs.video).to(next(model.parameters()).dtype).requires_grad_()
    out = run_peer(model, inputs, time, video=video)
    (out * torch.from_numpy(cotangents(config, inputs))).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return out.detach().numpy(), FAMILY.from_torch(gradients, config), video.grad.numpy()


@functools.partial(jax.jit, static_argnums=(4, 5))
def _ours(parameters, inputs, times, weights, config, layout):
    def loss(parameters, video):
        out = run_ours(parameters, (video, *inputs[1:]), times, config, layout)
        return (out.astype(jnp.float32) * weights).sum(), out

    gradients, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(parameters, inputs[0])
    return out, *gradients


def ours(parameters, inputs, config, times=None, layout=None):
    """As `peer`."""
    times = jnp.asarray(inputs.time if times is None else times)
    return _ours(parameters, inputs.arrays, times, jnp.asarray(cotangents(config, inputs)), config, layout)


def report(record_property, name, actual, expected, exact):
    """Our float32 error in multiples of the peer's: both against the peer in float64."""
    multiple = relative_error(actual, exact) / relative_error(expected, exact)
    record_property(f"{name}_error_in_multiples_of_the_peers", multiple)
    print(f"{name}: {multiple:.2f} times the peer's own error {relative_error(expected, exact):.1e}")
    assert multiple <= MULTIPLE


@pytest.mark.parametrize("case", ["head_dim not a multiple of 6", "other patches, one head"])
def test_forward(case, record_property):
    config, shape = CASES[case]
    model, parameters = pair(config)
    inputs = random_inputs(config, *shape)
    with torch.no_grad():
        expected, exact = run_peer(model, inputs).numpy(), run_peer(float64(model), inputs).numpy()
    actual = run_ours(parameters, inputs.arrays, jnp.asarray(inputs.time), config)
    assert relative_error(actual, expected) <= FORWARD
    report(record_property, "forward", actual, expected, exact)


@pytest.mark.parametrize("case", ["odd heads, grid not square", "image branch, one frame"])
def test_forward_and_gradients_of_all_parameters_and_of_the_input(case, record_property):
    config, shape = CASES[case]
    model, parameters = pair(config)
    inputs = random_inputs(config, *shape)
    expected, expected_gradients, expected_video = peer(model, inputs, config)
    exact, exact_gradients, exact_video = peer(float64(model), inputs, config)
    actual, gradients, video = ours(parameters, inputs, config)
    errors = relative_errors(gradients, expected_gradients)
    assert relative_error(actual, expected) <= FORWARD
    assert max(errors.values()) <= GRADIENT, errors
    assert relative_error(video, expected_video) <= GRADIENT
    join = lambda tree: np.concatenate([np.ravel(tree[name]) for name in sorted(exact_gradients)])
    report(record_property, "forward", actual, expected, exact)
    report(record_property, "gradient", join(gradients), join(expected_gradients), join(exact_gradients))
    report(record_property, "gradient_of_the_video", video, expected_video, exact_video)


def test_tokens_of_two_pictures_have_positions(record_property):
    """FLF2V-14B: the peer takes the tokens of a first and a last frame as rows of a batch, and joins them."""
    config = dataclasses.replace(TINY, image_dim=24, in_channels=9, image_positions=14)
    model, parameters = pair(config, pos_embed_seq_len=14)
    assert np.abs(parameters["image_embedding.positions"]).min() > 0
    inputs = random_inputs(config, 2, 1, 4, 6)
    image = np.random.default_rng(2).standard_normal((2, 14, 24)).astype(np.float32)
    with torch.no_grad():
        expected = run_peer(model, dataclasses.replace(inputs, image=image.reshape(4, 7, 24)))
    given = dataclasses.replace(inputs, image=image).arrays
    actual = run_ours(parameters, given, jnp.asarray(inputs.time), config)
    record_property("error", float(relative_error(actual, expected)))
    assert relative_error(actual, expected) <= FORWARD
    with pytest.raises(ValueError, match="image has 7 tokens; expected 14, as many as have positions"):
        run_ours(parameters, inputs.arrays, jnp.asarray(inputs.time), config)
    with pytest.raises(ValueError, match="image_positions is 14; expected a positive number, and image_dim to be set"):
        dataclasses.replace(TINY, image_positions=14)


def frames(*counts, height=3, width=4):
    """A video in pieces that follow each other in time."""
    return TokenLayout(tuple(Segment(kind="video", grid=(count, height, width)) for count in counts))


def test_a_time_for_each_segment_is_the_peers_time_for_each_token():
    """diffusers' expand_timesteps, as the TI2V-5B uses it: a clean first frame (time 0); and with several times."""
    model, parameters = pair(TINY)
    inputs, layout = random_inputs(TINY, 2, 4, 6, 8), frames(1, 2, 1)
    times = np.array([[0.0, 0.5, 0.75], [0.0, 0.125, 1.0]], np.float32)
    per_token = times[:, layout.segment_ids("visual")]
    expected, expected_gradients, expected_video = peer(model, inputs, TINY, per_token)
    actual, gradients, video = ours(parameters, inputs, TINY, times, layout)
    assert relative_error(actual, expected) <= FORWARD
    errors = relative_errors(gradients, expected_gradients)
    assert max(errors.values()) <= GRADIENT, errors
    assert relative_error(video, expected_video) <= GRADIENT


def test_segments_cost_no_memory():
    """Modulation is never spread over the tokens: one row of six vectors a segment, whatever their number."""
    config = dataclasses.replace(TINY, dim=96, ffn_dim=192)

    def temporary_bytes(layout):
        def loss(parameters, tokens, text, times):
            table = plain_table(layout, times)
            return (merge(graph(config), parameters)(tokens, table, text, layout=layout) ** 2).sum()

        x = jax.ShapeDtypeStruct((1, layout.tokens(), 20), jnp.float32)
        text = jax.ShapeDtypeStruct((1, 8, config.text_dim), jnp.float32)
        times = jax.ShapeDtypeStruct((1, len(layout.segments)), jnp.float32)
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(FAMILY.abstract_parameters(config), x, text, times)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    one = temporary_bytes(frames(3, height=16, width=24))
    three = temporary_bytes(frames(1, 1, 1, height=16, width=24))
    assert three <= 1.05 * one, three / one


REFERENCE = Segment(kind="reference", grid=(1, 2, 2))
VIDEO = Segment(kind="video", grid=(2, 3, 2))


def run(parameters, tokens, text, layout, config=TINY, attend=default_attend, state=None, **masks):
    times = jnp.full((tokens.shape[0], len(layout.segments)), 0.5)

    @jax.jit
    def run(parameters, tokens, text, state):
        table = plain_table(layout, times, **masks)
        model = merge(graph(config), parameters)
        return model(tokens, table, text, layout=layout, attend=attend, state=state)

    return run(parameters, tokens, text, state)


@pytest.fixture(scope="module")
def tiny():
    _, parameters = pair(TINY)
    rng = np.random.default_rng(5)
    tokens = jnp.asarray(rng.standard_normal((2, 16, 20)).astype(np.float32))
    return parameters, tokens, jnp.asarray(rng.standard_normal((2, 6, TINY.text_dim)).astype(np.float32))


def test_references_take_part_but_are_not_predicted(tiny):
    """The output is that of the video alone, wherever it stands, and equals the same tokens when all are predicted."""
    parameters, tokens, text = tiny
    everything = TokenLayout((dataclasses.replace(REFERENCE, target=True), VIDEO))
    out = run(parameters, tokens, text, TokenLayout((REFERENCE, VIDEO)))
    assert out.shape == (2, VIDEO.tokens, 16)
    np.testing.assert_allclose(out, run(parameters, tokens, text, everything)[:, 4:], atol=2e-6, rtol=1e-5)
    changed = tokens.at[:, 0].add(1.0)
    assert relative_error(run(parameters, changed, text, TokenLayout((REFERENCE, VIDEO))), out) > 1e-3


def test_tokens_and_words_that_nobody_reads_change_nothing(tiny):
    parameters, tokens, text = tiny
    layout = TokenLayout((VIDEO, REFERENCE))
    seen = np.repeat(np.array([1, 0], np.uint32), (VIDEO.tokens, REFERENCE.tokens))
    self_mask = TokenMask(np.ones(16, np.uint32), seen, width=1)
    words = np.array([1, 1, 1, 1, 0, 0], np.uint32)
    text_mask = lambda n: TokenMask(np.ones(n, np.uint32), words, width=1)
    masked = run(parameters, tokens, text, layout, self_mask=self_mask, text_mask=text_mask(16))
    alone = run(parameters, tokens[:, : VIDEO.tokens], text[:, :4], TokenLayout((VIDEO,)))
    np.testing.assert_allclose(masked, alone, atol=2e-6, rtol=1e-5)


def test_the_hook_sees_every_layer_before_rotation_and_keeps_a_state_of_each(tiny):
    parameters, tokens, text = tiny
    layout = TokenLayout((VIDEO, REFERENCE))

    def attend(q, k, v, table, rope, state):
        assert q.shape == (2, 16, TINY.heads, TINY.head_dim) and rope.shape == (1, 16, TINY.head_dim // 2)
        out, _ = default_attend(q, k, v, table, rope, None)
        return out, {"key": k, "calls": state["calls"] + 1}

    state = {"key": jnp.zeros((2, 2, 16, TINY.heads, TINY.head_dim)), "calls": jnp.array([10, 20], jnp.int32)}
    out, new = run(parameters, tokens, text, layout, attend=attend, state=state)
    np.testing.assert_array_equal(new["calls"], [11, 21])
    np.testing.assert_allclose(out, run(parameters, tokens, text, layout), atol=1e-6, rtol=1e-6)
    # Keys of the first layer by hand: before rotation and after the norm over the full width.
    keys = np.asarray(new["key"][0]).reshape(2, 16, -1) / np.asarray(
        parameters["blocks.self_attention.key_norm.scale"][0]
    )
    np.testing.assert_allclose(np.square(keys).mean(-1), 1.0, rtol=1e-4)
    # A hook that puts another state's keys in place changes the outcome: what is returned is what is used.
    swap = lambda q, k, v, table, rope, state: default_attend(q, state["key"], v, table, rope, state)
    swapped, _ = run(parameters, tokens, text, layout, attend=swap, state=new | {"key": new["key"] * 0.5})
    assert relative_error(swapped, out) > 1e-3


def test_remat_changes_no_gradient(tiny):
    parameters, tokens, text = tiny
    layout = TokenLayout((VIDEO, REFERENCE))
    table = plain_table(layout, jnp.full((2, 2), 0.5))

    def gradients(**options):
        loss = lambda p: (merge(graph(TINY), p)(tokens, table, text, layout=layout, **options) ** 2).sum()
        return jax.jit(jax.grad(loss))(parameters)

    assert max(relative_errors(gradients(remat=False), gradients()).values()) <= 1e-5


def test_bfloat16_forward_and_gradient():
    """Against float32, and beside diffusers in bfloat16 with the same weights: one rounding is up to 4e-3."""
    config = dataclasses.replace(TINY, dtype="bfloat16")
    model, parameters = pair(TINY)
    inputs = random_inputs(TINY, 2, 3, 6, 8)
    exact, exact_gradients, exact_video = ours(parameters, inputs, TINY)
    out, gradients, video = ours(parameters, inputs, config)
    with torch.no_grad():
        theirs = run_peer(copy.deepcopy(model).bfloat16(), inputs).float().numpy()
    assert relative_error(out, exact) <= 2e-2
    assert relative_error(out, exact) <= 1.5 * relative_error(theirs, exact)
    assert all(x.dtype == jnp.float32 for x in gradients.values())
    errors = relative_errors(gradients, exact_gradients)
    assert max(errors.values()) <= 6e-2, errors
    assert relative_error(video, exact_video) <= 3e-2


def test_bad_input_is_an_error_that_names_it(tiny):
    parameters, tokens, text = tiny
    layout, model = TokenLayout((VIDEO, REFERENCE)), merge(graph(TINY), parameters)
    table = plain_table(layout, jnp.full((2, 2), 0.5))
    with pytest.raises(ValueError, match=r"tokens have shape \(2, 15, 20\); expected \[batch, 16, 20\]"):
        model(tokens[:, 1:], table, text, layout=layout)
    with pytest.raises(ValueError, match=r"timesteps has shape \(2, 1\); expected \(2, 2\)"):
        model(tokens, plain_table(TokenLayout((VIDEO,)), jnp.ones(2)), text, layout=layout)
    with pytest.raises(ValueError, match="this config has no image branch"):
        model(tokens, table, text, layout=layout, image=jnp.ones((2, 5, 24)))
    with_image = dataclasses.replace(TINY, image_dim=24)
    with pytest.raises(ValueError, match="image is missing"):
        merge(graph(with_image), pair(with_image)[1])(tokens, table, text, layout=layout)
