"""Masked flash attention for TPUs (Pallas, Mosaic): forward and backward kernels that walk lists of visited blocks.

A step of a kernel's grid takes one block of queries (of keys, for the keys' gradients) and walks its list of blocks:
keys and values stay in HBM and the kernel fetches what the list names, the next block while it works on the one before,
so a block that is not listed costs neither a product nor a transfer. The lists come into SMEM a row at a time. Blocks
that are visible in full come first and run a body without any mask arithmetic.

The forward pass is the online softmax (Milakov and Gimelshein 2018). The backward pass recomputes probabilities from
the log-sum-exp (Dao et al. 2022, algorithm 4), dq in one kernel and dk, dv in another, so that each sum is made in one
place and in one order: gradients are deterministic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kaleido_jax.attention.block_sizes import tuned
from kaleido_jax.attention.blocks import FIRST, VISITED, WHOLE, block_length, fill_and_list
from kaleido_jax.attention.reference import NOTHING, Visibility
from kaleido_jax.typing import Array, Float, Int32

LANES = 128  # of a vector register: the last axis of every block is a multiple of it
_LOG2E = math.log2(math.e)


class BlockSizes(NamedTuple):
    """Queries and keys of a block, multiples of 128."""

    queries: int
    keys: int


FORWARD = BlockSizes(512, 1024)
BACKWARD = BlockSizes(512, 512)


class _Sizes(NamedTuple):
    """What is static about a call of a kernel."""

    block_q: int
    block_k: int
    shared: int  # query heads that read one key head
    rows: int  # of the mask: the batch or 1
    scale: float

    @property
    def scale2(self) -> float:
        """Scales scores for powers of two, which the hardware computes."""
        return self.scale * _LOG2E


class _Operands(NamedTuple):
    """The arrays of a call in the layout of the kernels, filled up to whole blocks and whole registers."""

    q: Float[Array, "b h n d"]
    k: Float[Array, "b g m d"]
    v: Float[Array, "b g m d"]
    q_rows: Int32[Array, "rows blocks vectors block"]
    k_rows: Int32[Array, "rows blocks vectors block"]
    by_query: Int32[Array, "lists 1 words"]
    by_key: Int32[Array, "lists 1 words"]


def _pad(x: Array, axis: int, multiple: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)


def _heads_first(x: Float[Array, "b n h d"], block: int) -> Float[Array, "b h filled lanes"]:
    return _pad(_pad(x.transpose(0, 2, 1, 3), 2, block), 3, LANES)


def _tokens_first(x: Float[Array, "b h filled lanes"], like: Float[Array, "b n h d"]) -> Float[Array, "b n h d"]:
    return x[:, :, : like.shape[1], : like.shape[3]].transpose(0, 2, 1, 3).astype(like.dtype)


def _vectors(bits: Array, sample: Array | None, rows: int, block: int) -> Int32[Array, "rows blocks vectors block"]:
    """Bits and, where there are any, samples of each block."""
    vectors = [jax.lax.bitcast_convert_type(bits, jnp.int32)] + ([] if sample is None else [sample])
    vectors = jnp.stack([jnp.broadcast_to(x, (rows, x.shape[1])) for x in vectors], axis=1)
    return vectors.reshape(rows, len(vectors[0]), -1, block).swapaxes(1, 2)


def _prepare(q, k, v, visibility: Visibility | None, scale: float, sizes: BlockSizes) -> tuple[_Operands, _Sizes]:
    if q.dtype == jnp.float16:  # the matrix units have bfloat16 and float32 only
        q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    block_q, block_k = block_length(q.shape[1], sizes.queries, LANES), block_length(k.shape[1], sizes.keys, LANES)
    visibility, lists = fill_and_list(visibility, q.shape[1], k.shape[1], block_q, block_k)
    rows = max(x.shape[0] for x in visibility if x is not None)
    # One after the other: a transposition may be two copies, and those of only one array are to exist at a time.
    keys, v = jax.lax.optimization_barrier((_heads_first(k, block_k), v))
    values, q = jax.lax.optimization_barrier((_heads_first(v, block_k), q))
    operands = _Operands(
        _heads_first(q, block_q),
        keys,
        values,
        _vectors(visibility.reads, visibility.q_sample, rows, block_q),
        _vectors(visibility.groups, visibility.k_sample, rows, block_k),
        *(words.reshape(-1, 1, words.shape[2]) for words in lists),
    )
    return operands, _Sizes(block_q, block_k, q.shape[2] // k.shape[2], rows, scale)


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    """The product of two matrices that sums over an axis of each, in float32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    dimensions = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _column(row: Array) -> Array:
    """[1, n] -> [n, 128] with equal lanes."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _row(column: Array) -> Array:
    """The inverse of _column: [n, 128] -> [1, n]."""
    return column.T[:1]


def _wide(column: Array, lanes: int) -> Array:
    """[n, 128] with equal lanes -> [n, lanes]."""
    return jnp.tile(column, (1, lanes // LANES))


def _finite(x: Array) -> Array:
    """Zero where a row has read nothing, so that exp2(NOTHING - x) is 0 there and not 1."""
    return jnp.where(x <= NOTHING / 2, 0.0, x)


def _hide(scores: Array, columns: Any, rows: Array) -> Array:
    """NOTHING where the token of a column may not read, or be read by, that of a row: [vectors, ...] each."""
    width = scores.shape[1]
    visible = (_wide(columns[0], width) & rows[:1]) != 0
    if rows.shape[0] > 1:
        visible &= _wide(columns[1], width) == rows[1:]
    return jnp.where(visible, scores, NOTHING)


def _fill_columns(columns: Any, rows: Array) -> None:
    """Turns rows [vectors, n] into columns [vectors, n, 128]."""
    for i in range(rows.shape[0]):
        columns[i] = _column(rows[i : i + 1])


def _walk(words: Any, transfers: Callable, mask_transfer: Callable, before: Callable, visit: Callable) -> None:
    """Visits the blocks of a list, fetching the next one while it works on one.

    words: the list, [1, words] in SMEM. transfers(block, slot): the copies of what every visit needs into the slot, 0
    or 1. mask_transfer(block, slot): the copy that a partial block needs besides. before(): what to do once, while the
    first block is on its way, if any is partial. visit(slot, partial).
    """
    visited, whole = words[0, VISITED], words[0, WHOLE]

    def start(i):
        block, slot = words[0, FIRST + i], jax.lax.rem(i, 2)
        for copy in transfers(block, slot):
            copy.start()

        @pl.when(i >= whole)
        def _():
            mask_transfer(block, slot).start()

    def step(i, partial: bool):
        @pl.when(i + 1 < visited)
        def _():
            start(i + 1)

        block, slot = words[0, FIRST + i], jax.lax.rem(i, 2)
        for copy in transfers(block, slot):
            copy.wait()
        if partial:
            mask_transfer(block, slot).wait()
        visit(slot, partial)

    @pl.when(visited > 0)
    def _():
        start(jnp.int32(0))

    @pl.when(visited > whole)
    def _():
        before()

    jax.lax.fori_loop(0, whole, lambda i, _: step(i, False), None)
    jax.lax.fori_loop(whole, visited, lambda i, _: step(i, True), None)


def _transfers(head: Any, pairs: Any, mask_pair: Any, signals: Any, sizes: _Sizes) -> tuple[Callable, Callable]:
    """The copies of a block into a slot: of what every visit needs of a head, and of the mask's vectors.

    Each pair is (everything [batch, heads or none, blocks, ...] in HBM, buffer of two slots).
    """
    batch = pl.program_id(0)

    def transfers(block, slot):
        return [
            pltpu.make_async_copy(everything.at[batch, head, block], buffer.at[slot], signals.at[slot, i])
            for i, (everything, buffer) in enumerate(pairs)
        ]

    def mask_transfer(block, slot):
        everything, buffer = mask_pair
        row = batch if sizes.rows > 1 else 0
        return pltpu.make_async_copy(everything.at[row, block], buffer.at[slot], signals.at[slot, len(pairs)])

    return transfers, mask_transfer


def _forward_kernel(words, q, q_rows, k_all, v_all, k_rows_all, *refs, sizes: _Sizes):
    """One block of queries of one head; refs are outputs and scratch."""
    out, lse, k_buffer, v_buffer, rows_buffer, columns, highest, total, summed, signals = refs
    head = jax.lax.div(pl.program_id(1), sizes.shared)
    pairs = ((k_all, k_buffer), (v_all, v_buffer))
    transfers, mask_transfer = _transfers(head, pairs, (k_rows_all, rows_buffer), signals, sizes)

    def visit(slot, partial: bool):
        scores = _dot(q[...], k_buffer[slot], 1, 1)
        if partial:
            scores = _hide(scores, columns, rows_buffer[slot])
        old = highest[...]
        new = jnp.maximum(old, scores.max(1, keepdims=True))
        base = _finite(new) if partial else new
        p = jnp.exp2((scores - _wide(base, sizes.block_k)) * sizes.scale2)
        decay = jnp.exp2((old - new) * sizes.scale2)
        highest[...] = new
        # Lane by lane: the sum over lanes waits for the end.
        lanes = functools.reduce(jnp.add, [p[:, i : i + LANES] for i in range(0, sizes.block_k, LANES)])
        total[...] = decay * total[...] + lanes
        value = v_buffer[slot]
        summed[...] = _wide(decay, value.shape[1]) * summed[...] + _dot(p.astype(value.dtype), value, 1, 0)

    highest[...] = jnp.full(highest.shape, NOTHING, jnp.float32)
    total[...] = jnp.zeros(total.shape, jnp.float32)
    summed[...] = jnp.zeros(summed.shape, jnp.float32)
    _walk(words, transfers, mask_transfer, lambda: _fill_columns(columns, q_rows[...]), visit)
    sums = jnp.broadcast_to(total[...].sum(1, keepdims=True), total.shape)
    nothing = sums == 0.0
    sums = jnp.where(nothing, 1.0, sums)
    out[...] = (summed[...] / _wide(sums, out.shape[1])).astype(out.dtype)
    lse[...] = _row(jnp.where(nothing, NOTHING, highest[...] * sizes.scale + jnp.log(sums)))


def _dq_kernel(words, q, d_out, statistics, q_rows, k_all, v_all, k_rows_all, *refs, sizes: _Sizes):
    """The gradient of one block of queries of one head."""
    dq, k_buffer, v_buffer, rows_buffer, columns, lse, delta, summed, signals = refs
    head = jax.lax.div(pl.program_id(1), sizes.shared)
    pairs = ((k_all, k_buffer), (v_all, v_buffer))
    transfers, mask_transfer = _transfers(head, pairs, (k_rows_all, rows_buffer), signals, sizes)

    def visit(slot, partial: bool):
        key, value = k_buffer[slot], v_buffer[slot]
        scores = _dot(q[...], key, 1, 1)
        if partial:
            scores = _hide(scores, columns, rows_buffer[slot])
        p = jnp.exp2(scores * sizes.scale2 - _wide(lse[...], sizes.block_k))
        ds = p * (_dot(d_out[...], value, 1, 1) - _wide(delta[...], sizes.block_k))
        summed[...] += _dot(ds.astype(key.dtype), key, 1, 0)

    lse[...], delta[...] = _column(statistics[:1]), _column(statistics[1:])
    summed[...] = jnp.zeros(summed.shape, jnp.float32)
    _walk(words, transfers, mask_transfer, lambda: _fill_columns(columns, q_rows[...]), visit)
    dq[...] = (summed[...] * sizes.scale).astype(dq.dtype)


def _dkv_kernel(words, k, v, k_rows, q_all, d_out_all, statistics_all, q_rows_all, *refs, sizes: _Sizes):
    """The gradients of one block of keys, from one of the query heads that read it; scores are keys x queries."""
    dk, dv, q_buffer, d_out_buffer, statistics_buffer, rows_buffer, columns, dk_sum, dv_sum, signals = refs
    head = pl.program_id(1) * sizes.shared + pl.program_id(3)
    pairs = ((q_all, q_buffer), (d_out_all, d_out_buffer), (statistics_all, statistics_buffer))
    transfers, mask_transfer = _transfers(head, pairs, (q_rows_all, rows_buffer), signals, sizes)

    def visit(slot, partial: bool):
        query, d_out, statistics = q_buffer[slot], d_out_buffer[slot], statistics_buffer[slot]
        scores = _dot(k[...], query, 1, 1)
        if partial:
            scores = _hide(scores, columns, rows_buffer[slot])
        p = jnp.exp2(scores * sizes.scale2 - statistics[:1])
        ds = p * (_dot(v[...], d_out, 1, 1) - statistics[1:])
        dv_sum[...] += _dot(p.astype(query.dtype), d_out, 1, 0)
        dk_sum[...] += _dot(ds.astype(query.dtype), query, 1, 0)

    @pl.when(pl.program_id(3) == 0)
    def _():
        dk_sum[...] = jnp.zeros(dk_sum.shape, jnp.float32)
        dv_sum[...] = jnp.zeros(dv_sum.shape, jnp.float32)

    _walk(words, transfers, mask_transfer, lambda: _fill_columns(columns, k_rows[...]), visit)

    @pl.when(pl.program_id(3) == sizes.shared - 1)
    def _():
        dk[...] = (dk_sum[...] * sizes.scale).astype(dk.dtype)
        dv[...] = dv_sum[...].astype(dv.dtype)


def _split(x: Array, block: int) -> Array:
    """[b, h, n, d] -> [b, h, blocks, block, d]."""
    return x.reshape(x.shape[:2] + (-1, block) + x.shape[3:])


_EVERYTHING = pl.BlockSpec(memory_space=pl.ANY)  # stays in HBM; the kernel fetches from it


def _list_spec(words: Array, blocks: int, rows: int) -> pl.BlockSpec:
    place = lambda b, h, i, *_: ((b if rows > 1 else 0) * blocks + i, 0, 0)
    return pl.BlockSpec((None, 1, words.shape[2]), place, memory_space=pltpu.SMEM)


def _rows_spec(vectors: Array, rows: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, *vectors.shape[2:]), lambda b, h, i, *_: (b if rows > 1 else 0, i, 0, 0))


def _tokens_spec(block: int, width: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, block, width), lambda b, h, i, *_: (b, h, i, 0))


def _buffer(*shape: int, dtype: Any) -> Any:
    return pltpu.VMEM((2, *shape), dtype)


def _scratch(sizes: _Sizes, operands: _Operands) -> list[Any]:
    """For the kernels that fetch keys: two slots, the mask's columns, two statistics and the sum of a query block."""
    width, vectors, dtype = operands.q.shape[3], operands.q_rows.shape[2], operands.q.dtype
    return [
        _buffer(sizes.block_k, width, dtype=dtype),
        _buffer(sizes.block_k, width, dtype=dtype),
        _buffer(vectors, sizes.block_k, dtype=jnp.int32),
        pltpu.VMEM((vectors, sizes.block_q, LANES), jnp.int32),
        pltpu.VMEM((sizes.block_q, LANES), jnp.float32),
        pltpu.VMEM((sizes.block_q, LANES), jnp.float32),
        pltpu.VMEM((sizes.block_q, width), jnp.float32),
        pltpu.SemaphoreType.DMA((2, 3)),
    ]


