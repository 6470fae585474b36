"""Training on several samples in a sequence: the same loss and gradient as of the samples one by one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.data.latents import LatentCache, Sample
from kaleido_jax.diffusion import flow
from kaleido_jax.methods.method import total_of
from kaleido_jax.training import optimizer, step
from kaleido_jax.training.loop import Training
from kaleido_jax.training.metrics import Metrics
from kaleido_jax.training.sources import CachedSource, PackedSource
from kaleido_jax.training.state import Packed, create

SHAPES = ((2, 4, 4), (1, 2, 4))  # of latents; with three references each, two of the second fit where one of the first


class Shapes(LatentCache):
    """Twelve samples of random latents, a third of them of the larger shape."""

    def __init__(self) -> None:
        self.buckets = np.asarray([0, 1, 1] * 4, np.int32)
        self.reference_counts = np.asarray([1 + i % 3 for i in range(12)], np.int32)
        self.weights = np.ones(12)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Sample:
        random, shape = np.random.default_rng(index), SHAPES[self.buckets[index]]
        count = int(self.reference_counts[index])
        normal = lambda *shape: random.normal(size=shape).astype(np.float16)
        return Sample(
            video=normal(*shape, 4),
            references=normal(count, *shape[1:], 4),
            subject_share=np.zeros(shape, np.float16),
            subjects=tuple(range(1, 1 + count)),
            prompt="a cat",
        )


@pytest.fixture(scope="module")
def source(prepared):
    data = dataclasses.replace(prepared.experiment.data, packed=True)
    return PackedSource(CachedSource(Shapes(), prepared.tokenizer, data, 2, 0))


@pytest.fixture(scope="module")
def batch(source):
    """Three samples in each of two sequences, one of the large shape and two of the small one."""
    large, small = (
        next(b for b in map(source.batch, range(4)) if b.parts[0].video.shape[1:4] == shape) for shape in SHAPES
    )
    on = lambda i, part: dataclasses.replace(part, indices=part.indices + np.int32(2 * i))
    return Packed(parts=(large.parts[0], *(on(1, part) for part in small.parts)))


def test_every_sample_is_in_one_sequence_of_an_epoch(source):
    assert source.batches_per_epoch == 4  # two batches of the large shape, and four of the small one in twos
    unpacked = dataclasses.replace(source.source, config=dataclasses.replace(source.source.config, packed=False))
    assert unpacked.batches_per_epoch == 6
    for epoch in range(2):
        names, kinds = [], []
        for place in range(4):
            batch = source.batch(4 * epoch + place)
            assert isinstance(batch, Packed)
            kinds.append([part.video.shape[1:4] for part in batch.parts])
            indices = np.concatenate([part.indices for part in batch.parts])
            np.testing.assert_array_equal(indices, np.arange(len(indices)))
            names += source.names(4 * epoch + place)
        assert sorted(kinds) == sorted([[SHAPES[0]]] * 2 + [[SHAPES[1]] * 2] * 2)
        assert sorted(names, key=int) == [str(i) for i in range(12)]
    once, again = source.batch(3), source.batch(3)
    jax.tree.map(np.testing.assert_array_equal, once, again)


def test_loss_and_gradient_are_those_of_the_samples_one_by_one(prepared, batch):
    """A step on three samples a row, of both shapes; moments after it, because they are made of the gradient.

    float32: sums in another order; measured 4e-7 of the largest.
    """
    random = np.random.default_rng(0)
    weights = jax.tree.map(jnp.copy, prepared.initial.parameters)  # the step's own, which donates them
    head = jnp.asarray(0.1 * random.normal(size=(24, 16)), jnp.float32)  # starts at zero, which hides all else
    weights["transformer"]["head.projection.kernel"] = head
    state = create(prepared.experiment.optimizer, weights)

    def separate(weights, parts):
        losses = []
        for part in parts:
            keys = flow.sample_keys(prepared.experiment.seed, jnp.zeros((), jnp.int32), part.indices)
            time_keys, noise_keys = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 2))(keys), axis=1)
            found = step.sample_losses(
                weights,
                part,
                flow.sample_times(time_keys),
                flow.sample_noise(noise_keys, part.video.shape[1:]),
                networks=prepared.networks,
                experiment=prepared.experiment,
                method=prepared.method,
                layout=prepared.programs.layout(part),
            )
            losses.append(total_of(found))
        return jnp.mean(jnp.concatenate(losses))

    loss, gradient = jax.jit(jax.value_and_grad(separate))(weights, batch.parts)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, moments = optimizer.direction(prepared.experiment.optimizer).update(gradient, state.moments, weights)
    after, values = prepared.programs.train(state, batch, jnp.zeros((), jnp.float32))
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(after.moments), jax.tree.leaves(moments), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(np.abs(other).max()))


def test_a_run_trains_on_sequences_and_counts_samples(prepared, batch, tmp_path):
    data = dataclasses.replace(prepared.experiment.data, packed=True)
    sizes = dataclasses.replace(prepared.experiment.train, batch=2)
    run = prepared.with_experiment(dataclasses.replace(prepared.experiment, data=data, train=sizes), tmp_path)
    with Metrics(tmp_path / "metrics.jsonl", step=0) as metrics:
        training = Training(run, run.restore()[0], 0.0, metrics)
        assert isinstance(training.source, PackedSource) and isinstance(training.heldout, CachedSource)
        training.advance(batch)
        assert training.write_down()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert np.isfinite(line["loss"]) and line["mfu"] > 0
    assert line["samples_per_second"] == pytest.approx(6 * line["steps_per_second"], rel=1e-4)  # both are rounded


def test_what_cannot_be_packed(experiment):
    with pytest.raises(ValueError, match=r"data\.packed is True, but data\.source is world"):
        dataclasses.replace(experiment.data, packed=True, source="world")
    data = dataclasses.replace(experiment.data, packed=True)
    with pytest.raises(ValueError, match=r"data\.packed is True, but what image_encoder makes"):
        dataclasses.replace(experiment, data=data, image_encoder="clip")
