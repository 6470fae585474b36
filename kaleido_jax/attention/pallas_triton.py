"""Masked flash attention for NVIDIA GPUs (Pallas, Triton): forward and backward over lists of visited blocks.

One program takes one block of queries of a head (of keys of a key head, for the keys' gradients) and walks its list: a
block that is not listed costs neither a product nor a load, and blocks that are visible in full run a loop without any
mask arithmetic. Arrays keep the layout [batch, tokens, heads, head_dim], so nothing is transposed.

Online softmax and gradients as in pallas_tpu.py; each gradient is summed in one program in one order, so they are
deterministic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from kaleido_jax.attention.block_sizes import tuned
from kaleido_jax.attention.blocks import FIRST, VISITED, WHOLE, BlockLists, fill_and_list
from kaleido_jax.attention.reference import NOTHING, Visibility
from kaleido_jax.typing import Array, Float

_LOG2E = math.log2(math.e)


class BlockSizes(NamedTuple):
    """Queries and keys of a block, powers of two from 16 on, and how many warps share the work on it."""

    queries: int
    keys: int
    warps: int


FORWARD = BlockSizes(128, 64, 8)
BACKWARD = BlockSizes(64, 64, 4)
FLOAT32 = BlockSizes(32, 32, 4)  # forward and backward: twice the bytes, and products without tensor cores


class _Sizes(NamedTuple):
    """What is static about a call of a kernel."""

    block_q: int
    block_k: int
    shared: int  # query heads that read one key head
    samples: bool
    scale: float

    @property
    def scale2(self) -> float:
        """Scales scores for powers of two, which the hardware computes."""
        return self.scale * _LOG2E


class _Operands(NamedTuple):
    """The arrays of a call, filled up to whole blocks and to a head_dim that is a power of two."""

    q: Array
    k: Array
    v: Array
    visibility: Visibility  # samples are zeros where there are none
    lists: BlockLists


def _fill(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b filled h lanes"]:
    width = max(16, 1 << (x.shape[3] - 1).bit_length())
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, width - x.shape[3])))


def _prepare(q, k, v, visibility: Visibility | None, scale: float, sizes: BlockSizes) -> tuple[_Operands, _Sizes]:
    visibility, lists = fill_and_list(visibility, q.shape[1], k.shape[1], sizes.queries, sizes.keys)
    rows = lists.by_query.shape[0]
    static = _Sizes(sizes.queries, sizes.keys, q.shape[2] // k.shape[2], visibility.q_sample is not None, scale)
    if visibility.q_sample is None:  # one token of zeros, which no kernel loads
        visibility = visibility._replace(q_sample=jnp.zeros((1, 1), jnp.int32), k_sample=jnp.zeros((1, 1), jnp.int32))
    visibility = jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, x.shape[1])), visibility)
    fill_q, fill_k = functools.partial(_fill, block=sizes.queries), functools.partial(_fill, block=sizes.keys)
    return _Operands(fill_q(q), fill_k(k), fill_k(v), visibility, lists), static


def _dot(x: Array, y: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return pltriton.dot(x, y, precision=precision)


def _hide(scores: Array, bits_0: Array, bits_1: Array, samples: tuple[Array, Array] | None) -> Array:
    """NOTHING where the token of a row and that of a column do not see each other."""
    visible = (bits_0[:, None] & bits_1[None, :]) != 0
    if samples is not None:
        visible &= samples[0][:, None] == samples[1][None, :]
    return jnp.where(visible, scores, NOTHING)


def _finite(x: Array) -> Array:
    """Zero where a row has read nothing, so that exp2(NOTHING - x) is 0 there and not 1."""
    return jnp.where(x <= NOTHING / 2, 0.0, x)


def _walk(words: Any, step: Callable, carry: Any) -> Any:
    """step(block, carry, partial) for all blocks of a list: the full ones, then the partial ones."""
    visited, whole = words[VISITED], words[WHOLE]
    visit = lambda partial: lambda i, carry: step(words[FIRST + i], carry, partial)
    carry = jax.lax.fori_loop(0, whole, visit(False), carry)
    return jax.lax.fori_loop(whole, visited, visit(True), carry)


def _forward_kernel(words, q, k, v, reads, groups, q_sample, k_sample, out, lse, *, sizes: _Sizes):
    query, bits = q[...], reads[...]
    sample = q_sample[...] if sizes.samples else None

    def step(block, carry, partial: bool):
        highest, total, summed = carry
        here = pl.ds(block * sizes.block_k, sizes.block_k)
        key, value = k[here, :], v[here, :]
        scores = _dot(query, key.T)
        if partial:
            scores = _hide(scores, bits, groups[here], (sample, k_sample[here]) if sizes.samples else None)
        new = jnp.maximum(highest, scores.max(1))
        base = _finite(new) if partial else new
        p = jnp.exp2((scores - base[:, None]) * sizes.scale2)
        decay = jnp.exp2((highest - new) * sizes.scale2)
        return new, total * decay + p.sum(1), summed * decay[:, None] + _dot(p.astype(value.dtype), value)

    start = (
        jnp.full((sizes.block_q,), NOTHING, jnp.float32),
        jnp.zeros((sizes.block_q,), jnp.float32),
        jnp.zeros(query.shape, jnp.float32),
    )
    highest, total, summed = _walk(words, step, start)
    nothing = total == 0.0
    total = jnp.where(nothing, 1.0, total)
    out[...] = (summed / total[:, None]).astype(out.dtype)
    lse[...] = jnp.where(nothing, NOTHING, highest * sizes.scale + jnp.log(total))


def _dq_kernel(words, q, d_out, lse, delta, k, v, reads, groups, q_sample, k_sample, dq, *, sizes: _Sizes):
    query, gradient, bits = q[...], d_out[...], reads[...]
    sums, shift = lse[...], delta[...]
    sample = q_sample[...] if sizes.samples else None

    def step(block, summed, partial: bool):
        here = pl.ds(block * sizes.block_k, sizes.block_k)
        key, value = k[here, :], v[here, :]
        scores = _dot(query, key.T)
        if partial:
            scores = _hide(scores, bits, groups[here], (sample, k_sample[here]) if sizes.samples else None)
        p = jnp.exp2(scores * sizes.scale2 - sums[:, None])
        ds = p * (_dot(gradient, value.T) - shift[:, None])
        return summed + _dot(ds.astype(key.dtype), key)

    summed = _walk(words, step, jnp.zeros(query.shape, jnp.float32))
    dq[...] = (summed * sizes.scale).astype(dq.dtype)


def _dkv_kernel(words, k, v, q, d_out, lse, delta, groups, reads, k_sample, q_sample, dk, dv, *, sizes: _Sizes):
    """One block of keys, read by all query heads that share it; scores are keys x queries."""
    key, value, bits = k[...], v[...], groups[...]
    sample = k_sample[...] if sizes.samples else None

    def step(head: int, block, carry, partial: bool):
        dk_sum, dv_sum = carry
        here = pl.ds(block * sizes.block_q, sizes.block_q)
        query, gradient = q[here, head, :], d_out[here, head, :]
        scores = _dot(key, query.T)
        if partial:
            scores = _hide(scores, bits, reads[here], (sample, q_sample[here]) if sizes.samples else None)
        p = jnp.exp2(scores * sizes.scale2 - lse[head, here][None, :])
        ds = p * (_dot(value, gradient.T) - delta[head, here][None, :])
        return dk_sum + _dot(ds.astype(query.dtype), query), dv_sum + _dot(p.astype(query.dtype), gradient)

    carry = jnp.zeros(key.shape, jnp.float32), jnp.zeros(key.shape, jnp.float32)
    for head in range(sizes.shared):
        carry = _walk(words, functools.partial(step, head), carry)
    dk[...] = (carry[0] * sizes.scale).astype(dk.dtype)
    dv[...] = carry[1].astype(dv.dtype)


class _Specs(NamedTuple):
    """Which part of an array a program (batch, head, block) sees."""

    rows: int  # of the mask: the batch or 1
    shared: int  # query heads that read one key head

    def row(self, b: Any) -> Any:
        return b if self.rows > 1 else 0

    def words(self, words: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, words.shape[2]), lambda b, h, i: (self.row(b), i, 0))

    def vector(self, block: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, block), lambda b, h, i: (self.row(b), i))

    def whole_vector(self, x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, x.shape[1]), lambda b, h, i: (self.row(b), 0))

    def block(self, x: Array, block: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, block, None, x.shape[3]), lambda b, h, i: (b, i, h, 0))

    def keys(self, x: Array) -> pl.BlockSpec:
        """All keys that a query head reads."""
        place = lambda b, h, i: (b, 0, jax.lax.div(h, self.shared), 0)
        return pl.BlockSpec((None, x.shape[1], None, x.shape[3]), place)

    def queries(self, x: Array) -> pl.BlockSpec:
        """All queries of the heads that read a key head."""
        return pl.BlockSpec((None, x.shape[1], self.shared, x.shape[3]), lambda b, g, i: (b, 0, g, 0))

    def statistic(self, block: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, block), lambda b, h, i: (b, h, i))

    def statistics(self, x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((None, self.shared, x.shape[2]), lambda b, g, i: (b, g, 0))


def _call(kernel: Callable, sizes: _Sizes, warps: int, interpret: bool, **specs: Any) -> Callable:
    return pl.pallas_call(
        functools.partial(kernel, sizes=sizes),
        compiler_params=pltriton.CompilerParams(num_warps=warps, num_stages=2),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
        **specs,
    )


def _vector_specs(specs: _Specs, static: _Sizes, block: int, others: Array) -> list[pl.BlockSpec]:
    """For the samples of a program's own tokens, and for all of the others'."""
    own = specs.vector(block) if static.samples else pl.BlockSpec((None, 1), lambda b, h, i: (0, 0))
    return [own, specs.whole_vector(others)]


def forward(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    visibility: Visibility | None,
    scale: float,
    *,
    sizes: BlockSizes | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """Attention and its log-sum-exp (float32); query head i reads key head i // (h // g)."""
    sizes = sizes or tuned("pallas_triton", "forward", q.dtype, FLOAT32 if q.dtype == jnp.float32 else FORWARD)
    operands, static = _prepare(q, k, v, visibility, scale, sizes)
    reads, groups, q_sample, k_sample = operands.visibility
    specs = _Specs(reads.shape[0], static.shared)
    batch, tokens, heads, _ = operands.q.shape
    out, lse = _call(
        _forward_kernel,
        static,
        sizes.warps,
        interpret,
        grid=(batch, heads, tokens // static.block_q),
        in_specs=[
            specs.words(operands.lists.by_query),
            specs.block(operands.q, static.block_q),
            specs.keys(operands.k),
            specs.keys(operands.v),
            specs.vector(static.block_q),
            specs.whole_vector(groups),
            *_vector_specs(specs, static, static.block_q, k_sample),
        ],
        out_specs=[specs.block(operands.q, static.block_q), specs.statistic(static.block_q)],
        out_shape=[
            jax.ShapeDtypeStruct(operands.q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32),
        ],
    )(operands.lists.by_query, operands.q, operands.k, operands.v, reads, groups, q_sample, k_sample)
    return out[:, : q.shape[1], :, : q.shape[3]], lse[:, :, : q.shape[1]]


def backward(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    visibility: Visibility | None,
    out: Float[Array, "b n h d"],
    lse: Float[Array, "b h n"],
    d_out: Float[Array, "b n h d"],
    d_lse: Float[Array, "b h n"],
    scale: float,
    *,
    sizes: BlockSizes | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b m g d"], Float[Array, "b m g d"]]:
    """The gradients of q, k and v, given the results of `forward` and their cotangents."""
    sizes = sizes or tuned("pallas_triton", "backward", q.dtype, FLOAT32 if q.dtype == jnp.float32 else BACKWARD)
    operands, static = _prepare(q, k, v, visibility, scale, sizes)
    reads, groups, q_sample, k_sample = operands.visibility
    specs, call = _Specs(reads.shape[0], static.shared), functools.partial(_call, sizes=static, warps=sizes.warps)
    batch, tokens, heads, _ = operands.q.shape
    _, keys, key_heads, _ = operands.k.shape
    # The derivative of softmax subtracts sum(p * dp) = sum(out * d_out); that of the log-sum-exp adds p * d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1).swapaxes(1, 2) - d_lse
    fill = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, tokens - x.shape[2])))
    delta, lse = fill(delta), fill(_finite(lse) * _LOG2E)
    d_out = _fill(d_out.astype(q.dtype), static.block_q)
    dq = call(
        _dq_kernel,
        interpret=interpret,
        grid=(batch, heads, tokens // static.block_q),
        in_specs=[
            specs.words(operands.lists.by_query),
            specs.block(operands.q, static.block_q),
            specs.block(d_out, static.block_q),
            specs.statistic(static.block_q),
            specs.statistic(static.block_q),
            specs.keys(operands.k),
            specs.keys(operands.v),
            specs.vector(static.block_q),
            specs.whole_vector(groups),
            *_vector_specs(specs, static, static.block_q, k_sample),
        ],
        out_specs=specs.block(operands.q, static.block_q),
        out_shape=jax.ShapeDtypeStruct(operands.q.shape, q.dtype),
    )(
        operands.lists.by_query, operands.q, d_out, lse, delta, operands.k, operands.v, reads, groups,
        q_sample, k_sample,
    )  # fmt: skip
    dk, dv = call(
        _dkv_kernel,
        interpret=interpret,
        grid=(batch, key_heads, keys // static.block_k),
        in_specs=[
            specs.words(operands.lists.by_key),
            specs.block(operands.k, static.block_k),
            specs.block(operands.v, static.block_k),
            specs.queries(operands.q),
            specs.queries(d_out),
            specs.statistics(lse),
            specs.statistics(delta),
            specs.vector(static.block_k),
            specs.whole_vector(reads),
            *_vector_specs(specs, static, static.block_k, q_sample),
        ],
        out_specs=[specs.block(operands.k, static.block_k)] * 2,
        out_shape=[jax.ShapeDtypeStruct(operands.k.shape, k.dtype)] * 2,
    )(
        operands.lists.by_key, operands.k, operands.v, operands.q, d_out, lse, delta, groups, reads,
        k_sample, q_sample,
    )  # fmt: skip
    cut = lambda x, like: x[:, : like.shape[1], :, : like.shape[3]]
    return cut(dq, q), cut(dk, k), cut(dv, v)
