"""Attention over several devices against dense float64 attention by torch (relative L2 at most 1e-5 in float32)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from kaleido_jax.attention import attention, merge, sharded_attention
from kaleido_jax.attention.sharded import visible_hops
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import (
    TokenMask,
    bidirectional,
    foreground_background,
    separate_references,
    shot_causal,
    unidirectional,
    visibility,
)
from kaleido_jax.parallel import sequence
from tests.attention.dense import assert_close, dense_attention, problem
from tests.attention.drawn import DRAWN, drawn_mask

QUERIES, KEYS = 45, 37  # neither is divided by 8


def mesh(*sizes):
    return Mesh(np.array(jax.devices()[: np.prod(sizes)]).reshape(sizes), ("tokens", "data")[: len(sizes)])


def random_mask(seed, *, batch=2, queries=QUERIES, keys=KEYS):
    """Few bits, so that whole devices have nothing to read from another; some queries read nothing; two samples."""
    rng = np.random.default_rng(seed)
    groups = np.uint32(1) << np.sort(rng.integers(0, 5, size=(batch, keys)), axis=1).astype(np.uint32)
    reads = np.uint32(1) << np.sort(rng.integers(0, 5, size=(batch, queries)), axis=1).astype(np.uint32)
    reads[:, 4:6], reads[:, 20:23] = 0, 31
    sample = lambda tokens: np.where(np.arange(tokens) < tokens - 7, 0, 1).astype(np.int32)
    return TokenMask(reads, groups, q_sample=sample(queries), k_sample=sample(keys), width=5)


def results_of(inputs, cotangents, function):
    def run(inputs, cotangents):
        results, transpose = jax.vjp(function, *inputs)
        return (*results, *transpose(cotangents))

    return jax.jit(run)(inputs, cotangents)


# heads, key heads, ulysses: 12 heads on 8 devices exchange among 4 and form a ring of 2.
FORMS = {"Ulysses": (8, 8, 8), "ring": (3, 1, 1), "both": (12, 12, None)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [True, False])
def test_equals_dense_attention(form, masked):
    heads, key_heads, ulysses = FORMS[form]
    inputs, cotangents = problem(0, queries=QUERIES, keys=KEYS, heads=heads, key_heads=key_heads, head_dim=8)
    mask = random_mask(1) if masked else None
    attend = functools.partial(sharded_attention, mask=mask, axis="tokens", ulysses=ulysses, return_lse=True)
    with jax.set_mesh(mesh(8)):
        results = results_of(inputs, cotangents, attend)
    assert_close(results, dense_attention(inputs, cotangents, mask, 8**-0.5), 1e-5)


@pytest.fixture(scope="module")
def forms():
    """Results of each form as programs of any mask of 45 queries and 37 keys."""

    def program(heads, key_heads, ulysses):
        @jax.jit
        def run(inputs, cotangents, mask):
            attend = functools.partial(sharded_attention, mask=mask, axis="tokens", ulysses=ulysses, return_lse=True)
            results, transpose = jax.vjp(attend, *inputs)
            return (*results, *transpose(cotangents))

        return problem(0, queries=QUERIES, keys=KEYS, heads=heads, key_heads=key_heads, head_dim=8), run

    return {form: program(*FORMS[form]) for form in ("ring", "both")}


@settings(deadline=None, max_examples=10)
@given(drawn=DRAWN, form=st.sampled_from(["ring", "both"]))
def test_any_layout_and_mask_as_data(forms, drawn, form):
    (inputs, cotangents), run = forms[form]
    mask = drawn_mask(drawn, batch=2, queries=QUERIES, keys=KEYS)
    with jax.set_mesh(mesh(8)):
        results = run(inputs, cotangents, mask)
    assert_close(results, dense_attention(inputs, cotangents, mask, 8**-0.5), 1e-5)


def shards_that_read(*places):
    """64 tokens on 8 devices, each of which reads the shards so many places before its own."""
    shard = np.arange(64) // 8
    reads = sum(np.uint32(1) << ((shard - place) % 8).astype(np.uint32) for place in places)
    return TokenMask(reads.astype(np.uint32), np.uint32(1) << shard.astype(np.uint32), width=8)


def test_hops_that_are_empty_for_all_are_left_out():
    assert visible_hops(shards_that_read(0), 8, 1) == (0,)
    assert visible_hops(shards_that_read(2, 5), 8, 1) == (2, 5)
    assert visible_hops(shards_that_read(2), 8, 2) == (1,)
    assert visible_hops(shards_that_read(0, 1), 8, 4) == (0, 1)
    assert visible_hops(None, 8, 1) is None
    traced = jax.make_jaxpr(lambda reads: visible_hops(TokenMask(reads, reads), 8, 1) or ())(np.ones(64, np.uint32))
    assert not traced.jaxpr.outvars


def test_a_ring_with_gaps_equals_dense_attention():
    inputs, cotangents = problem(0, batch=1, queries=64, keys=64, heads=2, key_heads=1, head_dim=8)
    mask = shards_that_read(2, 5)
    attend = functools.partial(sharded_attention, mask=mask, axis="tokens", ulysses=1, return_lse=True)
    with jax.set_mesh(mesh(8)):
        results = results_of(inputs, cotangents, attend)
        text = jax.jit(functools.partial(attend, mask=shards_that_read(0))).lower(*inputs).as_text()
    assert_close(results, dense_attention(inputs, cotangents, mask, 8**-0.5), 1e-5)
    assert "collective_permute" not in text


KALEIDO = TokenLayout(
    (
        Segment(kind="video", grid=(6, 6, 8)),
        *(Segment(kind="reference", grid=(1, 6, 8), subject=i) for i in range(3)),
    )
)
SHOTS = TokenLayout(tuple(Segment(kind="video", grid=(4, 1, n), shot=i) for i, n in enumerate((24, 40, 24, 40))))
PLACED = {
    "kaleido, 2 of 3 references": (
        KALEIDO,
        visibility(KALEIDO, bidirectional, contents=KALEIDO.contents(lengths=np.array([[288, 48, 48, 0]]))),
    ),
    "kaleido, segments filled in part": (
        KALEIDO,
        visibility(KALEIDO, bidirectional, contents=KALEIDO.contents(lengths=np.array([[180, 24, 30, 12]]))),
    ),
    "unidirectional": (KALEIDO, visibility(KALEIDO, unidirectional)),
    "separate references": (KALEIDO, visibility(KALEIDO, separate_references)),
    "shot-causal": (SHOTS, visibility(SHOTS, shot_causal)),
    "packing": (SHOTS, visibility(SHOTS, contents=SHOTS.contents(samples=np.array([[0, 0, 1, 2]])))),
    "foreground and background": (
        KALEIDO,
        foreground_background(KALEIDO, jnp.asarray(np.arange(KALEIDO.tokens()) % 48 < 16)),
    ),
}


def visited(mask, places, devices, block=16):
    """How many blocks each device visits in a ring: `places` are the tokens in the order of the devices, -1: none."""
    dense = np.asarray(mask.dense())[0]
    shards = places.reshape(devices, -1)
    counts = np.zeros(devices, int)
    for device, queries in enumerate(shards):
        for keys in shards:
            visible = dense[np.ix_(queries[queries >= 0], keys)] & (keys >= 0)
            more = [(0, -length % block) for length in visible.shape]
            blocks = np.pad(visible, more).reshape(-(-visible.shape[0] // block), block, -1, block)
            counts[device] += blocks.any((1, 3)).sum()
    return counts


@pytest.mark.parametrize("name", PLACED)
def test_devices_visit_equally_many_blocks(name):
    """As networks place tokens on devices: counts differ by at most 10 %."""
    layout, mask = PLACED[name]
    tokens = jnp.arange(layout.tokens(), dtype=jnp.int32)[None]
    places = np.asarray(sequence._deal(tokens, [segment.tokens for segment in layout.segments], 8, fill=-1))[0]
    counts = visited(mask, places, 8)
    assert counts.max() <= 1.1 * counts.min(), counts


def test_runs_of_tokens_on_devices_would_not_be_balanced():
    counts = visited(PLACED["shot-causal"][1], np.arange(SHOTS.tokens()), 8)
    assert counts.max() > 2 * counts.min()


def test_batch_on_another_axis_and_the_kernel_in_a_ring():
    inputs, cotangents = problem(0, queries=20, keys=12, heads=2, key_heads=1, head_dim=8)
    mask = random_mask(2, queries=20, keys=12)
    attend = functools.partial(
        sharded_attention, mask=mask, axis="tokens", batch="data", return_lse=True, backend="pallas_tpu", interpret=True
    )
    with jax.set_mesh(mesh(2, 2)):
        results = results_of(inputs, cotangents, attend)
    assert_close(results, dense_attention(inputs, cotangents, mask, 8**-0.5), 1e-5)


@pytest.mark.parametrize(("ulysses", "exchanges", "sends"), [(8, True, False), (1, False, True), (4, True, True)])
def test_collectives_are_those_of_the_form(ulysses, exchanges, sends):
    inputs, _ = problem(0, queries=64, keys=64, heads=8, key_heads=8, head_dim=8)
    attend = jax.jit(functools.partial(sharded_attention, axis="tokens", ulysses=ulysses))
    with jax.set_mesh(mesh(8)):
        text = attend.lower(*inputs).compile().as_text()
    assert ("all-to-all" in text, "collective-permute" in text) == (exchanges, sends)
    assert "all-reduce" not in text


def test_keys_that_fill_up_never_join_the_softmax():
    """Of equal scores, every key weighs one over the number of real keys: 37, and not the 40 of eight equal shares."""
    ones = jnp.ones((1, KEYS, 1, 8))
    with jax.set_mesh(mesh(8)):
        out = jax.jit(functools.partial(sharded_attention, axis="tokens"))(ones, jnp.zeros_like(ones), ones)
    np.testing.assert_allclose(out, 1.0, rtol=1e-6)  # float32 sums; with padding it would be 37/40


def test_no_token_is_dropped():
    """Each key in turn holds the only value: every query must feel each of them."""
    with jax.set_mesh(mesh(8)):
        attend = jax.jit(functools.partial(sharded_attention, axis="tokens"))
        values = jnp.eye(KEYS)[None, :, None, :]
        zeros = jnp.zeros((1, KEYS, 1, KEYS))
        out = attend(zeros, zeros, values)
    np.testing.assert_allclose(out, 1 / KEYS, rtol=1e-6)


def test_replicated_keys_count_once():
    """References stand on every device while the video is divided: two calls, merged by their log-sum-exps."""
    inputs, cotangents = problem(0, queries=QUERIES, keys=KEYS + 5, heads=2, key_heads=2, head_dim=8)

    def attend(q, k, v):
        video = sharded_attention(q, k[:, 5:], v[:, 5:], axis="tokens", ulysses=1, return_lse=True)
        references = attention(q, k[:, :5], v[:, :5], return_lse=True)
        return merge(*references, *video)

    with jax.set_mesh(mesh(8)):
        results = results_of(inputs, cotangents, attend)
    assert_close(results, dense_attention(inputs, cotangents, None, 8**-0.5), 1e-5)


def test_merging_rows_that_read_nothing_stays_finite():
    nothing = jnp.zeros((1, 2, 1, 4)), jnp.full((1, 1, 2), -1e30)
    out, lse = merge(*nothing, *nothing)
    assert not np.asarray(out).any() and (np.asarray(lse) < -1e29).all()
    gradient = jax.grad(lambda out: merge(out, nothing[1], *nothing)[0].sum())(nothing[0])
    assert np.isfinite(gradient).all()


def test_bad_axes_are_errors():
    x = jnp.ones((1, 8, 2, 8))
    with pytest.raises(ValueError, match=r"axis is 'tokens'; expected one of the mesh that is set .* which has none"):
        sharded_attention(x, x, x, axis="tokens")
    with jax.set_mesh(mesh(8)), pytest.raises(ValueError, match="ulysses is 4; expected a divisor of the 8 devices"):
        sharded_attention(x, x, x, axis="tokens", ulysses=4)
