"""The world's subjects are found in its videos without their masks."""

import numpy as np
import pytest

from kaleido_jax.data.world import World
from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.detection import world_masks
from kaleido_jax.evaluation.discrimination import Maker
from kaleido_jax.evaluation.evidence import Tools


def test_masks_lie_on_the_subject():
    world = World(96, 2)
    maker = Maker(world, Tools())
    subject = maker.identities(3, 1)
    sample = world.render(maker.story(3, subject))
    masks, subjects = world_masks(sample.video, {"identities": [subject[0].number]})
    assert subjects.tolist() == [1]
    both, either = ((masks > 0) & (sample.masks > 0)).sum((1, 2)), ((masks > 0) | (sample.masks > 0)).sum((1, 2))
    # A pose of its own in place of the real one: the outlines agree roughly, not in every limb.
    assert np.median(both / either) > 0.5


def test_truth_without_identities_is_told():
    with pytest.raises(InputError, match=r"world\.identities is None; expected a list of whole numbers"):
        world_masks(np.zeros((2, 32, 32, 3), np.uint8), {})
