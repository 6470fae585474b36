"""Kept keys and values: equal to the same mask without a cache, never more than is needed, and cheaper."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.diffusion import guidance
from kaleido_jax.methods import cache
from kaleido_jax.methods.anyid import AnyID
from kaleido_jax.methods.kaleido import Kaleido
from kaleido_jax.methods.method import Condition, velocity
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import MeshConfig, flops

CONFIG = WanConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=3, out_channels=3, text_dim=8, freq_dim=8)
VIDEO, CLIP, PATCH, TEXT = (2, 2, 3), (2, 2, 3), (1, 2, 2), 4
PINNED = [
    AnyID(rule="unidirectional"),
    Kaleido(rule="unidirectional", reference_time="zero", references_read_text=False),
]


@pytest.fixture(scope="module")
def network():
    graph, state = nnx.split(nnx.eval_shape(lambda: WanTransformer(CONFIG, nnx.Rngs(0))))
    random = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(0.4 * random.normal(size=x.shape), x.dtype)
    return nnx.merge(graph, jax.tree.map(draw, state))


def condition(clips: int, seed: int = 0) -> Condition:
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    return Condition(
        text=draw(2, TEXT, 8),
        text_lengths=jnp.asarray([[4], [2]], jnp.int32),
        references=[draw(2, 2, 4, 6, 3) for _ in range(clips)],
        reference_frames=jnp.asarray([[2] * clips, [1, *[0] * (clips - 1)]], jnp.int32),
        subjects=jnp.zeros((2, clips), jnp.int32),
    )


@pytest.mark.parametrize("method", PINNED, ids=lambda method: method.name)
def test_a_cache_changes_nothing(method, network):
    """1e-5: sums of attention in another order, in float32."""
    given, layout = condition(3), method.layout(VIDEO, [CLIP] * 3, texts=(TEXT,))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 2, 4, 6, 3)), jnp.float32)
    options = {"layout": layout, "patch": PATCH}
    kept = jax.jit(lambda given: cache.keep_references(method, network, given, **options))(given)
    assert kept.keys.shape == (2, 2, 3 * 12, 2, 12)  # layers, batch, tokens of three clips, heads, width
    plain = jax.jit(lambda x, t, given: velocity(method, network, x, t, given, **options))
    fast = jax.jit(lambda x, t, given, kept: cache.velocity(method, network, x, t, given, kept, **options))
    for time in (0.95, 0.1):  # the references were kept once for both
        times = jnp.full((2, 1), time)
        expected = plain(x, times, given)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(fast(x, times, given, kept), expected, rtol=1e-5, atol=1e-5)
    # The references matter.
    assert np.abs(fast(x, times, given, jax.tree.map(lambda a: a + 1.0, kept)) - expected).max() > 1e-3


def test_in_bytes_and_over_a_mesh(network):
    """Half a step of each head's scale in bytes; a head on each of two devices, with the same result."""
    method = PINNED[0]
    given, layout = condition(2), method.layout(VIDEO, [CLIP] * 2, texts=(TEXT,))
    options = {"layout": layout, "patch": PATCH}
    kept = jax.jit(lambda given: cache.keep_references(method, network, given, **options))(given)
    small = cache.Int8KeyValues.of(kept)
    assert small.keys.dtype == jnp.int8
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), kept)
    assert cache.size_of(small) * 12 == cache.size_of(half) * 8  # heads of 12: 12 bytes and 4 for 24
    for one, other in ((kept.keys, small.whole(jnp.float32).keys), (kept.values, small.whole(jnp.float32).values)):
        assert (np.abs(one - other) <= np.abs(one).max(axis=-1, keepdims=True) / 253).all()
    x, times = jnp.ones((2, 2, 4, 6, 3)), jnp.full((2, 1), 0.5)
    fast = jax.jit(lambda x, given, kept: cache.velocity(method, network, x, times, given, kept, **options))
    expected = fast(x, given, kept)
    close = fast(x, given, small)
    assert 0 < np.abs(close - expected).max() < 0.05 * np.abs(expected).max()
    mesh = MeshConfig.parse("fsdp=4,sequence=2").make()
    where = cache.places(mesh, CONFIG.heads)
    assert where[3] == "sequence" and cache.places(mesh, 3)[3] is None
    spread = jax.device_put(kept, jax.sharding.NamedSharding(mesh, where))
    assert spread.keys.addressable_shards[0].data.shape == (2, 2, 2 * 12, 1, 12)
    np.testing.assert_allclose(fast(x, given, spread), expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_pinned_cannot_be_kept(network):
    for method in (AnyID(), Kaleido(), Kaleido(rule="unidirectional"), Kaleido(reference_time="zero")):
        layout = method.layout(VIDEO, [CLIP], texts=(TEXT,))
        with pytest.raises(ValueError, match="change from step to step"):
            cache.keep_references(method, network, condition(1), layout=layout, patch=PATCH)


def test_references_that_read_no_text_are_the_same_for_every_prompt(network):
    """So branches of guidance may share them."""
    method = PINNED[1]
    layout, given = method.layout(VIDEO, [CLIP], texts=(TEXT,)), condition(1)
    keep = jax.jit(lambda given: cache.keep_references(method, network, given, layout=layout, patch=PATCH))
    other = dataclasses.replace(given, text=given.text + 1.0)
    np.testing.assert_array_equal(keep(given).keys, keep(other).keys)
    text, joint = guidance.text_guidance(3.0).branches, guidance.joint_guidance(3.0).branches
    assert cache.shared(method, text) and not cache.shared(method, joint)
    assert not cache.shared(dataclasses.replace(method, references_read_text=True), text)
    # One row of a batch whose references are alike serves all of it (1e-6: the batch's rows are one program).
    alike = dataclasses.replace(
        given,
        references=[jnp.repeat(clip[:1], 2, axis=0) for clip in given.references],
        reference_frames=jnp.full((2, 1), 2, jnp.int32),
    )
    both = keep(alike)
    x, options = jnp.ones((2, 2, 4, 6, 3)), {"layout": layout, "patch": PATCH}
    fast = lambda kept: cache.velocity(method, network, x, jnp.full((2, 1), 0.5), alike, kept, **options)
    shared = jax.tree.map(lambda leaf: leaf[:, :1], both)
    assert 2 * cache.size_of(shared) == cache.size_of(both)
    np.testing.assert_allclose(jax.jit(fast)(shared), jax.jit(fast)(both), rtol=1e-6, atol=1e-6)


def test_a_step_with_five_clips_costs_a_sixth(network):
    """One sixth of all tokens run; they read them all. The head and the text's keys are not divided."""
    method = AnyID(rule="unidirectional")
    layout, given = method.layout(VIDEO, [CLIP] * 5, texts=(TEXT,)), condition(5)
    x, times = jnp.zeros((2, 2, 4, 6, 3)), jnp.ones((2, 1))
    options = {"layout": layout, "patch": PATCH}
    kept = jax.eval_shape(lambda: cache.keep_references(method, network, given, **options))
    plain = flops.count(lambda x: velocity(method, network, x, times, given, **options), x)
    fast = flops.count(lambda x, kept: cache.velocity(method, network, x, times, given, kept, **options), x, kept)
    assert 4.5 < plain / fast < 6
