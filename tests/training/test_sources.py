"""Batches are pure functions of the step; caches are resumable and know what wrote them."""

import dataclasses
import threading
import types

import jax
import numpy as np
import pytest

from kaleido_jax.data.latents import LatentCache, subject_share, write_cache
from kaleido_jax.errors import InputError, PeerLost, StorageError
from kaleido_jax.training.sources import CachedSource, choose_references, stream


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def fake_sample(seed: int):
    """A sample whose every number is its seed."""
    picture = np.full((4, 4, 3), seed, np.uint8)
    count = 1 + seed % 3
    return types.SimpleNamespace(
        video=np.full((2, 4, 4, 3), seed, np.uint8),
        references=[(picture, 1 + i % 2) for i in range(count)],
        prompt=f"prompt {seed}",
        masks=np.full((2, 4, 4), seed % 2, np.uint8),
    )


def write(folder, samples, *, fingerprint="a", stop=lambda: False, seen=None):
    def render(seed):
        if seen is not None:
            seen.append(seed)
        return fake_sample(seed)

    shrink = lambda clips: clips[..., ::2, ::2, :1].astype(np.float32)
    write_cache(
        folder,
        samples=samples,
        render=render,
        encode_videos=shrink,
        encode_pictures=shrink,
        fingerprint=fingerprint,
        slots=3,
        shard_size=4,
        stop=stop,
    )


def test_a_cache_gives_back_what_was_written_and_goes_on_where_it_stopped(tmp_path):
    answers = iter([False, True])
    write(tmp_path, 12, stop=lambda: next(answers, True))
    with pytest.raises(InputError, match="holds 8 samples, fewer than the 12"):
        LatentCache(tmp_path, 12)
    (tmp_path / "index-00001.json").unlink()  # as if it had been stopped inside the second shard
    seen = []
    write(tmp_path, 12, seen=seen)
    assert seen == list(range(4, 12))
    cache = LatentCache(tmp_path, 10)
    assert len(cache) == 10
    for seed in range(10):
        sample = cache[seed]
        assert sample.prompt == f"prompt {seed}"
        assert sample.subjects == tuple(1 + i % 2 for i in range(1 + seed % 3))
        assert sample.references.shape == (1 + seed % 3, 2, 2, 1)
        assert (sample.video == seed).all() and (sample.references == seed).all()
        assert sample.subject_share.shape == (2, 2, 2) and (sample.subject_share == seed % 2).all()


def test_the_share_of_a_latent_that_shows_a_subject():
    masks = np.zeros((5, 4, 6), np.uint8)
    masks[0, :2, :3] = 2  # the whole of the first latent
    masks[3, 2:, 3:] = 1  # in one of four frames
    masks[4, 3, 5] = 1
    share = subject_share(masks, (2, 2, 2))
    np.testing.assert_allclose(share, [[[1, 0], [0, 0]], [[0, 0], [0, 7 / 24]]])


def test_a_cache_of_another_vae_is_refused(tmp_path):
    write(tmp_path, 4)
    with pytest.raises(StorageError, match="use another folder"):
        write(tmp_path, 8, fingerprint="b")


def test_batches_depend_on_the_step_alone(prepared):
    source, other = prepared.source("train"), prepared.source("train")
    for step in (7, 0, 3):
        equal(source.batch(step), other.batch(step))
    assert not np.array_equal(source.batch(0).video, source.batch(1).video)


def test_an_epoch_holds_every_sample_once(prepared):
    source = prepared.source("train")
    assert isinstance(source, CachedSource)
    assert source.batches_per_epoch == 4
    for epoch in range(2):
        videos = [source.batch(epoch * 4 + i).video for i in range(4)]
        assert len({video.tobytes() for video in np.concatenate(videos)}) == 16
    assert not np.array_equal(source.batch(0).video, source.batch(4).video)


def test_buckets_hold_one_reference_count_each(prepared):
    data = dataclasses.replace(prepared.experiment.data, reference_buckets=True, reference_subsets=0.0)
    source = dataclasses.replace(prepared.source("train"), config=data, size=2)
    for step in range(source.batches_per_epoch):
        batch = source.batch(step)
        assert (np.asarray(batch.reference_counts) == batch.references.shape[1]).all()


def test_the_stream_starts_and_ends_where_it_is_told(prepared):
    source = prepared.source("train")
    streamed = list(stream(source, 3, 9, workers=0))
    assert len(streamed) == 6
    for step, batch in zip(range(3, 9), streamed):
        equal(batch, source.batch(step))


def test_a_process_of_the_loader_gives_the_same_batches(prepared):
    source = prepared.source("train")
    batches = list(stream(source, 3, 6, workers=1))
    assert len(batches) == 3
    for step, batch in zip((3, 4, 5), batches):
        equal(batch, source.batch(step))


def test_a_loader_that_gives_nothing_ends_the_run_by_name(prepared, monkeypatch):
    """The disk answers for two batches and then no more."""
    source, answer = prepared.source("train"), threading.Event()

    def read(self, step, original=CachedSource.batch):
        if step >= 5:
            answer.wait(60)
        return original(self, step)

    monkeypatch.setattr(CachedSource, "batch", read)
    monkeypatch.setattr("kaleido_jax.training.sources.PATIENCE", 0.2)
    batches = stream(source, 3, 9, workers=0)
    for step in (3, 4):
        equal(next(batches), source.batch(step))
    with pytest.raises(PeerLost, match=r"the loader's threads have given no batch for 0\.2 s; look at the disk"):
        next(batches)
    answer.set()


def test_every_subject_keeps_a_reference_and_the_order_stays(prepared):
    config = dataclasses.replace(prepared.experiment.data, reference_subsets=0.7, references=3)
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        pick = choose_references([1, 2, 2], config, random)
        assert pick == sorted(pick)
        assert 0 in pick and (1 in pick or 2 in pick)
        seen.add(tuple(pick))
    assert seen == {(0, 1), (0, 2), (0, 1, 2)}


def test_prompts_are_dropped_and_references_are_not(prepared):
    data = dataclasses.replace(prepared.experiment.data, text_dropout=1.0)
    batch = dataclasses.replace(prepared.source("train"), config=data).batch(0)
    assert (np.asarray(batch.text_lengths) == 1).all()  # the end token alone
    assert (np.asarray(batch.reference_counts) >= 1).all()


def test_the_world_on_the_fly_never_repeats_and_fits_the_same_programs(prepared):
    data = dataclasses.replace(prepared.experiment.data, source="world")
    run = prepared.with_experiment(dataclasses.replace(prepared.experiment, data=data))
    source = run.source("train")
    batch, cached = run.latents(source.batch(0)), prepared.source("train").batch(0)
    assert [x.shape for x in jax.tree.leaves(batch)] == [x.shape for x in jax.tree.leaves(cached)]
    # The same samples as the cache's first ones: float16 is what the cache rounds to.
    cache = prepared.source("train").cache
    np.testing.assert_allclose(batch.video[2], cache[2].video.astype(np.float32), rtol=1e-3, atol=1e-3)