def _call(kernel: Callable, sizes: _Sizes, grid: tuple[int, ...], interpret: Any, **specs: Any) -> Callable:
    """A pallas_call whose steps may run on any core, except along a fourth axis, which sums."""
    semantics = ("parallel", "parallel", "parallel", "arbitrary")[: len(grid)]
    return pl.pallas_call(
        functools.partial(kernel, sizes=sizes),
        grid=grid,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
        **specs,
    )


def forward(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    visibility: Visibility | None,
    scale: float,
    *,
    sizes: BlockSizes | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """Attention and its log-sum-exp (float32); query head i reads key head i // (h // g)."""
    sizes = sizes or tuned("pallas_tpu", "forward", q.dtype, FORWARD)
    operands, static = _prepare(q, k, v, visibility, scale, sizes)
    block_q, block_k, width = static.block_q, static.block_k, operands.q.shape[3]
    batch, heads, tokens, _ = operands.q.shape
    blocks = tokens // block_q
    out, lse = _call(
        _forward_kernel,
        static,
        (batch, heads, blocks),
        interpret,
        in_specs=[
            _list_spec(operands.by_query, blocks, static.rows),
            _tokens_spec(block_q, width),
            _rows_spec(operands.q_rows, static.rows),
            _EVERYTHING,
            _EVERYTHING,
            _EVERYTHING,
        ],
        out_specs=[
            _tokens_spec(block_q, width),
            pl.BlockSpec((None, None, None, 1, block_q), lambda b, h, i: (b, h, i, 0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(operands.q.shape, operands.q.dtype),
            jax.ShapeDtypeStruct((batch, heads, blocks, 1, block_q), jnp.float32),
        ],
        scratch_shapes=_scratch(static, operands),
    )(
        operands.by_query,
        operands.q,
        operands.q_rows,
        _split(operands.k, block_k),
        _split(operands.v, block_k),
        operands.k_rows,
    )
    return _tokens_first(out, q), lse.reshape(batch, heads, tokens)[:, :, : q.shape[1]]


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
    interpret: Any = False,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b m g d"], Float[Array, "b m g d"]]:
    """The gradients of q, k and v, given the results of `forward` and their cotangents."""
    sizes = sizes or tuned("pallas_tpu", "backward", q.dtype, BACKWARD)
    operands, static = _prepare(q, k, v, visibility, scale, sizes)
    block_q, block_k, width = static.block_q, static.block_k, operands.q.shape[3]
    batch, heads, tokens, _ = operands.q.shape
    _, groups, keys, _ = operands.k.shape
    blocks_q, blocks_k = tokens // block_q, keys // block_k
    vectors, dtype = operands.q_rows.shape[2], operands.q.dtype
    # The derivative of softmax subtracts sum(p * dp) = sum(out * d_out); that of the log-sum-exp adds p * d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1).swapaxes(1, 2) - d_lse
    statistics = [_pad(x, 2, block_q).reshape(batch, heads, -1, block_q) for x in (_finite(lse) * _LOG2E, delta)]
    statistics = jnp.stack(statistics, axis=3)
    d_out = _heads_first(d_out.astype(dtype), block_q)
    dq = _call(
        _dq_kernel,
        static,
        (batch, heads, blocks_q),
        interpret,
        in_specs=[
            _list_spec(operands.by_query, blocks_q, static.rows),
            _tokens_spec(block_q, width),
            _tokens_spec(block_q, width),
            pl.BlockSpec((None, None, None, 2, block_q), lambda b, h, i: (b, h, i, 0, 0)),
            _rows_spec(operands.q_rows, static.rows),
            _EVERYTHING,
            _EVERYTHING,
            _EVERYTHING,
        ],
        out_specs=_tokens_spec(block_q, width),
        out_shape=jax.ShapeDtypeStruct(operands.q.shape, q.dtype),
        scratch_shapes=_scratch(static, operands),
    )(
        operands.by_query,
        operands.q,
        d_out,
        statistics,
        operands.q_rows,
        _split(operands.k, block_k),
        _split(operands.v, block_k),
        operands.k_rows,
    )
    dk, dv = _call(
        _dkv_kernel,
        static,
        (batch, groups, blocks_k, static.shared),
        interpret,
        in_specs=[
            _list_spec(operands.by_key, blocks_k, static.rows),
            _tokens_spec(block_k, width),
            _tokens_spec(block_k, width),
            _rows_spec(operands.k_rows, static.rows),
            _EVERYTHING,
            _EVERYTHING,
            _EVERYTHING,
            _EVERYTHING,
        ],
        out_specs=[_tokens_spec(block_k, width), _tokens_spec(block_k, width)],
        out_shape=[jax.ShapeDtypeStruct(operands.k.shape, k.dtype)] * 2,
        scratch_shapes=[
            _buffer(block_q, width, dtype=dtype),
            _buffer(block_q, width, dtype=dtype),
            _buffer(2, block_q, dtype=jnp.float32),
            _buffer(vectors, block_q, dtype=jnp.int32),
            pltpu.VMEM((vectors, block_k, LANES), jnp.int32),
            pltpu.VMEM((block_k, width), jnp.float32),
            pltpu.VMEM((block_k, width), jnp.float32),
            pltpu.SemaphoreType.DMA((2, 4)),
        ],
    )(
        operands.by_key,
        operands.k,
        operands.v,
        operands.k_rows,
        _split(operands.q, block_q),
        _split(d_out, block_q),
        statistics,
        operands.q_rows,
    )
    return _tokens_first(dq, q), _tokens_first(dk, k), _tokens_first(dv, v)
