"""Faults of references: each does what it says, more of it the stronger it is, and the same every time."""

from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from kaleido_jax.data.perturbations import FAULTS, STRENGTHS, augmented, perturbed, strangers
from kaleido_jax.data.world import Sample, World
from kaleido_jax.errors import UsageError
from kaleido_jax.models.text import Tokenizer, UMT5Config
from kaleido_jax.models.vae import WanVAE
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.testing.tiny import TINY_CONFIG, WORDS
from kaleido_jax.training.experiment import DataConfig, Experiment
from kaleido_jax.training.run import Run

SIZE = (48, 64)


def subject(colour=(200, 40, 40)):
    """A striped box, 24 x 32, on white, with its colour darker below."""
    picture = np.full((*SIZE, 3), 255, np.uint8)
    box = picture[12:36, 16:48]
    box[...] = colour
    box[:, ::4] = (20, 20, 90)
    box[12:] //= 2
    return picture


OTHERS = [subject((40, 160, 40)), subject((40, 40, 200)), subject((180, 180, 20)), subject((20, 160, 160))]


def box_of(picture):
    seen = (picture < 250).any(axis=-1)
    return seen.any(axis=1).sum(), seen.any(axis=0).sum()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault(fault):
    picture = subject()
    made = [perturbed(picture, fault, strength, 3, OTHERS) for strength in STRENGTHS]
    assert all(one.shape == picture.shape and one.dtype == np.uint8 for one in made)
    for strength, one in zip(STRENGTHS, made):
        np.testing.assert_array_equal(perturbed(picture, fault, strength, 3, OTHERS), one)
    np.testing.assert_array_equal(picture, subject())  # the picture itself stays
    distance = [np.abs(one.astype(int) - picture).mean() for one in made]
    assert distance[0] > 0.2 and len({one.tobytes() for one in made}) == 3
    if fault in ("jpeg", "blur", "lighting", "occlusion", "cartoon"):  # the others also move what they show
        assert distance[0] < distance[1] < distance[2]


def test_what_faults_do():
    picture, grey = subject(), np.full((*SIZE, 3), 100, np.uint8)
    # JPEG is Pillow's own, and Pillow's blur of one colour is that colour.
    np.testing.assert_array_equal(perturbed(grey, "blur", 3, 0), grey)
    assert np.abs(perturbed(grey, "jpeg", 3, 0).astype(int) - grey).max() < 20
    light = perturbed(np.full_like(grey, 200), "lighting", 3, 1).astype(float).mean(axis=(0, 2))
    np.testing.assert_allclose(sorted((light[0] / light.max(), light[-1] / light.max())), (0.15, 1.0), atol=0.01)
    for strength, share in zip(STRENGTHS, (0.15, 0.35, 0.6)):
        covered = (perturbed(picture, "occlusion", strength, 5) != picture).any(axis=-1).sum()
        assert covered == pytest.approx(share * 24 * 32, rel=0.15)
    # A crop is as large as before: 9 in 10 of the canvas, in the longer of its sides.
    for strength in STRENGTHS:
        assert max(n / side for n, side in zip(box_of(perturbed(picture, "crop", strength, 2)), SIZE)) > 0.8
    upside_down = perturbed(picture, "unusual pose", 3, 0)
    assert upside_down[12].mean() < upside_down[36].mean()  # the darker half is up
    tall, wide = box_of(perturbed(picture, "unusual pose", 2, 0))
    assert tall > wide
    crowd = perturbed(picture, "crowded", 3, 0, OTHERS)
    for other in OTHERS:
        colour = other[13, 17]
        assert (np.abs(crowd.astype(int) - colour).max(axis=-1) < 25).sum() > 10
    assert len(np.unique(perturbed(picture, "cartoon", 3, 0).reshape(-1, 3), axis=0)) <= 27 + 1


def test_what_is_refused():
    with pytest.raises(UsageError, match="jpeg"):
        perturbed(subject(), "jpg", 1, 0)
    with pytest.raises(UsageError, match="strength of blur is 4"):
        perturbed(subject(), "blur", 4, 0)
    with pytest.raises(UsageError, match="takes 4 other pictures; 1 are given"):
        perturbed(subject(), "crowded", 3, 0, OTHERS[:1])


def test_a_share_of_the_references_of_samples():
    world = World(SIZE, 2, photographs=False)
    sample = Sample(video=np.zeros((2, *SIZE, 3), np.uint8), references=[(subject(), 1), (subject(), 0)], prompt="a",
                    masks=np.zeros((2, *SIZE), np.uint8), truth={})  # fmt: skip
    changed = []
    for seed in range(40):
        (one, number), (scene, background) = augmented(world, sample, seed, 0.5).references
        assert (number, background) == (1, 0) and scene is sample.references[1][0]  # scenes stay
        changed.append(one is not sample.references[0][0])
    assert 10 < sum(changed) < 30
    assert augmented(world, sample, 0, 0.0).references == sample.references
    again = augmented(world, sample, 7, 1.0).references[0][0]
    np.testing.assert_array_equal(augmented(world, sample, 7, 1.0).references[0][0], again)
    assert len(strangers(world, 0, "heldout")) == 4
    assert Image.fromarray(again).size == (64, 48)


def test_training_draws_them_and_what_is_held_out_stays_whole():
    world = World(SIZE, 2, photographs=False)
    run = SimpleNamespace(world=world, experiment=SimpleNamespace(data=DataConfig(size=48, width=64, perturbed=1.0)))
    plain = world.sample(3).references
    drawn, heldout = (Run._render(run, split)(3).references for split in ("train", "heldout"))
    assert all(number == other for (_, number), (_, other) in zip(plain, drawn))
    assert any((one != other).any() for (one, number), (other, _) in zip(plain, drawn) if number)
    for (one, _), (other, _) in zip(heldout, world.sample(3, "heldout").references):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"data\.perturbed is a share"):
        DataConfig(perturbed=2.0)
    with pytest.raises(UsageError, match="not the group that anyid trains on"):
        Run(
            Experiment(
                name="a",
                method="anyid",
                transformer=WanConfig(dim=8, ffn_dim=8, heads=1, layers=1),
                text=UMT5Config.miniature(vocab_size=64),
                data=DataConfig(perturbed=0.5),
            ),
            ".",
            world=world,
            vae=nnx.eval_shape(lambda: WanVAE(TINY_CONFIG.vae, nnx.Rngs(0))),
            tokenizer=Tokenizer.from_words(WORDS),
        )
