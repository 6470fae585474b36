"""The chunked reference backend against dense attention in float64 by torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kaleido_jax.attention import attention, reference
from kaleido_jax.masks import TokenMask
from tests.attention.dense import assert_close, dense_attention, problem

# float32: rounding of a few hundred terms is 1e-7 to 1e-6. bfloat16 keeps 8 bits (4e-3) of inputs, probabilities and
# results; float16 11 bits (5e-4).
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks small enough that short sequences have several, and heads are taken a few at a time."""
    jax.clear_caches()
    monkeypatch.setattr(reference, "_BLOCK", 16)
    monkeypatch.setattr(reference, "_WHOLE", 16)
    monkeypatch.setattr(reference, "_SCORES", 2 * 16 * 16)
    yield
    jax.clear_caches()


def random_mask(seed, kind, batch, queries, keys):
    if kind == "none":
        return None
    rng = np.random.default_rng(seed)
    rows = {"shared": (), "one": (1,), "rows": (batch,), "samples": (batch,)}[kind]
    bits = lambda n: rng.integers(0, 8, rows + (n,)).astype(np.uint32)
    samples = lambda n: np.sort(rng.integers(-1, 3, rows + (n,)).astype(np.int32)) if kind == "samples" else None
    return TokenMask(bits(queries), bits(keys), q_sample=samples(queries), k_sample=samples(keys), width=3)


@jax.jit
def run(inputs, cotangents, mask):
    f = lambda q, k, v: attention(q, k, v, mask, scale=0.3, backend="reference", return_lse=True)
    out, pull = jax.vjp(f, *inputs)
    return *out, *pull(cotangents)


def check(seed, mask, dtype="float32", **sizes):
    inputs, cotangents = problem(seed, dtype=dtype, **sizes)
    if mask is not None:  # the dense reference gives rows that read nothing a log-sum-exp of 0 and no gradient
        something = np.asarray(mask.dense()).any(-1)[:, None]
        cotangents = (cotangents[0], jnp.where(something, cotangents[1], 0.0))
    assert_close(run(inputs, cotangents, mask), dense_attention(inputs, cotangents, mask, 0.3), TOLERANCE[dtype])


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["none", "shared", "one", "rows", "samples"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    batch=st.integers(1, 3),
    queries=st.integers(1, 40),
    keys=st.integers(1, 40),
    heads=st.sampled_from([(1, 1), (3, 3), (4, 2), (6, 1)]),
    head_dim=st.sampled_from([2, 18, 64]),
)
@example(seed=0, kind="none", dtype="float32", batch=2, queries=37, keys=53, heads=(6, 3), head_dim=18)
@example(seed=1, kind="samples", dtype="float32", batch=2, queries=48, keys=33, heads=(4, 4), head_dim=16)
def test_agrees_with_dense_attention_in_blocks(small_blocks, seed, kind, dtype, batch, queries, keys, heads, head_dim):
    mask = random_mask(seed, kind, batch, queries, keys)
    sizes = {"queries": queries, "keys": keys, "heads": heads[0], "key_heads": heads[1], "head_dim": head_dim}
    check(seed, mask, dtype, batch=batch, **sizes)


@pytest.mark.parametrize("kind", ["none", "rows"])
def test_agrees_with_dense_attention_at_its_own_block_lengths(kind):
    check(0, random_mask(0, kind, 1, 700, 1100), batch=1, queries=700, keys=1100, heads=2, key_heads=1, head_dim=16)


def test_queries_that_read_nothing_give_zeros_and_no_gradient():
    inputs, cotangents = problem(0, queries=6, keys=9)
    mask = TokenMask(np.array([1, 0, 1, 0, 0, 1], np.uint32), np.ones(9, np.uint32), width=1)
    out, lse, dq, dk, dv = run(inputs, cotangents, mask)
    blind = np.array([1, 3, 4])
    assert not np.asarray(out)[:, blind].any() and not np.asarray(dq)[:, blind].any()
    assert (np.asarray(lse)[:, :, blind] == reference.NOTHING).all()
    nothing = TokenMask(np.zeros(6, np.uint32), np.ones(9, np.uint32), width=1)
    out, lse, *gradients = run(inputs, cotangents, nothing)
    assert not np.asarray(out).any() and not any(np.asarray(g).any() for g in gradients)


def test_merging_over_sets_of_keys_is_attention_over_all_of_them():
    """Output and gradients, also for queries that read nothing in one set or in both."""
    (q, k, v), (d_out, _) = problem(3, queries=7, keys=20)
    reads = np.array([1, 2, 3, 0, 1, 2, 3], np.uint32)
    mask = TokenMask(reads, np.repeat(np.array([1, 2], np.uint32), (8, 12)), width=2)

    def merged(q, k, v):
        parts = []
        for keys in (slice(0, 8), slice(8, 20)):
            parts.append(attention(q, k[:, keys], v[:, keys], mask.take(keys=keys), return_lse=True))
        (out1, lse1), (out2, lse2) = parts
        weight = lambda lse: jnp.exp(lse - jnp.logaddexp(lse1, lse2)).swapaxes(1, 2)[..., None]
        return out1 * weight(lse1) + out2 * weight(lse2)

    @jax.jit
    def both(q, k, v, d_out):
        whole, pull = jax.vjp(lambda q, k, v: attention(q, k, v, mask), q, k, v)
        parts, pull_parts = jax.vjp(merged, q, k, v)
        return (parts, *pull_parts(d_out)), (whole, *pull(d_out))

    for actual, expected in zip(*both(q, k, v, d_out)):
        np.testing.assert_allclose(actual, expected, atol=2e-6, rtol=2e-5)


