"""The procedural world: determinism, disjoint splits, motions and masks measured on what was drawn."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from kaleido_jax.data import photographs
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.scenes import SCENES, paint_scene
from kaleido_jax.data.world import World
from kaleido_jax.errors import UsageError


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def acting(world: World, motion: str, seed: int, scene: str = "clouds"):
    """A story of one subject that does `motion` before a scene without a floor (so without shadows)."""
    number = 2 * seed + 1
    story = world.story(seed, "heldout")
    return replace(
        story, identities=(world.identity(number),), motions=(motion,), scene=scene, pictures=(1,), scene_given=False
    )


def same(first, second) -> bool:
    return (
        np.array_equal(first.video, second.video)
        and np.array_equal(first.masks, second.masks)
        and first.prompt == second.prompt
        and len(first.references) == len(second.references)
        and all(a[1] == b[1] and np.array_equal(a[0], b[0]) for a, b in zip(first.references, second.references))
    )


def test_a_seed_is_a_sample_whatever_was_drawn_before(world):
    for split in ("train", "heldout"):
        for seed in (3, 4):
            assert same(world.sample(seed, split), World().sample(seed, split))


def test_other_seeds_splits_and_worlds_are_other_samples(world):
    base = world.sample(5)
    for other in (world.sample(6), world.sample(5, "heldout"), World(seed=1).sample(5)):
        assert not same(base, other)


def test_a_world_travels_to_another_process(world):
    assert same(pickle.loads(pickle.dumps(World((64, 80), 5))).sample(1), World((64, 80), 5).sample(1))


def test_prompts_are_those_of_the_first_release(world):
    """The stream of draws must not change unnoticed: shipped weights and cached latents were made from it."""
    assert [world.story(seed).prompt for seed in range(3)] == [
        "in the sky, a creature stays still.",
        "a video of a brown subject moving up on a sandy beach",
        "a brown toy shrinks while the toy hops at the seaside.",
    ]


@pytest.mark.parametrize(("size", "frames"), [(96, 17), ((64, 96), 9), ((96, 64), 1), ((48, 48), 5)])
def test_shapes_and_references(size, frames):
    height, width = (size, size) if isinstance(size, int) else size
    sized = World(size, frames)
    for seed in range(4):
        sample = sized.sample(seed)
        assert sample.video.shape == (frames, height, width, 3) and sample.video.dtype == np.uint8
        assert sample.masks.shape == (frames, height, width) and sample.masks.dtype == np.uint8
        assert 1 <= len(sample.references) <= 3
        assert all(picture.shape == (height, width, 3) for picture, _ in sample.references)


def test_references_come_by_subject_and_the_scene_last(world):
    for seed in range(60):
        story = world.story(seed)
        sample = replace(story) and [i + 1 for i, n in enumerate(story.pictures) for _ in range(n)]
        assert 1 <= len(sample) + story.scene_given <= 3
        assert all(n >= 1 for n in story.pictures) and len(story.pictures) == len(story.identities)
    story = next(s for s in map(world.story, range(200)) if s.scene_given and len(s.identities) == 2)
    assert [subject for _, subject in world.render(story).references] == [1, 2, 0]


def test_all_numbers_of_references_and_subjects_occur(world):
    stories = [world.story(seed) for seed in range(300)]
    assert {sum(s.pictures) + s.scene_given for s in stories} == {1, 2, 3}
    assert {s.pictures for s in stories} == {(1,), (2,), (3,), (1, 1), (2, 1), (1, 2)}
    assert {m for s in stories for m in s.motions} == set(MOTIONS)
    assert {s.scene for s in stories} == {*SCENES, "photo"}


def test_splits_share_neither_identities_nor_scenes_nor_photographs(world):
    train, heldout = ([world.story(seed, split) for seed in range(200)] for split in ("train", "heldout"))
    assert {one.number % 2 for s in train for one in s.identities} == {0}
    assert {one.number % 2 for s in heldout for one in s.identities} == {1}
    assert not {s.scene_seed for s in train} & {s.scene_seed for s in heldout}
    assert not set(photographs.TRAIN) & set(photographs.HELDOUT)
    pictures = {split: photographs.load(split).pictures for split in ("train", "heldout")}
    thumbnails = {
        split: [np.asarray(Image.fromarray(p).resize((16, 16)), np.float32) for p in ps]
        for split, ps in pictures.items()
    }
    # Not only other names: no picture of one split is nearly one of the other (motorcycle_left and _right would be).
    assert min(np.abs(a - b).mean() for a in thumbnails["train"] for b in thumbnails["heldout"]) > 12


def centres(sample, subject: int = 1) -> np.ndarray:
    return np.array([ndimage.center_of_mass(frame == subject) for frame in sample.masks])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("motion", "axis", "sign"), [("right", 1, 1), ("left", 1, -1), ("up", 0, -1), ("down", 0, 1)])
def test_subjects_cross_the_frame_as_told(world, motion, axis, sign, seed):
    path = centres(world.render(acting(world, motion, seed)))
    travel = (path[-1] - path[0]) * sign
    assert travel[axis] > 0.3 * world.height
    assert abs(travel[1 - axis]) < 0.15 * world.height


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("motion", "larger"), [("grow", True), ("shrink", False)])
def test_subjects_grow_and_shrink(world, motion, larger, seed):
    areas = (world.render(acting(world, motion, seed)).masks > 0).sum((1, 2)).astype(float)
    ratio = areas[-1] / areas[0]
    assert ratio > 2.5 if larger else ratio < 0.4


@pytest.mark.parametrize("seed", range(3))
def test_hops_circles_and_rest(world, seed):
    hop, still, circle = (centres(world.render(acting(world, m, seed))) for m in ("hop", "still", "circle"))
    assert np.ptp(hop[:, 0]) > 0.1 * world.height and np.ptp(hop[:, 1]) < 0.12 * world.width
    assert np.ptp(still) >= 0 and np.ptp(still, axis=0).max() < 0.1 * world.height
    assert np.ptp(circle, axis=0).min() > 0.2 * world.height
    # It comes round: the end is nearer to the start than the far side is.
    assert np.linalg.norm(circle[-1] - circle[0]) < np.linalg.norm(circle - circle[0], axis=1).max()


@pytest.mark.parametrize("seed", range(4))
def test_masks_cover_what_moves_and_nothing_else(world, seed):
    story = acting(world, "right", seed)
    sample = world.render(story)
    plate = np.asarray(
        paint_scene(story.scene, story.scene_seed, 96, 96, photographs.load(story.split)).picture, np.int16
    )
    difference = np.abs(sample.video.astype(np.int16) - plate).max(-1)
    # Soft edges reach at most two pixels beyond the mask's half-covered ones.
    near = ndimage.binary_dilation(sample.masks > 0, np.ones((1, 5, 5)))
    assert difference[~near].max() == 0
    inside = ndimage.binary_erosion(sample.masks > 0, np.ones((1, 3, 3)))
    assert (difference[inside] > 0).mean() > 0.9
    # Subjects are large enough to see: at least 3 % and at most 40 % of the frame.
    assert 0.03 < (sample.masks > 0).mean() < 0.4


def fitted(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The masked part of a picture on white, stretched to 24 x 24."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = np.where(mask[..., None], picture, 255)[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.asarray(Image.fromarray(cut.astype(np.uint8)).resize((24, 24), Image.Resampling.BOX), np.float32)


def test_references_show_other_poses_than_the_video(world):
    """Even cut out and stretched to the same box, references are not the video's sprites (plain discs aside)."""
    near = []
    for seed in range(24):
        story = acting(world, "still", seed)
        sample = world.render(story)
        reference = world.picture(story.identities[0], seed, style="white")
        cut = fitted(reference, (reference < 250).any(-1))
        frames = [fitted(f, m == 1) for f, m in zip(sample.video[::4], sample.masks[::4]) if m.any()]
        near.append(min(np.abs(cut - frame).mean() for frame in frames))
    assert np.median(near) > 20
    assert np.mean(np.array(near) < 5) < 0.1


