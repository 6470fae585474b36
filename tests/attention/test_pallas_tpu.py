"""The TPU kernels, interpreted on the host, against dense float64 attention by torch.

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
from jax.experimental.pallas import tpu as pltpu

from kaleido_jax.attention import attention, pallas_tpu
from kaleido_jax.attention.pallas_tpu import BlockSizes
from kaleido_jax.attention.reference import Visibility
from kaleido_jax.masks import TokenMask
from tests.attention.dense import assert_close, dense_attention, problem, random_mask, visibility_of
from tests.attention.drawn import DRAWN, assert_exact

SMALL = BlockSizes(128, 128)


@functools.partial(jax.jit, static_argnames=("scale", "interpret"))
def run(inputs, cotangents, mask, *, scale, interpret=True):
    """Forward and backward with blocks so small that there are several."""
    visibility = visibility_of(mask)
    out, lse = pallas_tpu.forward(*inputs, visibility, scale, sizes=SMALL, interpret=interpret)
    gradients = pallas_tpu.backward(*inputs, visibility, out, lse, *cotangents, scale, sizes=SMALL, interpret=interpret)
    return out, lse, *gradients


CASES = {
    "mask of a row, samples, grouped heads": ({"queries": 300, "keys": 420}, True, 1e-5),
    "no mask, lengths that fill no block": ({"queries": 150, "keys": 260, "heads": 2, "head_dim": 40}, False, 1e-5),
    "bfloat16": ({"queries": 256, "keys": 384, "head_dim": 128, "dtype": "bfloat16"}, True, 1e-2),
    "float16": ({"queries": 130, "keys": 130, "heads": 2, "dtype": "float16"}, True, 2e-3),
    "wide heads": ({"queries": 128, "keys": 256, "heads": 1, "key_heads": 1, "head_dim": 160}, False, 1e-5),
}


@pytest.mark.parametrize("name", CASES)
def test_against_float64(name):
    sizes, masked, tolerance = CASES[name]
    inputs, cotangents = problem(0, **sizes)
    mask = random_mask(1, sizes["queries"], sizes["keys"]) if masked else None
    results = run(inputs, cotangents, mask, scale=0.1)
    assert [x.dtype for x in results] == [inputs[0].dtype, jnp.float32] + [inputs[0].dtype] * 3
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), tolerance)


# Lengths that fill no block, shared and own key heads, a head_dim that is no multiple of a register's.
SIZES = {
    "float32": {"queries": 300, "keys": 420},
    "bfloat16": {"queries": 140, "keys": 270, "heads": 2, "key_heads": 2, "head_dim": 40},
}


@settings(deadline=None, max_examples=8)
@given(drawn=DRAWN, dtype=st.sampled_from(sorted(SIZES)))
def test_any_layout_and_mask(drawn, dtype):
    assert_exact(run, drawn, dtype, SIZES[dtype])


def test_transfers_do_not_race():
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # jax's own tests read the result here

    inputs, cotangents = problem(0, batch=1, queries=200, keys=420, heads=2, key_heads=1)
    mask = random_mask(1, 200, 420, batch=1)
    results = run(inputs, cotangents, mask, scale=0.1, interpret=pltpu.InterpretParams(detect_races=True))
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), 1e-5)
    assert not interpret_pallas_call.races.races_found


def test_blocks_that_nobody_reads_are_never_fetched():
    inputs, cotangents = problem(0, batch=1, queries=256, keys=512)
    groups = np.repeat(np.array([1, 2, 1, 2], np.uint32), 128)
    mask = TokenMask(np.ones(256, np.uint32), groups, width=2)
    q, k, v = inputs
    poison = jnp.asarray(groups == 2)[None, :, None, None]
    poisoned = (q, jnp.where(poison, jnp.nan, k), jnp.where(poison, jnp.nan, v))
    results = run(poisoned, cotangents, mask, scale=0.1)
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), 1e-5)


def test_queries_that_read_nothing_give_zeros():
    inputs, cotangents = problem(0, batch=1, queries=140, keys=130)
    reads = np.where(np.arange(140) < 131, 0, 1).astype(np.uint32)
    mask = TokenMask(reads, np.ones(130, np.uint32), width=1)
    out, lse, dq, dk, dv = run(inputs, cotangents, mask, scale=0.1)
    assert not np.asarray(out)[:, :131].any() and not np.asarray(dq)[:, :131].any()
    assert (np.asarray(lse)[:, :, :131] == -1e30).all()
    assert all(np.isfinite(x).all() for x in (dk, dv))


def test_very_negative_scores_give_finite_gradients():
    (q, k, v), cotangents = problem(0, batch=1, queries=130, keys=256)
    inputs = (jnp.abs(q) * 30, -jnp.abs(k) * 30, v)  # scores near -10,000
    mask = random_mask(2, 130, 256, batch=1)
    results = run(inputs, cotangents, mask, scale=0.1)
    assert all(np.isfinite(x).all() for x in results)
    # Scores of 1e4 in float32 are off by 1e-3: so are probabilities and gradients.
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), 1e-2)


def test_through_the_public_function():
    inputs, cotangents = problem(0, batch=2, queries=600, keys=140, heads=2, key_heads=1)
    mask = random_mask(3, 600, 140)
    function = lambda *qkv: attention(*qkv, mask, backend="pallas_tpu", interpret=True, return_lse=True)
    results, transpose = jax.vjp(jax.jit(function), *inputs)
    assert_close((*results, *transpose(cotangents)), dense_attention(inputs, cotangents, mask, 64**-0.5), 1e-5)


@pytest.mark.parametrize("tokens", [75_600, 262_144])
def test_lowers_for_tpus_with_traced_masks_of_every_row(tokens):
    """Lists are streamed: what a kernel holds in scalar memory is one row of them, whatever the number of rows."""
    half = jax.ShapeDtypeStruct((4, tokens, 2, 128), jnp.bfloat16)
    bits = jax.ShapeDtypeStruct((4, tokens), jnp.uint32)

    def loss(q, k, v, reads, groups):
        out, _ = pallas_tpu.forward(q, k, v, Visibility(reads, groups, None, None), 0.1)
        return out

    lowered = jax.jit(loss).trace(half, half, half, bits, bits).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()
    # Words of one row of lists, twice (double buffered), against the 1 MiB of scalar memory.
    assert 2 * 4 * (2 + tokens // pallas_tpu.FORWARD.keys) < 2**20 / 8
