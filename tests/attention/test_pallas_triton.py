"""The Triton kernels, interpreted on the host, against dense float64 attention by torch.

Tolerances are relative L2 errors: 1e-5 in float32 (sums in another order), 1e-2 in bfloat16 (probabilities are rounded
to 8 bits for the second product).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_jax.attention import attention, pallas_triton
from kaleido_jax.attention.pallas_triton import BlockSizes
from kaleido_jax.masks import TokenMask
from tests.attention.dense import assert_close, dense_attention, problem, random_mask, visibility_of
from tests.attention.drawn import DRAWN, assert_exact

SMALL = BlockSizes(32, 32, 4)


@functools.partial(jax.jit, static_argnames=("scale",))
def run(inputs, cotangents, mask, *, scale):
    visibility = visibility_of(mask)
    out, lse = pallas_triton.forward(*inputs, visibility, scale, sizes=SMALL, interpret=True)
    gradients = pallas_triton.backward(*inputs, visibility, out, lse, *cotangents, scale, sizes=SMALL, interpret=True)
    return out, lse, *gradients


CASES = {
    "mask of a row, samples, grouped heads": ({"queries": 70, "keys": 100, "head_dim": 16}, True, 1e-5),
    "no mask, lengths that fill no block": ({"queries": 40, "keys": 70, "heads": 2, "head_dim": 40}, False, 1e-5),
    "bfloat16": ({"queries": 64, "keys": 96, "dtype": "bfloat16"}, True, 1e-2),
}


@pytest.mark.parametrize("name", CASES)
def test_against_float64(name):
    shape, masked, tolerance = CASES[name]
    inputs, cotangents = problem(0, **shape)
    mask = random_mask(1, shape["queries"], shape["keys"]) if masked else None
    results = run(inputs, cotangents, mask, scale=0.1)
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), tolerance)


# Lengths that fill no block, shared and own key heads, a head_dim that is no power of two.
SIZES = {
    "float32": {"queries": 50, "keys": 90, "head_dim": 16},
    "bfloat16": {"queries": 70, "keys": 40, "heads": 2, "key_heads": 2, "head_dim": 40},
}


@settings(deadline=None, max_examples=8)
@given(drawn=DRAWN, dtype=st.sampled_from(sorted(SIZES)))
def test_any_layout_and_mask(drawn, dtype):
    assert_exact(run, drawn, dtype, SIZES[dtype])


def test_very_negative_scores_give_finite_gradients():
    (q, k, v), cotangents = problem(0, batch=2, queries=50, keys=90, head_dim=16)
    inputs = (jnp.abs(q) * 40, -jnp.abs(k) * 40, v)  # scores near -2,000
    mask = random_mask(2, 50, 90)
    results = run(inputs, cotangents, mask, scale=0.1)
    assert all(np.isfinite(np.asarray(x)).all() for x in results)
    assert (np.asarray(results[1]) < -500).any()
    # Scores of 2e3 in float32 are off by 2e-4: so are probabilities and gradients.
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), 2e-3)


def test_blocks_that_nobody_reads_are_never_loaded():
    inputs, cotangents = problem(0, batch=1, queries=32, keys=128, head_dim=16)
    groups = np.repeat(np.array([1, 2, 1, 2], np.uint32), 32)
    mask = TokenMask(np.ones(32, np.uint32), groups, width=2)
    q, k, v = inputs
    poison = jnp.asarray(groups == 2)[None, :, None, None]
    poisoned = (q, jnp.where(poison, jnp.nan, k), jnp.where(poison, jnp.nan, v))
    results = run(poisoned, cotangents, mask, scale=0.1)
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), 1e-5)


def test_through_the_public_function():
    inputs, cotangents = problem(0, batch=1, queries=40, keys=50, heads=2, key_heads=1, head_dim=16)
    mask = random_mask(3, 40, 50, batch=1)
    function = lambda *qkv: attention(*qkv, mask, backend="pallas_triton", interpret=True, return_lse=True)
    results, transpose = jax.vjp(jax.jit(function), *inputs)
    assert_close((*results, *transpose(cotangents)), dense_attention(inputs, cotangents, mask, 16**-0.5), 1e-5)
