"""Masks in which every query reads one run of keys, once the keys are sorted: what kernels that skip by ranges take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.core import Tracer

from kaleido_jax.masks import TokenMask


class KeyRanges(NamedTuple):
    """Query i reads the keys order[start[i]], ..., order[end[i] - 1]; none where both are 0.

    order: int32 [rows, keys], a permutation of the tokens. start, end: int32 [rows, queries]. rows: the mask's batch,
    or 1.
    """

    order: np.ndarray
    start: np.ndarray
    end: np.ndarray


def as_ranges(mask: TokenMask) -> KeyRanges | None:
    """The mask as one range of keys for each query, or None if no order of the keys makes all of them ranges.

    Exact: if there is such an order (the consecutive ones property), one is found; keys that stand in such an order
    already stay where they are. The softmax does not depend on the order of keys, so that attention over k[order],
    v[order] and these ranges is attention under the mask.

    Raises:
      ValueError: if the mask is traced: its bits must be known.
    """
    vectors = (mask.reads, mask.groups, mask.q_sample, mask.k_sample)
    if any(isinstance(x, Tracer) for x in vectors):
        raise ValueError("as_ranges: mask is traced; expected one whose bits are known while tracing.")
    rows = mask.shape[0]
    reads, groups, q_sample, k_sample = (
        [None] * rows if x is None else np.broadcast_to(np.asarray(x), (rows, x.shape[-1])) for x in vectors
    )
    found = [_row_ranges(*row) for row in zip(reads, groups, q_sample, k_sample, strict=True)]
    complete = [row for row in found if row is not None]
    return KeyRanges(*(np.stack(x) for x in zip(*complete))) if len(complete) == rows else None


def _row_ranges(
    reads: np.ndarray, groups: np.ndarray, q_sample: np.ndarray | None, k_sample: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    q_kinds, q_kind = _kinds(reads, q_sample)
    k_kinds, k_kind = _kinds(groups, k_sample)
    visible = (q_kinds[:, None, 0] & k_kinds[None, :, 0]) != 0
    visible &= (q_kinds[:, None, 1] == k_kinds[None, :, 1]) & (q_kinds[:, None, 1] >= 0)
    # Keys that the same queries read are one column.
    columns, column = np.unique(visible, axis=1, return_inverse=True)
    column = column.reshape(-1)[k_kind]
    used = columns.any(0)
    first = np.array([np.argmax(column == i) for i in range(columns.shape[1])])
    candidates = sorted(np.flatnonzero(used), key=lambda i: first[i])
    members = [int("".join("1" if seen else "0" for seen in columns[:, i]), 2) for i in candidates]
    placed = _consecutive(members)
    if placed is None:
        return None
    rank = np.full(columns.shape[1], len(placed))  # what nobody reads comes last
    for place, i in enumerate(placed):
        rank[candidates[i]] = place
    order = np.argsort(rank[column], kind="stable").astype(np.int32)
    ends = np.cumsum(np.bincount(rank[column], minlength=len(placed) + 1))
    starts = ends - np.bincount(rank[column], minlength=len(placed) + 1)
    start, end = np.zeros(len(q_kinds), np.int32), np.zeros(len(q_kinds), np.int32)
    for i, row in enumerate(columns):
        places = rank[np.flatnonzero(row)]
        if len(places):
            start[i], end[i] = starts[places.min()], ends[places.max()]
    return order, start[q_kind], end[q_kind]


def _kinds(bits: np.ndarray, sample: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The different (bits, sample) among tokens, and which of them each token is."""
    sample = np.zeros(bits.shape, np.int64) if sample is None else sample.astype(np.int64)
    kinds, kind = np.unique(np.stack([bits.astype(np.int64), sample], axis=1), axis=0, return_inverse=True)
    return kinds, kind.reshape(-1)


def _consecutive(members: list[int]) -> list[int] | None:
    """An order of columns in which the ones of every row stand side by side; a column is a bit for each row.

    Columns are placed one after the other. A row that has begun and has not all of its columns yet must go on, which
    leaves few choices; which rows have begun depends on the set of placed columns alone, so each set is tried once.
    """
    everywhere = (1 << len(members)) - 1
    failed: set[int] = set()

    def place(placed: int, order: list[int]) -> list[int] | None:
        if placed == everywhere:
            return order
        if placed in failed:
            return None
        begun = left = 0
        for i, column in enumerate(members):
            if placed >> i & 1:
                begun |= column
            else:
                left |= column
        unfinished = begun & left
        for i, column in enumerate(members):
            if not placed >> i & 1 and not unfinished & ~column:
                result = place(placed | 1 << i, [*order, i])
                if result is not None:
                    return result
        failed.add(placed)
        return None

    return place(0, [])
