"""Masked flash attention for Hopper GPUs (Pallas, Mosaic GPU): forward and backward over lists of visited blocks.

A thread block has three warpgroups. Two hold 64 rows each and multiply with wgmma, in turns, so that one multiplies
while the other computes its softmax (Shah et al. 2024). The third one walks the list of visited blocks and fetches what
it names by TMA, a few blocks ahead: a block that is not listed costs neither a product nor a load. Blocks that are
visible in full come first and run a body without any mask arithmetic.

Online softmax and gradients as in pallas_tpu.py; each gradient is summed in one thread block in one order, so they are
deterministic.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from kaleido_jax.attention.block_sizes import tuned
from kaleido_jax.attention.blocks import FIRST, VISITED, fill_and_list
from kaleido_jax.attention.hopper import (
    BY_COLUMN,
    BY_ROW,
    LOG2E,
    MATRIX,
    ROWS,
    WARPGROUPS,
    Call,
    Stream,
    VisitList,
    across,
    add_product,
    cast,
    fetch,
    finite,
    full,
    hide,
    launch,
    load_held,
    matrices,
    place_of,
    product,
    read_vectors,
)
from kaleido_jax.attention.reference import NOTHING, Visibility
from kaleido_jax.typing import Array, Float, Int32

MOST_HEAD_DIM = 128  # sums of 64 rows of a head stay in the registers of one warpgroup


class BlockSizes(NamedTuple):
    """How many tokens a visit fetches, a multiple of 64, and how many visits are fetched ahead."""

    fetched: int
    stages: int


FORWARD = BlockSizes(128, 2)
QUERY_GRADIENT = BlockSizes(64, 2)
KEY_GRADIENT = BlockSizes(64, 2)


class _Operands(NamedTuple):
    """The arrays of a call, filled up to whole blocks and to a head_dim of 64 or 128."""

    q: Float[Array, "b n h d"]
    k: Float[Array, "b m g d"]
    v: Float[Array, "b m g d"]
    q_rows: Int32[Array, "rows vectors n"]
    k_rows: Int32[Array, "rows vectors m"]
    words: Int32[Array, "rows blocks words"]


def _fill(x: Float[Array, "b n h d"], tokens: int) -> Float[Array, "b filled h wide"]:
    return jnp.pad(x, ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, -x.shape[3] % 64)))


def _vectors(bits: Array, sample: Array | None, rows: int) -> Int32[Array, "rows vectors tokens"]:
    vectors = [jax.lax.bitcast_convert_type(bits, jnp.int32)] + ([] if sample is None else [sample])
    return jnp.stack([jnp.broadcast_to(x, (rows, x.shape[1])) for x in vectors], axis=1)


def _prepare(
    q, k, v, visibility: Visibility | None, scale: float, sizes: BlockSizes, by_key: bool, interpret: bool
) -> tuple[_Operands, Call]:
    """Operands for the kernels whose warpgroups hold queries, or keys, and that fetch the other side."""
    held = WARPGROUPS * ROWS
    block_q, block_k = (sizes.fetched, held) if by_key else (held, sizes.fetched)
    visibility, lists = fill_and_list(visibility, q.shape[1], k.shape[1], block_q, block_k)
    rows = max(x.shape[0] for x in visibility if x is not None)
    q_rows = _vectors(visibility.reads, visibility.q_sample, rows)
    k_rows = _vectors(visibility.groups, visibility.k_sample, rows)
    words = lists.by_key if by_key else lists.by_query
    operands = _Operands(
        _fill(q, q_rows.shape[2]), _fill(k, k_rows.shape[2]), _fill(v, k_rows.shape[2]), q_rows, k_rows, words
    )
    shared = q.shape[2] // k.shape[2]
    return operands, Call(sizes.fetched, sizes.stages, shared, rows, q_rows.shape[1], scale, interpret)


def _check(q: Array) -> None:
    if q.dtype == jnp.float32:
        raise ValueError("attention: q is float32; backend='pallas_gpu' takes bfloat16 or float16, which wgmma takes.")
    if q.shape[3] > MOST_HEAD_DIM:
        raise ValueError(f"attention: q has head_dim {q.shape[3]}; backend='pallas_gpu' takes at most {MOST_HEAD_DIM}.")


def _forward_kernel(words, q, k, v, q_rows, k_rows, out, lse, held, fetched, barriers, *, call: Call):
    batch, head, first, mine, visits = place_of(words, call)
    q_held, lse_held, rows_held = (x.at[mine] for x in held)
    k_buffer, v_buffer, rows_buffer = fetched
    held_ready, k_ready, v_ready, k_free, v_free, turn = barriers

    def take_turns():
        gpu.barrier_arrive(turn)
        gpu.barrier_wait(turn)

    @pl.when(mine < WARPGROUPS)
    def _compute():
        gpu.set_max_registers(232, action="increase")
        own = pl.ds(first, ROWS)
        pairs = [(q.at[batch, own, head], q_held)]
        pairs += [(q_rows.at[visits.row, i, own], rows_held.at[i]) for i in range(call.vectors)]
        load_held(pairs, held_ready.at[mine])
        by_row = read_vectors(rows_held, BY_ROW, call)
        visited = visits[VISITED]

        def visit(i, carry, partial: bool):
            highest, total, summed = carry
            slot = jax.lax.rem(i, call.stages)
            scores = product(q_held, k_buffer.at[slot], call, take_turns)
            by_column = read_vectors(rows_buffer.at[slot], BY_COLUMN, call) if partial else []
            gpu.barrier_arrive(k_free.at[slot])
            if partial:
                scores = hide(scores, by_row, by_column)
            new = jnp.maximum(highest, scores.max(axis=1))
            base = finite(new) if partial else new
            p = jnp.exp2(scores * call.scale2 - across(base * call.scale2, scores, 0))
            decay = jnp.exp2((highest - new) * call.scale2)
            summed = summed * across(decay, summed, 0)
            total = total * decay + p.sum(axis=1)
            weights = p.astype(q.dtype)
            summed, total, new, weights = jax.lax.optimization_barrier((summed, total, new, weights))
            gpu.barrier_arrive(turn)
            gpu.barrier_wait(v_ready.at[slot])
            gpu.barrier_wait(turn)

            def await_next_keys():
                @pl.when(i + 1 < visited)
                def _():
                    gpu.barrier_wait(k_ready.at[jax.lax.rem(i + 1, call.stages)])

            summed = add_product(summed, weights, v_buffer.at[slot], call, await_next_keys)
            gpu.barrier_arrive(v_free.at[slot])
            return new, total, summed

        @pl.when(visited > 0)
        def _():
            gpu.barrier_wait(k_ready.at[0])

        pl.when(mine == 1)(take_turns)
        start = (
            full((ROWS,), NOTHING, BY_ROW, call),
            full((ROWS,), 0.0, BY_ROW, call),
            full((ROWS, q.shape[3]), 0.0, MATRIX, call),
        )
        highest, total, summed = visits.walk(visit, start)
        pl.when(mine == 0)(take_turns)
        nothing = total == 0.0
        total = jnp.where(nothing, 1.0, total)
        q_held[...] = (summed / across(total, summed, 0)).astype(out.dtype)
        lse_held[...] = jnp.where(nothing, NOTHING, highest * call.scale + jnp.log(total))
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(q_held, out.at[batch, own, head])
        gpu.copy_smem_to_gmem(lse_held, lse.at[batch, head, own])
        gpu.wait_smem_to_gmem(0)

    @pl.when(mine == WARPGROUPS)
    def _memory():
        gpu.set_max_registers(40, action="decrease")
        _fetch_keys(visits, (k, v, k_rows), fetched, (k_ready, v_ready, k_free, v_free), (batch, head), call)


def _fetch_keys(
    visits: VisitList, arrays: Sequence[Any], buffers: Sequence[Any], barriers: Sequence[Any], place, call: Call
):
    """What the kernels that hold queries fetch: keys with the mask's vectors, and values."""
    (k, v, k_rows), (k_buffer, v_buffer, rows_buffer), (k_ready, v_ready, k_free, v_free) = arrays, buffers, barriers
    batch, head = place
    tokens = lambda block: pl.ds(block * call.fetched, call.fetched)
    matrix = lambda x: lambda block: x.at[batch, tokens(block), jax.lax.div(head, call.shared)]
    keys = [(matrix(k), lambda slot: k_buffer.at[slot])] + [
        (lambda block, i=i: k_rows.at[visits.row, i, tokens(block)], lambda slot, i=i: rows_buffer.at[slot, i])
        for i in range(call.vectors)
    ]
    values = [(matrix(v), lambda slot: v_buffer.at[slot])]
    streams = [Stream(keys, k_ready, k_free), Stream(values, v_ready, v_free)]
    fetch(visits[VISITED], lambda i: (visits[FIRST + i],), streams, call.stages)


