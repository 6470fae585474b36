"""The Hopper kernels, interpreted on the host, against dense float64 attention by torch.

Tolerance: a relative L2 error of 1e-2 in bfloat16 (probabilities are rounded to 8 bits for the second product). The
interpreter keeps to barriers, shared memory and the order of copies, not to registers, so that a kernel whose
warpgroups would wait for each other forever, or read what has not come yet, fails here as well.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.attention import attention, pallas_gpu
from kaleido_jax.masks import TokenMask
from tests.attention.dense import assert_close, dense_attention, problem


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Blocks so short that rings of two buffers are filled more than once."""
    for name in ("FORWARD", "QUERY_GRADIENT", "KEY_GRADIENT"):
        assert getattr(pallas_gpu, name).fetched % 64 == 0
    monkeypatch.setattr(pallas_gpu, "FORWARD", pallas_gpu.BlockSizes(64, 2))


def test_against_float64():
    """Full, partial and empty blocks, samples, queries that read nothing, grouped heads, lengths that fill no block."""
    inputs, cotangents = problem(0, batch=1, queries=120, keys=250, heads=2, key_heads=1, head_dim=40, dtype="bfloat16")
    q_sample, k_sample = np.zeros(120, np.int32), np.zeros(250, np.int32)
    q_sample[-9:], k_sample[-20:] = 1, 1
    reads, groups = np.full(120, 3, np.uint32), np.where(np.arange(250) < 128, 1, 2).astype(np.uint32)
    reads[:20], reads[30:35], groups[130:140] = 1, 0, 4
    mask = TokenMask(reads, groups, q_sample=q_sample, k_sample=k_sample, width=3)
    function = lambda *qkv: attention(*qkv, mask, backend="pallas_gpu", interpret=True, return_lse=True, scale=0.1)
    results, transpose = jax.vjp(jax.jit(function), *inputs)
    results = (*results, *transpose(cotangents))
    assert [x.dtype for x in results] == [jnp.bfloat16, jnp.float32] + [jnp.bfloat16] * 3
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), 1e-2)
    assert not np.asarray(results[0].astype(jnp.float32))[:, 30:35].any()
    assert not np.asarray(results[2].astype(jnp.float32))[:, 30:35].any()


def test_very_negative_scores_and_rows_that_read_nothing_give_finite_gradients():
    """Keys of 128 k + 64 tokens: with a mask and a log-sum-exp far below zero, cuDNN's gradients are NaN there."""
    (q, k, v), cotangents = problem(0, batch=1, queries=64, keys=192, heads=1, key_heads=1, dtype="float16")
    inputs = (jnp.abs(q) * 30, -jnp.abs(k) * 30, v)  # scores near -4,000
    reads = np.where(np.arange(64) < 7, 0, 1).astype(np.uint32)
    mask = TokenMask(reads, np.where(np.arange(192) % 3 == 0, 2, 1).astype(np.uint32), width=2)
    function = lambda *qkv: attention(*qkv, mask, backend="pallas_gpu", interpret=True, return_lse=True, scale=0.1)
    results, transpose = jax.vjp(jax.jit(function), *inputs)
    results = (*results, *transpose(cotangents))
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in results)
    assert np.asarray(results[1])[0, 0, 7:].max() < -1000
    # Scores of 4e3 are sums of products of float16 in float32, off by 1e-3 at most; probabilities have 11 bits.
    assert_close(results, dense_attention(inputs, cotangents, mask, 0.1), 1e-2)


def test_without_a_mask():
    (q, k, v), cotangents = problem(0, batch=1, queries=64, keys=150, heads=1, key_heads=1, dtype="float16")
    out = jax.jit(lambda q, k, v: attention(q, k, v, backend="pallas_gpu", interpret=True))(q, k, v)
    expected = dense_attention((q, k, v), cotangents, None, 64**-0.5)[0]
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=2e-3)


def test_blocks_that_nobody_reads_are_never_fetched():
    (q, k, v), cotangents = problem(0, batch=1, queries=64, keys=256, heads=1, key_heads=1, dtype="float16")
    groups = np.repeat(np.array([1, 2, 1, 2], np.uint32), 64)
    mask = TokenMask(np.ones(64, np.uint32), groups, width=2)
    poison = jnp.asarray(groups == 2)[None, :, None, None]
    attend = jax.jit(lambda q, k, v: attention(q, k, v, mask, backend="pallas_gpu", interpret=True))
    out = attend(q, jnp.where(poison, jnp.nan, k), jnp.where(poison, jnp.nan, v))
    expected = dense_attention((q, k, v), cotangents, mask, 64**-0.5)[0]
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=2e-3)


@pytest.mark.parametrize("samples", [False, True])
def test_lowers_for_hopper_with_traced_masks_of_every_row(samples):
    half = jax.ShapeDtypeStruct((2, 75_600, 4, 128), jnp.bfloat16)
    bits = jax.ShapeDtypeStruct((2, 75_600), jnp.uint32)
    sample = jax.ShapeDtypeStruct((2, 75_600), jnp.int32) if samples else None

    def loss(q, k, v, reads, groups, sample):
        visibility = pallas_gpu.Visibility(reads, groups, sample, sample)
        return pallas_gpu.forward(q, k, v, visibility, 0.1)

    lowered = jax.jit(loss).trace(half, half, half, bits, bits, sample).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


def test_what_the_tensor_cores_do_not_take_is_an_error():
    x = lambda width, dtype: jnp.ones((1, 4, 2, width), dtype)
    attend = lambda x: attention(x, x, x, backend="pallas_gpu", interpret=True)
    with pytest.raises(ValueError, match="q is float32; backend='pallas_gpu' takes bfloat16 or float16"):
        jax.eval_shape(attend, x(64, jnp.float32))
    with pytest.raises(ValueError, match="q has head_dim 160; backend='pallas_gpu' takes at most 128"):
        jax.eval_shape(attend, x(160, jnp.bfloat16))
