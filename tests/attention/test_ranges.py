"""Masks as ranges of keys, against the dense mask and against all orders of the kinds of keys."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_jax.attention.ranges import as_ranges
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import TokenMask, bidirectional, separate_references, shot_causal, unidirectional, visibility

VIDEO = Segment(kind="video", grid=(2, 2, 3))
REFERENCES = tuple(Segment(kind="reference", grid=(1, 2, 2), subject=i) for i in range(3))
KALEIDO = TokenLayout((VIDEO, *REFERENCES))
SHOTS = TokenLayout(tuple(Segment(kind="video", grid=(1, 2, 3 + i), shot=i) for i in range(4)))


def dense(ranges):
    """The mask that ranges stand for, with keys in their places."""
    order, start, end = ranges
    places = np.arange(order.shape[1])[None, None]
    inside = (places >= start[:, :, None]) & (places < end[:, :, None])
    result = np.zeros_like(inside)
    for row, tokens in enumerate(order):
        result[row][:, tokens] = inside[row]
    return result


@pytest.mark.parametrize(
    "mask",
    [
        visibility(KALEIDO, unidirectional),
        visibility(SHOTS, shot_causal),
        visibility(SHOTS, contents=SHOTS.contents(samples=np.array([[0, 1, 0, 2]]))),
        visibility(KALEIDO, bidirectional, contents=KALEIDO.contents(lengths=np.array([[12, 4, 4, 4], [12, 4, 0, 0]]))),
    ],
    ids=["unidirectional", "shot-causal", "packed samples that interleave", "ragged references"],
)
def test_masks_of_methods_are_ranges(mask):
    np.testing.assert_array_equal(dense(as_ranges(mask)), np.asarray(mask.dense()))


def test_keys_that_stand_in_ranges_already_stay():
    order, start, end = as_ranges(visibility(SHOTS, shot_causal))
    np.testing.assert_array_equal(order[0], np.arange(SHOTS.tokens()))
    assert not start.any() and end[0, 0] == 6 and end[0, -1] == SHOTS.tokens()


def test_three_references_that_do_not_see_each_other_are_no_ranges():
    """Each reads itself and the video, and the video has only two sides."""
    assert as_ranges(visibility(KALEIDO, separate_references)) is None


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31 - 1))
def test_found_exactly_where_there_is_an_order(seed):
    rng = np.random.default_rng(seed)
    mask = TokenMask(rng.integers(0, 16, 7).astype(np.uint32), rng.integers(0, 16, 5).astype(np.uint32), width=4)
    matrix = np.asarray(mask.dense())[0]
    is_run = lambda row: np.diff(np.flatnonzero(row)).max(initial=1) == 1
    orders = itertools.permutations(range(5))
    exists = any(all(is_run(row) for row in matrix[:, list(order)]) for order in orders)
    ranges = as_ranges(mask)
    assert (ranges is not None) == exists
    if ranges is not None:
        np.testing.assert_array_equal(dense(ranges)[0], matrix)


def test_traced_masks_are_an_error():
    mask = TokenMask(np.ones(4, np.uint32), np.ones(4, np.uint32), width=1)
    with pytest.raises(ValueError, match="mask is traced; expected one whose bits are known"):
        jax.eval_shape(as_ranges, mask)
