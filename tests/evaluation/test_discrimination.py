"""Planted mistakes are found; tools/discrimination.py measures it over many."""

import numpy as np
import pytest

from kaleido_jax.data.world import World
from kaleido_jax.evaluation.discrimination import QUESTIONS, Maker, discriminate
from kaleido_jax.evaluation.encoders import WorldFeatures
from kaleido_jax.evaluation.evidence import Tools
from kaleido_jax.evaluation.intervals import auc, auc_interval

TOOLS = Tools(encoders={"clip": WorldFeatures()})


def test_the_scores_see_planted_mistakes():
    found = list(discriminate(World(48, 4), TOOLS, 3))
    assert [answer.name for answer in found] == list(QUESTIONS)
    for answer in found:  # of 3 pairs, 9 comparisons: one may be wrong
        assert answer.area >= 8 / 9, answer


def test_pairs_differ_in_the_mistake_alone():
    maker = Maker(World(64, 5), TOOLS)
    right, wrong = QUESTIONS["reference_leak"].pair(maker, 1)
    assert ((right.video != wrong.video).any((1, 2, 3))).sum() == 1
    np.testing.assert_array_equal(right.references[0], wrong.references[0])
    right, wrong = QUESTIONS["swap"].pair(maker, 1)
    assert (right.video != wrong.video).any()
    np.testing.assert_array_equal(right.references[0], wrong.references[0])


def test_the_area_under_the_curve():
    higher, lower = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    assert auc(higher, lower) == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 1) / 6)
    area, low, high = auc_interval(higher, lower)
    assert low <= area <= high == 1
