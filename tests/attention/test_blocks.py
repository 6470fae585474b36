"""The lists of visited blocks against the dense mask, for the layout and rules of every method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.attention.blocks import FIRST, VISITED, WHOLE, block_length, block_lists, fill_and_list, fill_blocks
from kaleido_jax.attention.reference import Visibility
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import (
    TokenMask,
    bidirectional,
    emphasis,
    foreground_background,
    own_shot,
    separate_references,
    separate_subjects,
    shot_causal,
    unidirectional,
    visibility,
)

BLOCK = 16
VIDEO = Segment(kind="video", grid=(3, 6, 8))
REFERENCES = tuple(Segment(kind="reference", grid=(1, 6, 8), subject=i) for i in range(3))
KALEIDO = TokenLayout((VIDEO, *REFERENCES))
SHOTS = TokenLayout(tuple(Segment(kind="video", grid=(1, 6, 7 + i), shot=i) for i in range(4)))


def foreground(layout):
    return np.arange(layout.tokens()) % 48 < 20


# A batch of 3, 1 and 0 references: absent tokens are read by nobody.
LENGTHS = np.array([[144, 48, 48, 48], [144, 48, 0, 0], [96, 0, 0, 0]])
MASKS = {
    "kaleido": visibility(KALEIDO, bidirectional, contents=KALEIDO.contents(lengths=LENGTHS)),
    "unidirectional": visibility(KALEIDO, unidirectional),
    "shot-causal": visibility(SHOTS, shot_causal),
    "separate references": visibility(KALEIDO, separate_references),
    "separate subjects": visibility(KALEIDO, separate_subjects, contents=KALEIDO.contents(lengths=LENGTHS)),
    "emphasis": visibility(KALEIDO, emphasis),
    "own shot": visibility(SHOTS, own_shot),
    "packing": visibility(SHOTS, contents=SHOTS.contents(samples=np.array([[0, 0, 1, 2]]))),
    "foreground and background": foreground_background(KALEIDO, jnp.asarray(foreground(KALEIDO))),
}
# Where the AND of bits proves all that is fully visible; elsewhere blocks straddle tokens of other bits.
PROVES_FULL = {"kaleido", "unidirectional", "separate references", "separate subjects", "emphasis", "packing"}


def lists_of(mask):
    _, queries, keys = mask.shape
    rows = lambda x: None if x is None else jnp.atleast_2d(jnp.asarray(x))
    vectors = Visibility(rows(mask.reads), rows(mask.groups), rows(mask.q_sample), rows(mask.k_sample))
    # Under jit, because a mask may be data.
    build = jax.jit(lambda vectors: block_lists(fill_blocks(vectors, queries, keys, BLOCK, BLOCK), BLOCK, BLOCK))
    return jax.tree.map(np.asarray, build(vectors))


def dense_blocks(mask):
    """Which pairs of blocks hold a visible pair, and which hold nothing else (keys that fill up are invisible)."""
    dense = np.asarray(mask.dense())
    batch, queries, keys = dense.shape
    more = ((0, 0), (0, -queries % BLOCK), (0, 0))
    dense = np.pad(np.pad(dense, more, mode="edge"), ((0, 0), (0, 0), (0, -keys % BLOCK)))
    blocks = dense.reshape(batch, -(-queries // BLOCK), BLOCK, -(-keys // BLOCK), BLOCK)
    return blocks.any((2, 4)), blocks.all((2, 4))


@pytest.mark.parametrize("name", MASKS)
def test_visits_are_the_fewest_possible(name):
    mask = MASKS[name]
    lists = lists_of(mask)
    some, every = dense_blocks(mask)
    flat = lambda x: x.reshape(-1, x.shape[2])
    for words, seen, full in (
        *zip(flat(lists.by_query), flat(some), flat(every)),
        *zip(flat(lists.by_key), flat(some.swapaxes(1, 2)), flat(every.swapaxes(1, 2))),
    ):
        visited = words[FIRST : FIRST + words[VISITED]]
        whole = visited[: words[WHOLE]]
        np.testing.assert_array_equal(np.sort(visited), np.flatnonzero(seen))
        assert full[whole].all()
        if name in PROVES_FULL:
            np.testing.assert_array_equal(whole, np.flatnonzero(full))


def test_without_a_mask_only_the_block_that_is_filled_up_is_partial():
    lists = block_lists(fill_blocks(None, 40, 40, BLOCK, BLOCK), BLOCK, BLOCK)
    np.testing.assert_array_equal(lists.by_query, [[[3, 2, 0, 1, 2]] * 3])
    np.testing.assert_array_equal(lists.by_key[0, :, WHOLE], [3, 3, 0])
    for queries, keys in ((40, 40), (32, 48), (17, 5)):
        computed = block_lists(fill_blocks(None, queries, keys, BLOCK, BLOCK), BLOCK, BLOCK)
        _, written = fill_and_list(None, queries, keys, BLOCK, BLOCK)
        jax.tree.map(np.testing.assert_array_equal, written, computed)


def test_empty_rows_visit_nothing():
    mask = TokenMask(np.zeros(32, np.uint32), np.ones(32, np.uint32), width=1)
    assert not lists_of(mask).by_query[:, :, VISITED].any()


@pytest.mark.parametrize(("length", "expected"), [(1, 128), (512, 512), (600, 384), (75_600, 512)])
def test_blocks_are_filled_up_little(length, expected):
    block = block_length(length, 512, 128)
    assert block == expected
    assert -(-length // block) == -(-length // 512)
