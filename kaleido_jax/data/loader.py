"""Batches by grain: drawn on the fly from the world, or read from an ArrayRecord data set. TensorFlow is never
imported.

What a batch holds depends on the seed and the batch's index alone: not on the number of worker processes, nor on
whether the iterator was saved and restored in between (`get_state`, `set_state` of grain's iterators).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import grain
import numpy as np
from absl import flags

from kaleido_jax.data.records import Batch, Record, to_batch, to_record
from kaleido_jax.data.world import World

_LARGEST_EPOCH = 2**40


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The shape of a batch's videos, and the bucket's share of all batches."""

    height: int = 96
    width: int = 96
    frames: int = 17
    share: float = 1.0


class WorldSource:
    """Records `0, 1, 2, ...` of the world, drawn when asked for (grain's random-access source).

    Args:
        length: how many there are; by default more than any run asks for.
        first: the world's seed of record 0; record i has seed `first + i`.
    """

    def __init__(self, world: World, split: str = "train", *, length: int = _LARGEST_EPOCH, first: int = 0):
        self._world, self._split, self._length, self._first = world, split, length, first

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> Record:
        return to_record(self._world.sample(self._first + int(index), self._split))


def stored_source(directory: str | Path, split: str = "train") -> Any:
    """The random-access source of a data set that the builder in `subject_world` wrote into `directory`."""
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(directory).as_data_source(split=split)


def batches(source: Any, batch_size: int, *, seed: int | None = None, repeat: bool = True) -> grain.MapDataset[Batch]:
    """Batches over a random-access source of records; the last, incomplete batch of an epoch is left out.

    Args:
        seed: shuffles with this seed, anew in every epoch; None keeps the source's order.
    """
    records = grain.MapDataset.source(source)
    if seed is not None:
        records = records.seed(seed).shuffle()
    if repeat:
        records = records.repeat()
    return records.batch(batch_size, drop_remainder=True, batch_fn=to_batch)


def world_batches(
    batch_size: int,
    buckets: Sequence[Bucket] = (Bucket(),),
    *,
    split: str = "train",
    seed: int = 0,
    photographs: bool = True,
) -> grain.MapDataset[Batch]:
    """Endless batches drawn on the fly; each is of one bucket, and the buckets take turns by their shares.

    Args:
        seed: runs with other seeds see other samples.
    """
    streams = []
    for number, bucket in enumerate(buckets):
        world = World((bucket.height, bucket.width), bucket.frames, photographs=photographs)
        # Every seed and bucket draws from a stretch of the world's seeds of its own.
        first = (seed * 64 + number) * _LARGEST_EPOCH
        streams.append(batches(WorldSource(world, split, first=first), batch_size, repeat=False))
    if len(streams) == 1:
        return streams[0]
    shares = np.array([bucket.share for bucket in buckets], np.float64)
    return grain.MapDataset.mix(streams, weights=(shares / shares.sum()).tolist())


def iterate(dataset: grain.MapDataset[Batch], *, workers: int = 0, ahead: int = 2) -> grain.DatasetIterator[Batch]:
    """An iterator over `dataset` whose state can be saved; close it (`contextlib.closing`) where it has workers.

    Args:
        workers: processes that draw or read batches; 0 does it in this one, in a thread per batch ahead.
        ahead: batches prepared before they are asked for (by each worker).
    """
    if not workers:
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)))
    if not flags.FLAGS.is_parsed():  # grain's processes read absl flags, which only absl's own main functions parse
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    drawn = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).mp_prefetch(options)
    return iter(drawn.map(_owned))


def _owned(batch: Batch) -> Batch:
    """The batch outside of the shared memory it came in, which would otherwise live as long as any of its arrays."""
    return {key: np.array(value) for key, value in batch.items()}
