"""Identity groups and scenes: one subject throughout, and ground truth that is true."""

import numpy as np

from kaleido_jax.data.groups import draw_group, draw_scene
from kaleido_jax.data.lexicon import SCENE_PHRASES
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.world import World

WORLD = World(size=32, frames=9, photographs=False)


def test_a_group_is_a_function_of_its_seed():
    one, again, other = (draw_group(WORLD, seed, clip=5) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.video, again.video)
    assert len(one.references) == len(again.references)
    assert not np.array_equal(one.video, other.video)


def test_references_are_pictures_and_clips_other_than_the_video():
    groups = [draw_group(WORLD, seed, clip=5) for seed in range(30)]
    assert {len(group.references) for group in groups} == {1, 2, 3, 4, 5}
    assert {len(reference) for group in groups for reference in group.references} == {1, 5}
    for group in groups:
        assert group.video.shape == (9, 32, 32, 3) and group.masks.any()
        assert not any(np.array_equal(group.video[: len(r)], r) for r in group.references)
        assert group.shown.motion in MOTIONS and group.target.scene in SCENE_PHRASES
        if len(group.references[0]) == 1:  # cut out, as its truth says
            assert group.shown.scene == "plain" and (group.references[0][0, 0, 0] == 255).all()


def test_a_scene_shows_one_subject_in_several_shots():
    scene = draw_scene(WORLD, 5, shots=4)
    assert scene.videos.shape == (4, 9, 32, 32, 3) and scene.masks.shape == (4, 9, 32, 32)
    assert len(scene.prompts) == 4 and all(scene.prompts) and scene.prompt.startswith("a video of the")
    assert len({video.tobytes() for video in scene.videos}) == 4
