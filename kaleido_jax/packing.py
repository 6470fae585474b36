"""Several samples in one sequence: what attention, times and losses know of each is what they know of it alone."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from kaleido_jax.layout import TokenLayout
from kaleido_jax.masks import TokenMask
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import AnyArray, Array


def packed(layouts: Sequence[TokenLayout], tables: Sequence[TokenTable]) -> tuple[TokenLayout, TokenTable]:
    """Layout and table of sequences that are made of one of each layout, one after another.

    Row i of the table holds row i of every table. Tokens of different layouts never see each other.
    """
    if len(layouts) == 1:
        return layouts[0], tables[0]
    batch = tables[0].lengths.shape[0]
    joined = lambda pick: jnp.concatenate([_rows_of(pick(table), batch) for table in tables], axis=1)
    visual = [layout.tokens("visual") for layout in layouts]
    text = [layout.tokens("text") for layout in layouts]
    return TokenLayout(tuple(segment for layout in layouts for segment in layout.segments)), TokenTable(
        positions=joined(lambda table: table.positions),
        lengths=joined(lambda table: table.lengths),
        subjects=joined(lambda table: table.subjects),
        timesteps=joined(lambda table: table.timesteps),
        loss_weights=joined(lambda table: table.loss_weights),
        self_mask=_beside([table.self_mask for table in tables], list(zip(visual, visual)), batch),
        text_mask=_beside([table.text_mask for table in tables], list(zip(visual, text)), batch),
    )


def _rows_of(x: AnyArray, batch: int) -> Array:
    """[1 or batch, n, ...], once for every row of the batch."""
    return jnp.broadcast_to(jnp.asarray(x), (batch, *x.shape[1:]))


def _beside(masks: Sequence[TokenMask | None], sizes: Sequence[tuple[int, int]], batch: int) -> TokenMask:
    """The masks along a diagonal; sizes: the queries and keys of each, of which one that is None shows all."""

    def vectors(pick: Callable[[TokenMask], AnyArray]) -> Array:
        return jnp.concatenate([_rows_of(pick(mask), batch) for mask in filled], axis=1)

    def numbered(index: int, sample: AnyArray | None, tokens: int) -> AnyArray:
        """Samples of one mask, told apart from those of the others; what is padding stays padding."""
        if sample is None:
            return np.full((1, tokens), index, np.int32)
        rows = jnp.asarray(sample).reshape(-1, tokens)
        return jnp.where(rows < 0, jnp.int32(-1), rows * np.int32(len(masks)) + np.int32(index))

    filled = []
    for index, (mask, (queries, keys)) in enumerate(zip(masks, sizes)):
        if mask is None:
            mask = TokenMask(np.ones((1, queries), np.uint32), np.ones((1, keys), np.uint32), width=1)
        filled.append(
            TokenMask(
                mask.reads.reshape(-1, queries),
                mask.groups.reshape(-1, keys),
                q_sample=numbered(index, mask.q_sample, queries),
                k_sample=numbered(index, mask.k_sample, keys),
                width=mask.width,
            )
        )
    return TokenMask(
        vectors(lambda mask: mask.reads),
        vectors(lambda mask: mask.groups),
        q_sample=vectors(lambda mask: mask.q_sample),
        k_sample=vectors(lambda mask: mask.k_sample),
        width=max(mask.width for mask in filled),
    )


def rows(batches: dict[int, int], tokens: dict[int, int]) -> list[tuple[tuple[int, ...], int]]:
    """How batches of several kinds are laid side by side, longest samples first, in no more room than the longest has.

    Args:
      batches: of each kind, how many there are. tokens: of each kind, those of one sample.

    Returns:
      (kinds that lie side by side, how many times); each batch is in one of them.
    """
    left = {kind: count for kind, count in batches.items() if count}
    order = sorted(left, key=lambda kind: (-tokens[kind], kind))
    found = []
    while any(left.values()):
        free, row = tokens[order[0]], []
        for kind in order:
            count = min(left[kind], free // tokens[kind])
            row += [kind] * count
            free -= count * tokens[kind]
        times = min(left[kind] // row.count(kind) for kind in row)
        for kind in row:
            left[kind] -= times
        found.append((tuple(row), times))
    return found
