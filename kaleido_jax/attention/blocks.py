"""Which blocks of a mask a kernel visits: summaries of bit vectors, compacted to lists that a kernel walks.

Of size queries x keys only these lists exist, one word for a pair of blocks, and a kernel holds one row of them at a
time. They are computed on the device, so a mask may change at every step of a compiled program.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from kaleido_jax.attention.reference import Visibility
from kaleido_jax.masks import FULL, PARTIAL, TokenMask, block_summary
from kaleido_jax.typing import Array, Int32, UInt8

# Where a list keeps how many blocks it holds, how many of them (the first ones) are full, and where the blocks begin.
VISITED, WHOLE, FIRST = 0, 1, 2


class BlockLists(NamedTuple):
    """What each block of queries reads, and by whom each block of keys is read.

    A list is [blocks visited, full ones among them, block, block, ...]: full blocks first, then the partial ones, each
    kind in token order; what follows the visited blocks is never read.
    """

    by_query: Int32[Array, "rows blocks_q words_k"]
    by_key: Int32[Array, "rows blocks_k words_q"]


def fill_blocks(visibility: Visibility | None, queries: int, keys: int, block_q: int, block_k: int) -> Visibility:
    """The visibility with vectors as long as whole blocks; None, all visible, as vectors of one bit.

    Nobody reads the keys that fill up. The queries that fill up read what the last query reads, so that they change
    neither which blocks are visited nor which are full; their results are cut off and their gradients are zero.
    """
    if visibility is None:
        visibility = Visibility(jnp.ones((1, queries), jnp.uint32), jnp.ones((1, keys), jnp.uint32), None, None)
    more_queries = ((0, 0), (0, -queries % block_q))
    more_keys = ((0, 0), (0, -keys % block_k))
    reads, groups, q_sample, k_sample = visibility
    return Visibility(
        jnp.pad(reads, more_queries, mode="edge"),
        jnp.pad(groups, more_keys),
        None if q_sample is None else jnp.pad(q_sample, more_queries, mode="edge"),
        None if k_sample is None else jnp.pad(k_sample, more_keys, constant_values=-1),
    )


def block_lists(visibility: Visibility, block_q: int, block_k: int) -> BlockLists:
    """The lists of blocks to visit for vectors that whole blocks divide (`fill_blocks`).

    A block is left out where nothing in it is visible (exactly, within one packed sample) and counted full where one
    bit is shared by all its queries and all its keys, of one sample.
    """
    reads, groups, q_sample, k_sample = visibility
    mask = TokenMask(reads, groups, q_sample=q_sample, k_sample=k_sample)
    summary = block_summary(mask, block_q, block_k)
    return BlockLists(_compact(summary), _compact(summary.swapaxes(1, 2)))


def fill_and_list(
    visibility: Visibility | None, queries: int, keys: int, block_q: int, block_k: int
) -> tuple[Visibility, BlockLists]:
    """What a kernel needs to know of a mask: the filled up vectors, and the lists of blocks."""
    filled = fill_blocks(visibility, queries, keys, block_q, block_k)
    if visibility is not None:
        return filled, block_lists(filled, block_q, block_k)
    # Everything is visited, and full but for the keys that fill up: nothing is left to compute, or to fold.
    blocks_q, blocks_k, short = math.ceil(queries / block_q), math.ceil(keys / block_k), keys % block_k != 0
    last = jnp.arange(blocks_k, dtype=jnp.int32) == blocks_k - 1
    whole = jnp.where(last & short, 0, blocks_q).astype(jnp.int32)
    return filled, BlockLists(
        _all_blocks(blocks_k, jnp.full(blocks_q, blocks_k - short, jnp.int32)), _all_blocks(blocks_q, whole)
    )


def _all_blocks(others: int, whole: Int32[Array, " blocks"]) -> Int32[Array, "1 blocks words"]:
    """Lists of all other blocks in their order, with how many of them, the first ones, are full."""
    row = lambda x: jnp.broadcast_to(x, (1, whole.shape[0], x.shape[-1]))
    order = jnp.arange(others, dtype=jnp.int32)[None, None]
    return jnp.concatenate([row(jnp.full((1, 1, 1), others, jnp.int32)), whole[None, :, None], row(order)], axis=2)


def _compact(summary: UInt8[Array, "rows blocks others"]) -> Int32[Array, "rows blocks words"]:
    order = jnp.argsort(FULL - summary.astype(jnp.int32), axis=2, stable=True).astype(jnp.int32)
    visited = (summary >= PARTIAL).sum(2, keepdims=True, dtype=jnp.int32)
    whole = (summary == FULL).sum(2, keepdims=True, dtype=jnp.int32)
    return jnp.concatenate([visited, whole, order], axis=2)


def block_length(length: int, target: int, multiple: int) -> int:
    """The length of the blocks that cover `length`: as many as of the target length, made as short as they can be.

    A multiple of `multiple`, as the target must be.
    """
    blocks = math.ceil(length / target)
    return multiple * math.ceil(length / (blocks * multiple))