def _query_gradient_kernel(
    words, q, k, v, d_out, lse, delta, q_rows, k_rows, dq, held, fetched, barriers, *, call: Call
):
    batch, head, first, mine, visits = place_of(words, call)
    held_ready, *key_barriers = barriers
    k_ready, v_ready, k_free, v_free = key_barriers

    @pl.when(mine < WARPGROUPS)
    def _compute():
        gpu.set_max_registers(232, action="increase")
        own = pl.ds(first, ROWS)
        q_held, d_out_held, lse_held, delta_held, rows_held = (x.at[mine] for x in held)
        pairs = [(q.at[batch, own, head], q_held), (d_out.at[batch, own, head], d_out_held)]
        pairs += [(lse.at[batch, head, own], lse_held), (delta.at[batch, head, own], delta_held)]
        pairs += [(q_rows.at[visits.row, i, own], rows_held.at[i]) for i in range(call.vectors)]
        load_held(pairs, held_ready.at[mine])
        by_row = read_vectors(rows_held, BY_ROW, call)
        sums, shift = (cast(x[...], BY_ROW, call) for x in (lse_held, delta_held))
        k_buffer, v_buffer, rows_buffer = fetched

        def visit(i, summed, partial: bool):
            slot = jax.lax.rem(i, call.stages)
            gpu.barrier_wait(k_ready.at[slot])
            scores = product(q_held, k_buffer.at[slot], call)
            if partial:
                scores = hide(scores, by_row, read_vectors(rows_buffer.at[slot], BY_COLUMN, call))
            p = jnp.exp2(scores * call.scale2 - across(sums, scores, 0))
            gpu.barrier_wait(v_ready.at[slot])
            dp = product(d_out_held, v_buffer.at[slot], call)
            gpu.barrier_arrive(v_free.at[slot])
            ds = p * (dp - across(shift, scores, 0))
            summed = add_product(summed, ds.astype(k.dtype), k_buffer.at[slot], call)
            gpu.barrier_arrive(k_free.at[slot])
            return summed

        summed = visits.walk(visit, full((ROWS, q.shape[3]), 0.0, MATRIX, call))
        q_held[...] = (summed * call.scale).astype(dq.dtype)
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(q_held, dq.at[batch, own, head])
        gpu.wait_smem_to_gmem(0)

    @pl.when(mine == WARPGROUPS)
    def _memory():
        gpu.set_max_registers(40, action="decrease")
        _fetch_keys(visits, (k, v, k_rows), fetched, key_barriers, (batch, head), call)


