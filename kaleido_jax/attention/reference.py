"""Masked attention as a chunked online softmax in plain JAX: runs anywhere, with memory linear in the tokens.

The forward pass keeps a running maximum, sum and weighted value per query (Milakov and Gimelshein 2018; Rabe and
Staats 2021) and the backward pass recomputes each block of probabilities from the log-sum-exp (Dao et al. 2022,
algorithm 4), so that of size queries x keys only one block exists at a time.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, UInt32

# A finite stand-in for minus infinity: the score of an invisible pair and the log-sum-exp of a row that reads nothing.
# Finite, so that merging two such rows (logaddexp, a difference of two) can never make a NaN.
NOTHING = -1e30

# The name of what attention keeps for its backward pass, for the policies of jax.checkpoint.
ATTENTION_NAME = "attention"

# Lengths found by measuring on CPUs: the scores of a block, and the keys and values they are made of, stay in a cache.
_BLOCK = 512  # queries or keys of one block of a long sequence
_WHOLE = 1024  # a sequence no longer than this is a single block
_SCORES = 2**18  # scores held at a time: short sequences take several heads together, as long as they stay below it


# 2^x on [-1/2, 1/2] is 1 + these times x, x^2, ... with a relative error below 1e-7 (minimax with the first term held).
_EXP2 = (0.693146978, 0.240222421, 0.0555073374, 0.00967151264, 0.00132647271)
_LOG2_E = math.log2(math.e)


class Visibility(NamedTuple):
    """The vectors of a TokenMask, each [rows, tokens], where rows is the batch or 1."""

    reads: UInt32[Array, "rows n"]
    groups: UInt32[Array, "rows m"]
    q_sample: Int[Array, "rows n"] | None
    k_sample: Int[Array, "rows m"] | None


class _Rows(NamedTuple):
    """What decides, for some queries or for some keys, which pairs are visible."""

    bits: UInt32[Array, "*blocks n"] | None
    sample: Int[Array, "*blocks n"] | None
    present: Bool[Array, "*blocks n"] | None  # keys only: false where the block was filled up


def _block_length(length: int) -> int:
    """The length of equal blocks that cover `length`; one block where it fits, else a multiple of 16 near _BLOCK."""
    if length <= _WHOLE:
        return length
    blocks = math.ceil(length / _BLOCK)
    return 16 * math.ceil(length / (16 * blocks))


def _blocks(x: Array | None, length: int, axis: int) -> Array | None:
    """Splits `axis` into leading blocks of `length`, zero-filled: [..., n, ...] -> [blocks, ..., length, ...]."""
    if x is None:
        return None
    count = max(1, math.ceil(x.shape[axis] / length))
    fill = [(0, 0)] * x.ndim
    fill[axis] = (0, count * length - x.shape[axis])
    x = jnp.pad(x, fill)
    x = x.reshape(x.shape[:axis] + (count, length) + x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _unblocks(x: Array, length: int, axis: int) -> Array:
    """The inverse of _blocks: [blocks, ..., block, ...] -> [..., length, ...]."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(x.shape[:axis] + (-1,) + x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def _scan(body, carry, xs):
    """jax.lax.scan, without a loop where there is a single block."""
    if jax.tree.leaves(xs)[0].shape[0] > 1:
        return jax.lax.scan(body, carry, xs)
    carry, y = body(carry, jax.tree.map(lambda x: x[0], xs))
    return carry, jax.tree.map(lambda y: y[None], y)


