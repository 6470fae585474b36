"""The picture of a layout, read back pixel by pixel."""

import numpy as np
import pytest
from PIL import ImageColor

from kaleido_jax import drawing, masks, rope
from kaleido_jax.layout import Segment, TokenLayout

PICTURES = tuple(Segment(kind="reference", grid=(1, 4, 4), subject=subject) for subject in (0, 0, 1))
LAYOUT = TokenLayout((*PICTURES, Segment(kind="video", grid=(3, 4, 4))))


def draw(layout, scheme, rule, **kwargs):
    mask = masks.visibility(layout, rule, queries=None, keys=None)
    places = np.asarray(rope.positions(layout, rope.SCHEMES[scheme], stream=None))[0]
    return drawing.draw_layout(layout, places, mask, title=scheme, **kwargs)


def share_of(picture, colour, tolerance=0):
    """The share of pixels that have this colour."""
    distance = np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(colour))
    return (distance <= tolerance).all(axis=2).mean()


def test_segments_have_names_and_colours_of_their_own():
    assert drawing.segment_names(LAYOUT) == [
        "reference 1, subject 1",
        "reference 2, subject 1",
        "reference 3, subject 2",
        "video",
    ]
    colours = drawing.segment_colours(LAYOUT)
    assert len(set(colours)) == 4
    assert colours[0] == drawing.SUBJECTS[0] and colours[2] == drawing.SUBJECTS[1]


def test_the_mask_is_drawn_block_by_block():
    """Of 6 x 6 blocks of 16 tokens, unidirectional references hide 3 x 3: a quarter of the square is empty."""
    one_way = draw(LAYOUT, "gap", masks.unidirectional, block=16)
    both_ways = draw(LAYOUT, "gap", masks.bidirectional, block=16)
    ratio = share_of(one_way, drawing.VISIBLE) / share_of(both_ways, drawing.VISIBLE)
    # Lines between blocks and a legend of one square are drawn too.
    assert ratio == pytest.approx(0.75, abs=0.01)
    assert share_of(one_way, drawing.MIXED) < 1e-3
    straddling = draw(LAYOUT, "gap", masks.unidirectional, block=20)
    assert share_of(straddling, drawing.MIXED) > 0.01


def test_positions_show_whether_references_share_a_place():
    """Without overlap each reference has cells of its own, else they share them."""
    own = draw(LAYOUT, "shift-wh-no-overlap", masks.bidirectional)
    shared = draw(LAYOUT, "shift-wh", masks.bidirectional)
    assert own.size == shared.size
    for colour in drawing.segment_colours(LAYOUT):
        assert share_of(own, colour) > 1e-3


def test_every_scheme_can_be_drawn():
    for name in sorted(set(rope.SCHEMES) - {"channel-concat"}):
        met = rope.principles(LAYOUT, rope.SCHEMES[name])
        picture = draw(LAYOUT, name, masks.bidirectional, principles=met)
        # The last lines hold nothing else; thin strokes are blended with the paper.
        foot = picture.crop((0, picture.height - 60, picture.width, picture.height))
        has_tick, has_cross = (share_of(foot, colour, tolerance=40) > 0 for colour in (drawing.GOOD, drawing.BAD))
        results = (met.distinguishable, met.separable, met.unordered)
        assert (has_tick, has_cross) == (any(results), not all(results))


def test_many_segments_and_subjects_fit():
    many = [Segment(kind="reference", grid=(1, 1, 2), subject=subject) for subject in range(20)]
    picture = draw(TokenLayout((*many, Segment(kind="video", grid=(1, 2, 2)))), "shift-wh", masks.bidirectional)
    assert picture.width < 1500 and picture.height < 1500


def test_the_visible_share_is_that_of_the_dense_mask():
    lengths = np.array([[16, 0, 5, 48]])
    contents = LAYOUT.contents(lengths=lengths)
    mask = masks.visibility(LAYOUT, masks.unidirectional, contents=contents)
    assert drawing._visible_share(mask) == pytest.approx(np.asarray(mask.dense()).mean())
    plain = masks.separate_references(LAYOUT)
    assert drawing._visible_share(plain) == pytest.approx(np.asarray(plain.dense()).mean())