def _key_gradient_kernel(
    words, q, k, v, d_out, lse, delta, q_rows, k_rows, dk, dv, held, fetched, barriers, *, call: Call
):
    """dk and dv of two times 64 keys, from all query heads that read them; scores are keys x queries."""
    batch, head, first, mine, visits = place_of(words, call)
    held_ready, q_ready, d_out_ready, q_free, d_out_free = barriers
    q_buffer, d_out_buffer, lse_buffer, delta_buffer, rows_buffer = fetched
    visited = visits[VISITED]

    @pl.when(mine < WARPGROUPS)
    def _compute():
        gpu.set_max_registers(232, action="increase")
        own = pl.ds(first, ROWS)
        k_held, v_held, rows_held = (x.at[mine] for x in held)
        pairs = [(k.at[batch, own, head], k_held), (v.at[batch, own, head], v_held)]
        pairs += [(k_rows.at[visits.row, i, own], rows_held.at[i]) for i in range(call.vectors)]
        load_held(pairs, held_ready.at[mine])
        by_row = read_vectors(rows_held, BY_ROW, call)

        def visit(before, i, carry, partial: bool):
            dk_sum, dv_sum = carry
            slot = jax.lax.rem(before + i, call.stages)
            gpu.barrier_wait(q_ready.at[slot])
            scores = product(k_held, q_buffer.at[slot], call)
            sums = cast(lse_buffer.at[slot][...], BY_COLUMN, call)
            if partial:
                scores = hide(scores, by_row, read_vectors(rows_buffer.at[slot], BY_COLUMN, call))
            p = jnp.exp2(scores * call.scale2 - across(sums, scores, 1))
            gpu.barrier_wait(d_out_ready.at[slot])
            dp = product(v_held, d_out_buffer.at[slot], call)
            dv_sum = add_product(dv_sum, p.astype(q.dtype), d_out_buffer.at[slot], call)
            shift = cast(delta_buffer.at[slot][...], BY_COLUMN, call)
            gpu.barrier_arrive(d_out_free.at[slot])
            ds = p * (dp - across(shift, scores, 1))
            dk_sum = add_product(dk_sum, ds.astype(q.dtype), q_buffer.at[slot], call)
            gpu.barrier_arrive(q_free.at[slot])
            return dk_sum, dv_sum

        one_head = lambda i, carry: visits.walk(functools.partial(visit, i * visited), carry)
        zeros = lambda: full((ROWS, k.shape[3]), 0.0, MATRIX, call)
        dk_sum, dv_sum = jax.lax.fori_loop(0, call.shared, one_head, (zeros(), zeros()))
        k_held[...] = (dk_sum * call.scale).astype(dk.dtype)
        v_held[...] = dv_sum.astype(dv.dtype)
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(k_held, dk.at[batch, own, head])
        gpu.copy_smem_to_gmem(v_held, dv.at[batch, own, head])
        gpu.wait_smem_to_gmem(0)

    @pl.when(mine == WARPGROUPS)
    def _memory():
        gpu.set_max_registers(40, action="decrease")
        tokens = lambda block: pl.ds(block * call.fetched, call.fetched)
        matrix = lambda x: lambda block, reader: x.at[batch, tokens(block), reader]
        statistic = lambda x: lambda block, reader: x.at[batch, reader, tokens(block)]
        into = lambda buffer: lambda slot: buffer.at[slot]
        queries = [(matrix(q), into(q_buffer)), (statistic(lse), into(lse_buffer))] + [
            (lambda block, _, i=i: q_rows.at[visits.row, i, tokens(block)], lambda slot, i=i: rows_buffer.at[slot, i])
            for i in range(call.vectors)
        ]
        gradients = [(matrix(d_out), into(d_out_buffer)), (statistic(delta), into(delta_buffer))]
        streams = [Stream(queries, q_ready, q_free), Stream(gradients, d_out_ready, d_out_free)]
        locate = lambda i: (visits[FIRST + jax.lax.rem(i, visited)], head * call.shared + jax.lax.div(i, visited))
        fetch(visited * call.shared, locate, streams, call.stages)