def test_references_show_other_surroundings_than_the_video(world):
    for seed in range(12):
        story = world.story(seed)
        plate = np.asarray(
            paint_scene(story.scene, story.scene_seed, 96, 96, photographs.load("train")).picture, np.float32
        )
        for i, one in enumerate(story.identities):
            picture = world.picture(one, 100 * seed + i, style="scene")
            assert np.abs(picture - plate)[:8].mean() > 4 or np.abs(picture - plate)[-8:].mean() > 4


def test_reference_pictures_are_fitted_on_white(world):
    identity = world.identity(8)
    white = world.picture(identity, 1, style="white")
    assert (white[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    # The cut-out fills most of the canvas in one direction.
    content = (white < 250).any(-1)
    assert max(np.ptp(np.flatnonzero(content.any(0))), np.ptp(np.flatnonzero(content.any(1)))) > 0.55 * world.height
    assert not np.array_equal(white, world.picture(identity, 2, style="white"))


def test_one_identity_keeps_its_colours_between_references_and_video(world):
    """What a model has to copy is there to be copied: colours of one identity agree, of others do not."""

    def histogram(pixels: np.ndarray) -> np.ndarray:
        bins, _ = np.histogramdd(pixels, bins=4, range=[(0, 256)] * 3)
        return bins.ravel() / bins.sum()

    videos, references = [], []
    for seed in range(16):
        story = acting(world, "still", seed)
        sample = world.render(story)
        videos.append(histogram(sample.video[sample.masks == 1]))
        picture = world.picture(story.identities[0], seed, style="white")
        references.append(histogram(picture[(picture < 250).any(-1)]))
    overlap = np.array([[np.minimum(v, r).sum() for r in references] for v in videos])
    assert (overlap.argmax(1) == np.arange(16)).mean() > 0.8


def test_edges_are_soft(world):
    painter = world.painter_of(world.identity(2))
    from kaleido_jax.data.sprites import Pose

    alpha = np.asarray(painter.sprite(world.identity(2), Pose()).alpha)
    assert ((alpha > 0) & (alpha < 255)).any()


def test_a_world_without_photographs_needs_no_photographs(monkeypatch):
    photographs.load.cache_clear()
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    World(48, 3, photographs=False).sample(0)
    with pytest.raises(UsageError, match="photographs=False"):
        World(48, 3).sample(0)
    photographs.load.cache_clear()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="split is 'test'; it must be one of train, heldout"):
        World().sample(0, "test")
    with pytest.raises(ValueError, match="at least 16 x 16"):
        World(8)
    world = World(48, 3)
    with pytest.raises(ValueError, match="motion is 'jump'"):
        world.render(replace(world.story(0), identities=(world.identity(0),), motions=("jump",), pictures=(1,)))
