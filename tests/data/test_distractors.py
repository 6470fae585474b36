"""Look-alikes for evaluation: how many share the colour and the silhouette, and that none is the target."""

import pytest

from kaleido_jax.data.distractors import distractors
from kaleido_jax.data.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return World(48, 1)


@pytest.mark.parametrize("number", [1, 7, 21, 35, 101, 333])
def test_five_share_the_colour_and_five_the_silhouette(world, number):
    target = world.identity(number)
    others = distractors(world, target, seed=0)
    assert len(others) == 15
    assert sum(world.looks(one).colour == world.looks(target).colour for one in others[:5]) == 5
    assert all(one.silhouette is target.silhouette for one in others[5:10])
    assert all(one.silhouette is not target.silhouette for one in (*others[:5], *others[10:]))
    assert all(one.number % 2 == 1 and one.body != target.body for one in others)


def test_they_are_the_same_every_time_and_others_for_another_seed(world):
    target = world.identity(9)
    first, again, other = (distractors(world, target, seed=seed) for seed in (4, 4, 5))
    assert [one.number for one in first] == [one.number for one in again] != [one.number for one in other]


def test_counts_must_fit(world):
    with pytest.raises(ValueError, match="at most count, 6"):
        distractors(world, world.identity(1), 0, count=6)