def _barriers(call: Call, arrivals: int) -> Any:
    return gpu.Barrier(num_arrivals=arrivals, num_barriers=call.stages)


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
    """Attention and its log-sum-exp (float32); query head i reads key head i // (h // g).

    Raises:
      ValueError: (while tracing) for float32, or a head_dim above 128.
    """
    _check(q)
    sizes = sizes or tuned("pallas_gpu", "forward", q.dtype, FORWARD)
    operands, call = _prepare(q, k, v, visibility, scale, sizes, False, interpret)
    batch, tokens, heads, width = operands.q.shape
    held = (
        matrices(WARPGROUPS, ROWS, width, dtype=q.dtype),
        gpu.SMEM((WARPGROUPS, ROWS), jnp.float32),
        gpu.SMEM((WARPGROUPS, call.vectors, ROWS), jnp.int32),
    )
    barriers = (
        gpu.Barrier(num_arrivals=1 + call.vectors, num_barriers=WARPGROUPS),
        *_key_barriers(call),
        gpu.Barrier(num_arrivals=WARPGROUPS),
    )
    out, lse = launch(
        _forward_kernel,
        call,
        (batch, heads, tokens // (WARPGROUPS * ROWS)),
        [
            jax.ShapeDtypeStruct(operands.q.shape, q.dtype),
            jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32),
        ],
        (held, _key_buffers(call, width, q.dtype), barriers),
    )(operands.words, operands.q, operands.k, operands.v, operands.q_rows, operands.k_rows)
    return out[:, : q.shape[1], :, : q.shape[3]], lse[:, :, : q.shape[1]]


def _key_buffers(call: Call, width: int, dtype: Any) -> tuple[Any, ...]:
    """For keys, values and the mask's vectors."""
    matrix = matrices(call.stages, call.fetched, width, dtype=dtype)
    return matrix, matrix, gpu.SMEM((call.stages, call.vectors, call.fetched), jnp.int32)