def _dot(pattern: str, x: Array, y: Array) -> Array:
    """An einsum that accumulates and returns float32; float32 inputs keep their full precision on every device."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(pattern, x, y, precision=precision, preferred_element_type=jnp.float32)


def _once(x: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """x, which XLA then keeps: it would rather make it again for each of those that read it."""
    return jax.lax.optimization_barrier(x)


def _exp2(x: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
    """2^x in float32, exactly 0 below -127; for x below 127.

    On CPUs about half the time of XLA's own, which is most of what attention needs beside its products: the integer
    part of x goes into the exponent's bits, the rest through a polynomial. At -127 the bits of 1 become those of 0.
    """
    x = jnp.maximum(x, -127.0)
    whole = jax.lax.round(x, jax.lax.RoundingMethod.TO_NEAREST_EVEN)
    rest = x - whole
    y = jnp.full_like(x, _EXP2[-1])
    for coefficient in (*_EXP2[-2::-1], 1.0):
        y = y * rest + coefficient
    bits = jax.lax.bitcast_convert_type(y, jnp.int32) + (whole.astype(jnp.int32) << 23)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _visible(queries: _Rows, keys: _Rows) -> Bool[Array, "one_or_n m"] | None:
    """Which pairs of one block are visible; None if all are."""
    visible = []
    if queries.bits is not None and keys.bits is not None:
        visible.append((queries.bits[:, None] & keys.bits[None, :]) != 0)
    if queries.sample is not None and keys.sample is not None:
        visible.append(queries.sample[:, None] == keys.sample[None, :])
    if keys.present is not None:
        visible.append(keys.present[None, :])
    return functools.reduce(jnp.logical_and, visible) if visible else None


def _hide(scores: Float[Array, "n m"], visible: Bool[Array, "one_or_n one_or_m"] | None) -> Float[Array, "n m"]:
    return scores if visible is None else jnp.where(visible, scores, NOTHING)


def _finite(row: Float[Array, " n"]) -> Float[Array, " n"]:
    """Zero where the row has read nothing: exp(NOTHING - 0) is 0, and exp(NOTHING - NOTHING) would be 1."""
    return jnp.where(row <= NOTHING / 2, 0.0, row)


def _scaled(q: Array, scale: float) -> tuple[Array, float]:
    """Queries whose products with keys are exponents of two, once multiplied by the number beside them.

    In float32 that number is 1, which saves a pass over the scores; queries of 16 bits would lose digits.
    """
    scale = scale * _LOG2_E
    return (q * scale, 1.0) if q.dtype == jnp.float32 else (q, scale)


def _forward_block(q: Float[Array, "n d"], queries: _Rows, k, v, keys: _Rows, scale: float):
    """One block of queries over all blocks of keys: k, v [blocks, m, d] -> out [n, d], lse [n]."""
    dtype = q.dtype
    q, factor = _scaled(q, scale)

    def body(carry, block):
        k, v, keys = block
        scores = _hide(_dot("nd,md->nm", q, k), _visible(queries, keys))
        highest = scores.max(1) if carry is None else jnp.maximum(carry[0], scores.max(1))
        p = _once(_exp2((scores - _finite(highest)[:, None]) * factor))
        total, out = p.sum(1), _dot("nm,md->nd", p.astype(v.dtype), v)
        if carry is not None:
            decay = jnp.exp2((carry[0] - highest) * factor)
            total, out = total + carry[1] * decay, out + carry[2] * decay[:, None]
        return (highest, total, out), None

    start = None
    if k.shape[0] > 1:
        start = (jnp.full(q.shape[0], NOTHING), jnp.zeros(q.shape[0]), jnp.zeros(q.shape))
        start = jax.tree.map(lambda x: x.astype(jnp.float32), start)
    (highest, total, out), _ = _scan(body, start, (k, v, keys))
    nothing = total == 0.0
    total = jnp.where(nothing, 1.0, total)
    lse = jnp.where(nothing, NOTHING, highest * (factor / _LOG2_E) + jnp.log(total))
    return (out / total[:, None]).astype(dtype), lse


def _backward_block(q: Float[Array, "n d"], queries: _Rows, d_out, lse, delta, k, v, keys: _Rows, dk, dv, scale: float):
    """One block of queries over all blocks of keys: the queries' gradient, and dk and dv with its share added.

    Scores stand transposed here, keys x queries: four of the five products then contract adjacent axes, the fifth gives
    the queries' gradient transposed, and XLA's CPU products run at full speed (a transposed left side halves it).
    """
    scaled, factor = _scaled(q, scale)
    lse = _finite(lse) * _LOG2_E

    def body(dq, block):
        k, v, keys, dk, dv = block
        visible = _visible(queries, keys)
        scores = _hide(_dot("md,nd->mn", k, scaled), None if visible is None else visible.T)
        p = _once(_exp2(scores * factor - lse[None]))
        ds = (p * (_dot("md,nd->mn", v, d_out) - delta[None])).astype(q.dtype)
        dv = dv + _dot("mn,nd->md", p.astype(q.dtype), d_out)
        dk = dk + _dot("mn,nd->md", ds, q)
        return dq + _dot("md,mn->dn", k, ds), (dk, dv)

    dq, (dk, dv) = _scan(body, jnp.zeros(q.shape[::-1], jnp.float32), (k, v, keys, dk, dv))
    return (dq.T * scale).astype(q.dtype), dk, dv


class _Layout(NamedTuple):
    """Static sizes: key heads taken together, query heads that share a key head, and the lengths of blocks."""

    lanes: int
    shared: int
    queries: int
    keys: int


def _layout(q: Float[Array, "b g r n d"], k: Float[Array, "b g m d"]) -> _Layout:
    batch, groups, shared, n, _ = q.shape
    block_q, block_k = _block_length(n), _block_length(k.shape[2])
    most = max(1, _SCORES // (shared * block_q * block_k))
    lanes = max(x for x in range(1, batch * groups + 1) if batch * groups % x == 0 and x <= most)
    return _Layout(lanes, shared, block_q, block_k)


def _split_rows(mask: Visibility | None, layout: _Layout, m: int) -> tuple[_Rows, _Rows]:
    """The visibility of the blocks of queries and of keys, each [rows, blocks, block]."""
    of_queries = lambda x: None if x is None else jnp.tile(_blocks(x, layout.queries, 1), layout.shared).swapaxes(0, 1)
    of_keys = lambda x: None if x is None else _blocks(x, layout.keys, 1).swapaxes(0, 1)
    if mask is not None:  # filling up with zero bits makes a token that nobody reads
        queries = _Rows(of_queries(mask.reads), of_queries(mask.q_sample), None)
        return queries, _Rows(of_keys(mask.groups), of_keys(mask.k_sample), None)
    present = of_keys(jnp.ones((1, m), bool)) if m % layout.keys else None
    return _Rows(None, None, None), _Rows(None, None, present)


def _over_lanes(layout: _Layout, function, rows: tuple[_Rows, _Rows], lanes: tuple[Array, ...]):
    """Maps `function(queries, keys, *arrays)` over batch and key heads, the leading axes of every array in `lanes`."""
    batch, groups = lanes[0].shape[:2]
    lanes = jax.tree.map(lambda x: x.reshape((batch * groups,) + x.shape[2:]), lanes)
    row = jnp.arange(batch * groups, dtype=jnp.int32) // groups

    def lane(args):
        row, *arrays = args
        return function(*jax.tree.map(lambda x: x[row if x.shape[0] > 1 else 0], rows), *arrays)

    if layout.lanes == 1:
        _, out = _scan(lambda _, args: (None, lane(args)), None, (row, *lanes))
    elif layout.lanes == batch * groups:
        out = jax.vmap(lane)((row, *lanes))
    else:
        out = jax.lax.map(lane, (row, *lanes), batch_size=layout.lanes)
    return jax.tree.map(lambda x: x.reshape((batch, groups) + x.shape[1:]), out)


def _query_blocks(x: Float[Array, "r n ..."], layout: _Layout) -> Float[Array, "blocks rows ..."]:
    """Blocks of queries, those of all heads that share a key head one after the other."""
    blocks = _blocks(x, layout.queries, 1)
    return blocks.reshape((blocks.shape[0], layout.shared * layout.queries) + blocks.shape[3:])


def _from_query_blocks(x: Float[Array, "blocks rows ..."], layout: _Layout, n: int) -> Float[Array, "r n ..."]:
    """The inverse of _query_blocks."""
    return _unblocks(x.reshape((x.shape[0], layout.shared, layout.queries) + x.shape[2:]), n, 1)


def _forward(q, k, v, mask: Visibility | None, scale: float):
    n, m = q.shape[3], k.shape[2]
    layout = _layout(q, k)

    def lane(queries: _Rows, keys: _Rows, q, k, v):
        k, v = _blocks(k, layout.keys, 0), _blocks(v, layout.keys, 0)
        body = lambda _, block: (None, _forward_block(*block, k, v, keys, scale))
        _, (out, lse) = _scan(body, None, (_query_blocks(q, layout), queries))
        return _from_query_blocks(out, layout, n), _from_query_blocks(lse, layout, n)

    return _over_lanes(layout, lane, _split_rows(mask, layout, m), (q, k, v))


def _backward(q, k, v, mask: Visibility | None, out, lse, d_out, d_lse, scale: float):
    n, m = q.shape[3], k.shape[2]
    layout = _layout(q, k)

    def lane(queries: _Rows, keys: _Rows, q, k, v, out, lse, d_out, d_lse):
        k, v = _blocks(k, layout.keys, 0), _blocks(v, layout.keys, 0)

        def body(carry, block):
            q, out, lse, d_out, d_lse, queries = block
            # The derivative of softmax subtracts sum(p * dp) = sum(out * d_out); the log-sum-exp's adds p * d_lse.
            delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), 1) - d_lse
            dq, dk, dv = _backward_block(q, queries, d_out, lse, delta, k, v, keys, *carry, scale)
            return (dk, dv), dq

        zero = jnp.zeros(k.shape, jnp.float32)
        rows = tuple(_query_blocks(x, layout) for x in (q, out, lse, d_out, d_lse))
        (dk, dv), dq = _scan(body, (zero, zero), (*rows, queries))
        dk, dv = _unblocks(dk * scale, m, 0).astype(k.dtype), _unblocks(dv, m, 0).astype(v.dtype)
        return _from_query_blocks(dq, layout, n), dk, dv

    return _over_lanes(layout, lane, _split_rows(mask, layout, m), (q, k, v, out, lse, d_out, d_lse))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, mask, scale):
    return _forward(q, k, v, mask, scale)


def _attend_forward(q, k, v, mask, scale):
    # Named here and not by callers: a policy that kept only what leaves attention would run it again for the lse.
    out, lse = checkpoint_name(_forward(q, k, v, mask, scale), ATTENTION_NAME)
    return (out, lse), (q, k, v, mask, out, lse)


def _attend_backward(scale, saved, cotangents):
    q, k, v, mask, out, lse = saved
    return (*_backward(q, k, v, mask, out, lse, *cotangents, scale), None)


_attend.defvjp(_attend_forward, _attend_backward)


def reference_attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    mask: Visibility | None,
    scale: float,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """Attention and its log-sum-exp (float32); query head i reads key head i // (h // g)."""
    batch, n, heads, head_dim = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, n, groups, heads // groups, head_dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    out, lse = _attend(q, k, v, mask, scale)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, n, heads, head_dim), lse.reshape(batch, heads, n)
