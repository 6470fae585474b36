"""Loaders: ragged references, buckets, worker processes, resuming, and the stored data set."""

import contextlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from kaleido_jax.data.loader import Bucket, WorldSource, batches, iterate, world_batches
from kaleido_jax.data.records import to_batch, to_record
from kaleido_jax.data.world import World

SMALL = Bucket(height=48, width=48, frames=3)
WIDE = Bucket(height=32, width=48, frames=1, share=0.5)


def take(dataset, count: int, **options) -> list[dict[str, np.ndarray]]:
    with contextlib.closing(iterate(dataset, **options)) as iterator:
        return list(itertools.islice(iterator, count))


def equal(first, second) -> bool:
    return all(np.array_equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a | b)


def test_a_batch_is_ragged_and_padded():
    world = World(48, 3)
    samples = [world.sample(seed) for seed in range(40)]
    batch = to_batch([to_record(sample) for sample in samples])
    assert batch["video"].shape == (40, 3, 48, 48, 3) and batch["references"].shape == (40, 3, 48, 48, 3)
    assert set(batch["reference_count"].tolist()) == {1, 2, 3}
    for i, sample in enumerate(samples):
        count = len(sample.references)
        assert batch["reference_count"][i] == count
        assert batch["reference_subjects"][i].tolist() == [s for _, s in sample.references] + [-1] * (3 - count)
        assert (batch["references"][i, count:] == 255).all()
        for k, (picture, subject) in enumerate(sample.references):
            assert np.array_equal(batch["references"][i, k], picture)
            earlier = [s for _, s in sample.references[:k]].count(subject)
            assert batch["reference_pictures"][i, k] == earlier
        assert batch["prompt"][i] == sample.prompt
        assert (batch["motions"][i] >= 0).sum() == (batch["identities"][i] >= 0).sum() == len(sample.truth["motions"])


def test_samples_of_two_buckets_do_not_mix():
    records = [to_record(World((bucket.height, bucket.width), bucket.frames).sample(0)) for bucket in (SMALL, WIDE)]
    with pytest.raises(ValueError, match="one bucket"):
        to_batch(records)


def test_buckets_take_turns_by_their_shares():
    shapes = [batch["video"].shape for batch in take(world_batches(2, (SMALL, WIDE)), 9)]
    assert shapes.count((2, 3, 48, 48, 3)) == 6 and shapes.count((2, 1, 32, 48, 3)) == 3


def test_batches_depend_on_the_seed_alone_not_on_the_workers():
    dataset = world_batches(2, (SMALL, WIDE), seed=3)
    alone = take(dataset, 4)
    assert equal(alone, take(dataset, 4, workers=2))
    assert not equal(alone[:1], take(world_batches(2, (SMALL, WIDE), seed=4), 1))


def test_a_run_goes_on_where_it_stopped():
    dataset = world_batches(2, (SMALL,))
    with contextlib.closing(iterate(dataset)) as first:
        for _ in range(3):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        expected = [next(first) for _ in range(2)]
    with contextlib.closing(iterate(dataset)) as second:
        second.set_state(state)
        assert equal(expected, [next(second) for _ in range(2)])


def test_an_epoch_shuffles_and_drops_what_is_left_over():
    source = WorldSource(World(48, 1), length=7)
    plain = take(batches(source, 3, repeat=False), 10)
    assert len(plain) == 2 and len(source) == 7
    first, second = (take(batches(source, 7, seed=seed), 2) for seed in (0, 1))
    assert not equal(first[:1], second[:1]) and not equal(first[:1], first[1:])
    ids = [sorted(batch["identities"][:, 0].tolist()) for batch in (*first, *second)]
    assert all(one == ids[0] for one in ids)


def test_a_stored_data_set_is_read_without_tensorflow(tmp_path):
    """Written, read by grain in a fresh interpreter, and equal to what the world draws."""
    script = f"""
import contextlib, sys
import numpy as np
from kaleido_jax.data.loader import batches, iterate, stored_source
from kaleido_jax.data.records import to_batch, to_record
from kaleido_jax.data.subject_world.subject_world_dataset_builder import SubjectWorldConfig, build
from kaleido_jax.data.world import World

config = SubjectWorldConfig(name="tiny", height=32, width=48, frames=3, samples=(6, 2))
folder = build({str(tmp_path)!r}, config)
assert build({str(tmp_path)!r}, config) == folder
world = World((32, 48), 3)
for split, number in (("train", 6), ("heldout", 2)):
    source = stored_source(folder, split)
    assert len(source) == number
    with contextlib.closing(iterate(batches(source, number, repeat=False))) as iterator:
        stored = next(iterator)
    drawn = to_batch([to_record(world.sample(seed, split)) for seed in range(number)])
    # tfds stores a split in an order of its own.
    order, mine = (np.argsort([batch["video"][i].tobytes() for i in range(number)]) for batch in (stored, drawn))
    for key, value in drawn.items():
        assert np.array_equal(stored[key][order], value[mine]), key
        assert stored[key].dtype == value.dtype or key == "prompt", key
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.suffix for path in tmp_path.rglob("*array_record*"))