def _key_barriers(call: Call) -> tuple[Any, ...]:
    """Keys and values are there, keys and values have been read."""
    ready = _barriers(call, 1 + call.vectors), _barriers(call, 1)
    return *ready, _barriers(call, WARPGROUPS), _barriers(call, WARPGROUPS)


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
    sizes: tuple[BlockSizes, BlockSizes] | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b m g d"], Float[Array, "b m g d"]]:
    """The gradients of q, k and v, given the results of `forward` and their cotangents.

    Raises:
      ValueError: (while tracing) as `forward`.
    """
    _check(q)
    # The derivative of softmax subtracts sum(p * dp) = sum(out * d_out); that of the log-sum-exp adds p * d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1).swapaxes(1, 2) - d_lse
    lse, d_out = finite(lse) * LOG2E, d_out.astype(q.dtype)
    query_sizes, key_sizes = sizes or (
        tuned("pallas_gpu", "query gradient", q.dtype, QUERY_GRADIENT),
        tuned("pallas_gpu", "key gradient", q.dtype, KEY_GRADIENT),
    )
    dq = _query_gradient(q, k, v, visibility, d_out, lse, delta, scale, query_sizes, interpret)
    dk, dv = _key_gradient(q, k, v, visibility, d_out, lse, delta, scale, key_sizes, interpret)
    cut = lambda x, like: x[:, : like.shape[1], :, : like.shape[3]]
    return cut(dq, q), cut(dk, k), cut(dv, v)


def _fill_statistic(x: Float[Array, "b h n"], tokens: int) -> Float[Array, "b h filled"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, tokens - x.shape[2])))


def _query_gradient(q, k, v, visibility, d_out, lse, delta, scale: float, sizes: BlockSizes, interpret: bool) -> Array:
    operands, call = _prepare(q, k, v, visibility, scale, sizes, False, interpret)
    batch, tokens, heads, width = operands.q.shape
    statistic = gpu.SMEM((WARPGROUPS, ROWS), jnp.float32)
    held = (
        matrices(WARPGROUPS, ROWS, width, dtype=q.dtype),
        matrices(WARPGROUPS, ROWS, width, dtype=q.dtype),
        statistic,
        statistic,
        gpu.SMEM((WARPGROUPS, call.vectors, ROWS), jnp.int32),
    )
    barriers = gpu.Barrier(num_arrivals=4 + call.vectors, num_barriers=WARPGROUPS), *_key_barriers(call)
    return launch(
        _query_gradient_kernel,
        call,
        (batch, heads, tokens // (WARPGROUPS * ROWS)),
        jax.ShapeDtypeStruct(operands.q.shape, q.dtype),
        (held, _key_buffers(call, width, q.dtype), barriers),
    )(
        operands.words, operands.q, operands.k, operands.v, _fill(d_out, tokens), _fill_statistic(lse, tokens),
        _fill_statistic(delta, tokens), operands.q_rows, operands.k_rows,
    )  # fmt: skip


def _key_gradient(
    q, k, v, visibility, d_out, lse, delta, scale: float, sizes: BlockSizes, interpret: bool
) -> tuple[Array, Array]:
    operands, call = _prepare(q, k, v, visibility, scale, sizes, True, interpret)
    batch, tokens, key_heads, width = operands.k.shape
    queries = operands.q.shape[1]
    held = (
        matrices(WARPGROUPS, ROWS, width, dtype=q.dtype),
        matrices(WARPGROUPS, ROWS, width, dtype=q.dtype),
        gpu.SMEM((WARPGROUPS, call.vectors, ROWS), jnp.int32),
    )
    statistic = gpu.SMEM((call.stages, call.fetched), jnp.float32)
    fetched = (
        matrices(call.stages, call.fetched, width, dtype=q.dtype),
        matrices(call.stages, call.fetched, width, dtype=q.dtype),
        statistic,
        statistic,
        gpu.SMEM((call.stages, call.vectors, call.fetched), jnp.int32),
    )
    barriers = (
        gpu.Barrier(num_arrivals=2 + call.vectors, num_barriers=WARPGROUPS),
        _barriers(call, 2 + call.vectors),
        _barriers(call, 2),
        _barriers(call, WARPGROUPS),
        _barriers(call, WARPGROUPS),
    )
    dk, dv = launch(
        _key_gradient_kernel,
        call,
        (batch, key_heads, tokens // (WARPGROUPS * ROWS)),
        [jax.ShapeDtypeStruct(operands.k.shape, k.dtype)] * 2,
        (held, fetched, barriers),
    )(
        operands.words, operands.q, operands.k, operands.v, _fill(d_out, queries), _fill_statistic(lse, queries),
        _fill_statistic(delta, queries), operands.q_rows, operands.k_rows,
    )  # fmt: skip
    return dk, dv