def test_kept_keys_and_values_serve_later_queries():
    """References that do not read the video, and shots of the past: their keys, values and groups are enough."""
    (q, k, v), _ = problem(3, queries=24, keys=24)
    segment = np.repeat(np.arange(3), 8)
    groups = np.uint32(1) << segment.astype(np.uint32)
    mask = TokenMask((groups << np.uint32(1)) - np.uint32(1), groups, width=4)  # each reads itself and all before it
    whole = attention(q, k, v, mask)
    for first in (0, 8, 16):
        now, seen = slice(first, first + 8), slice(0, first + 8)
        part = attention(q[:, now], k[:, seen], v[:, seen], mask.take(queries=now, keys=seen))
        np.testing.assert_allclose(part, whole[:, now], atol=2e-6)


def test_scores_of_any_size_stay_finite():
    """Log-sum-exps far below and above what float32's exponential can hold: plain maxima of a softmax that is sharp."""
    (q, k, v), cotangents = problem(4, queries=5, keys=8, head_dim=4)
    for size in (1e4, -1e4):  # all scores of a query share a sign
        inputs = (jnp.abs(q) * abs(size), jnp.abs(k) * np.sign(size), v)
        results = run(inputs, cotangents, None)
        assert all(np.isfinite(np.asarray(x)).all() for x in results)
        assert (np.abs(np.asarray(results[1])) > 100).any()
        assert_close(results[:2], dense_attention(inputs, cotangents, None, 0.3)[:2], 1e-5)


def test_memory_is_linear_in_the_tokens():
    def temporary_bytes(function, tokens):
        x = jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32)
        return jax.jit(function).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    gradient = jax.grad(lambda q, k, v: attention(q, k, v).sum(), argnums=(0, 1, 2))
    for function in (attention, gradient):
        at_4k, at_16k = temporary_bytes(function, 4096), temporary_bytes(function, 16384)
        assert at_16k <= 4 * at_4k
        assert at_16k < 16384**2 * 4 / 20  # the scores of one head alone are 1.07 GB


def test_powers_of_two():
    """Within two roundings of numpy's in float64, exact at whole numbers, and exactly zero where nothing is visible."""
    x = np.linspace(-126, 1, 40_001).astype(np.float32)
    np.testing.assert_allclose(reference._exp2(jnp.asarray(x)), np.exp2(x.astype(np.float64)), rtol=2.4e-7)
    whole = np.arange(-126, 2).astype(np.float32)
    np.testing.assert_array_equal(reference._exp2(jnp.asarray(whole)), np.exp2(whole))
    nothing = jnp.asarray([-127.0, -127.5, -1e5, reference.NOTHING, -np.inf], jnp.float32)
    np.testing.assert_array_equal(reference._exp2(nothing), 0.0)
    between = reference._exp2(jnp.linspace(-127, -126, 101))
    assert (between >= 0).all() and (between <= 2.0**-126).all()
    assert np.isnan(reference._exp2(jnp.float32(np.nan)))


def test_bad_input_is_an_error_that_names_it():
    x = lambda *shape, dtype=jnp.float32: jnp.zeros(shape, dtype)
    q = x(2, 3, 4, 8)
    cases = [
        ((x(3, 4, 8), q, q), r"q has shape \(3, 4, 8\); expected \[batch, tokens, heads, head_dim\]"),
        ((q, q.astype(jnp.bfloat16), q), "k is bfloat16 but q is float32"),
        ((q.astype(jnp.int32), q, q), "q is int32; expected float32, bfloat16 or float16"),
        ((q, q, x(2, 5, 4, 8)), r"v has shape \(2, 5, 4, 8\); expected that of k, \(2, 3, 4, 8\)"),
        ((q, x(1, 3, 4, 8), x(1, 3, 4, 8)), "k has batch 1 and head_dim 8; expected those of q, 2 and 8"),
        ((q, x(2, 3, 4, 6), x(2, 3, 4, 6)), "head_dim 6; expected those of q, 2 and 8"),
        ((q, x(2, 3, 3, 8), x(2, 3, 3, 8)), "q has 4 heads; expected a multiple of the 3 heads of k"),
        ((q, x(2, 0, 4, 8), x(2, 0, 4, 8)), r"k has shape \(2, 0, 4, 8\); expected no axis of length 0"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(attention, *arguments)
