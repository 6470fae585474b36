"""What is packed stands where it would stand alone, sees what it would see alone, and takes no more room."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import TokenMask
from kaleido_jax.methods.method import make_table
from kaleido_jax.packing import packed, rows

LARGE = TokenLayout(
    (
        Segment(kind="reference", grid=(1, 2, 3)),
        Segment(kind="video", grid=(2, 2, 3)),
        Segment(kind="text", grid=(4, 1, 1)),
    )
)
SMALL = TokenLayout((Segment(kind="video", grid=(1, 2, 2)), Segment(kind="text", grid=(3, 1, 1))))


@pytest.mark.parametrize("rule", ["bidirectional", "unidirectional"])
def test_a_packed_table_is_that_of_the_layouts_packed_samples(rule):
    """As `rope.positions` and `masks.visibility` give it for one layout whose segments belong to several samples."""
    layouts = (LARGE, SMALL, LARGE)
    lengths = ([[6, 12, 2], [0, 6, 4]], [[4, 1], [4, 3]], [[6, 12, 4], [6, 12, 1]])
    times = np.array([[0.2], [0.4]], np.float32)
    tables = [
        make_table(one, one.contents(lengths=np.array(own)), times=times + i, scheme="shift-wh", rules=(rule,))
        for i, (one, own) in enumerate(zip(layouts, lengths))
    ]
    layout, table = packed(layouts, tables)
    assert layout.segments == LARGE.segments + SMALL.segments + LARGE.segments
    samples = np.repeat(np.arange(3), [len(one.segments) for one in layouts])[None]
    contents = layout.contents(lengths=np.concatenate(lengths, axis=1), samples=np.repeat(samples, 2, axis=0))
    visual = np.repeat(np.arange(3), [len(one.select("visual")) for one in layouts])
    wanted = make_table(
        layout, contents, times=times + visual.astype(np.float32)[None], scheme="shift-wh", rules=(rule,)
    )
    for name in ("positions", "lengths", "subjects", "timesteps", "loss_weights"):
        np.testing.assert_array_equal(getattr(table, name), getattr(wanted, name), err_msg=name)
    for name in ("self_mask", "text_mask"):
        np.testing.assert_array_equal(getattr(table, name).dense(), getattr(wanted, name).dense(), err_msg=name)


def test_masks_that_show_all_and_masks_of_several_samples_are_packed_too():
    """Sample 1 of the first and sample 0 of the second do not become one."""
    shows_all = make_table(SMALL, SMALL.contents(), times=np.zeros((1, 1), np.float32), scheme="shift-wh")
    ones = jnp.ones((4,), jnp.uint32)
    sample = jnp.asarray([[0, 1, 1, -1]], jnp.int32)
    two = TokenMask(ones, ones, q_sample=sample, k_sample=sample, width=1)
    tables = [
        dataclasses.replace(shows_all, self_mask=two, text_mask=None),
        dataclasses.replace(shows_all, self_mask=None, text_mask=None),
    ]
    _, table = packed((SMALL, SMALL), tables)
    wanted = np.zeros((8, 8), bool)
    wanted[:4, :4], wanted[4:, 4:] = two.dense()[0], True
    np.testing.assert_array_equal(table.self_mask.dense()[0], wanted)
    np.testing.assert_array_equal(table.text_mask.dense()[0], np.kron(np.eye(2), np.ones((4, 3))) > 0)
    assert packed((SMALL,), tables[:1])[1] is tables[0]


def test_batches_lie_side_by_side_where_there_is_room():
    found = rows({0: 3, 1: 8, 2: 5, 3: 0}, {0: 100, 1: 45, 2: 10, 3: 1000})
    assert found == [((0,), 3), ((1, 1, 2), 4), ((2,), 1)]
    random = np.random.default_rng(0)
    for _ in range(50):
        tokens = {kind: int(random.integers(1, 100)) for kind in range(5)}
        batches = {kind: int(random.integers(0, 50)) for kind in range(5)}
        found = rows(batches, tokens)
        assert {kind: sum(row.count(kind) * times for row, times in found) for kind in range(5)} == batches
        longest = max((tokens[kind] for kind in range(5) if batches[kind]), default=0)
        assert all(times > 0 and sum(tokens[kind] for kind in row) <= longest for row, times in found)
        assert len(found) <= 2 * 5
