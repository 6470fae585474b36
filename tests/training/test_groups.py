"""Methods that train on groups of clips: what a batch holds, and that a short run learns and draws."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.errors import UsageError
from kaleido_jax.methods.method import EMPTY_BYTE
from kaleido_jax.training.groups import losses_by_shots
from kaleido_jax.training.loop import Training, draw_sheet
from kaleido_jax.training.metrics import Metrics
from kaleido_jax.training.miniature import prepare
from kaleido_jax.training.signals import Signals
from kaleido_jax.training.step import EVALUATION_TIMES


@pytest.fixture(scope="module")
def anyid(experiment, tmp_path_factory):
    data = dataclasses.replace(experiment.data, source="world", references=2, reference_frames=5, text_dropout=0.25)
    # A sheet of as many pictures as a batch has needs no programs of its own.
    sampling = dataclasses.replace(experiment.sampling, pictures=experiment.train.batch)
    changed = dataclasses.replace(experiment, method="anyid", data=data, sampling=sampling)
    return prepare(changed, tmp_path_factory.mktemp("anyid"))


def learn(run, steps: int) -> list[float]:
    """The losses of some steps on one batch."""
    batch = run.latents(run.source("train").batch(0))
    state, losses = jax.tree.map(jnp.copy, run.initial), []
    for _ in range(steps):
        state, values = run.programs.train(state, batch, jnp.zeros((), jnp.float32))
        losses.append(float(values["loss"]))
    return losses


def test_a_batch_of_groups(anyid):
    source = anyid.source("train")
    batches = [source.batch(step) for step in range(4)]
    frames = np.concatenate([batch.reference_frames for batch in batches])
    references = np.concatenate([batch.references for batch in batches])
    assert references.shape[1:] == (2, 5, 32, 32, 3)
    assert set(frames[:, 0].tolist()) == {1, anyid.vae.config.latent_frames(5)}
    assert (frames[:, 1] == 0).any() and (frames[:, 1] > 0).any()
    lengths = np.concatenate([batch.text_lengths for batch in batches])
    _, nothing = anyid.tokenizer.encode([""], 32)
    empty = (references == EMPTY_BYTE).all(axis=(1, 2, 3, 4, 5))
    # The empty condition takes prompt and references away together.
    np.testing.assert_array_equal(empty, lengths == nothing[0])
    assert empty.any() and not empty.all()
    # A picture fills the first frame of its slot and nothing else.
    rows = np.flatnonzero((frames[:, 0] == 1) & ~empty)
    assert len(rows) and (references[rows, 0, 1:] == EMPTY_BYTE).all()
    assert not (source.batch(0).video != batches[0].video).any()
    heldout = anyid.source("heldout")
    assert heldout.batches_per_epoch == 2
    assert not np.array_equal(heldout.batch(0).video, batches[0].video)


def test_anyid_learns_and_draws(anyid, tmp_path):
    losses = learn(anyid, 25)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    draw_sheet(anyid, anyid.initial, anyid.source("heldout"), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_transformer_with_other_channels_than_the_method_needs(experiment, tmp_path):
    changed = dataclasses.replace(experiment, scheme="channel-concat")
    with pytest.raises(UsageError, match=r"in_channels is 4; kaleido with latents of 4 channels and 3 .* needs 16"):
        prepare(changed, tmp_path)


def test_contextanyone_learns(experiment, prepared, tmp_path):
    """From the caches that `prepared` wrote: video and reconstruction, one reference a sample."""
    transformer = dataclasses.replace(experiment.transformer, image_dim=16, emphasis=True)
    data = dataclasses.replace(experiment.data, references=1)
    changed = dataclasses.replace(experiment, method="contextanyone", transformer=transformer, data=data)
    run = prepare(changed, tmp_path)
    batch = run.source("train").batch(0)
    state, losses = jax.tree.map(jnp.copy, run.initial), []
    for _ in range(25):
        state, values = run.programs.train(state, batch, jnp.zeros((), jnp.float32))
        losses.append(float(values["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


def test_scenes_are_learned_and_drawn(experiment, tmp_path):
    data = dataclasses.replace(experiment.data, source="world", shots=2, single_shots=0.25, text_dropout=0.0)
    sampling = dataclasses.replace(experiment.sampling, pictures=experiment.train.batch)
    changed = dataclasses.replace(experiment, method="lct", data=data, sampling=sampling)
    run = prepare(changed, tmp_path)
    batches = [run.source("train").batch(step) for step in range(4)]
    assert batches[0].video.shape == (4, 2, 5, 32, 32, 3)
    assert batches[0].subject_share.shape[:2] == (4, 2 * run.vae.config.latent_frames(5))
    present = np.concatenate([batch.text_lengths for batch in batches]) > 0
    alone = ~present[:, 0]
    assert alone.any() and not alone.all()
    np.testing.assert_array_equal(present[alone], [[False, True, False]] * alone.sum())
    assert present[~alone].all()
    losses = learn(run, 25)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
    draw_sheet(run, run.initial, run.source("heldout"), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_single_shots_are_reported_before_the_first_step(experiment, tmp_path, monkeypatch):
    """A run that is stopped before anything is trained has written down how good the base model's were."""
    data = dataclasses.replace(experiment.data, source="world", shots=2, single_shots=0.5)
    run = prepare(dataclasses.replace(experiment, method="lct", data=data), tmp_path)
    monkeypatch.setattr(run, "ready", lambda batch, source: batch)
    monkeypatch.setattr(run.programs, "evaluate", lambda weights, batch: np.ones((4, len(EVALUATION_TIMES))))
    monkeypatch.setattr(Signals, "stop_at", lambda self, step: True)
    with Metrics(tmp_path / "metrics.jsonl") as metrics:
        assert Training(run, run.initial, 0.0, metrics).go(Signals())
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["step"] == 0 and line["heldout_single_shot_loss"] == line["heldout_scene_loss"] == 1.0


def test_single_shots_are_reported_beside_scenes():
    lengths = np.array([[3, 4, 2], [0, 4, 0], [3, 2, 2], [0, 1, 0]])
    found = losses_by_shots(np.array([1.0, 2.0, 3.0, 6.0]), lengths)
    assert found == {"heldout_single_shot_loss": 4.0, "heldout_scene_loss": 2.0}
    assert losses_by_shots(np.array([1.0]), lengths[:1]) == {"heldout_scene_loss": 1.0}
