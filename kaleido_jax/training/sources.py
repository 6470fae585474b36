"""Where batches come from: cached latents, an encoded data set, or the procedural world rendered on the fly.

A source is a pure function of the step, so a resumed run sees what an undisturbed one would have seen, whatever the
number of loader workers. All samples of a batch fill one bucket: the video's shape and the number of reference slots.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import grain
import numpy as np
from absl import flags

from kaleido_jax.data.encoded import EncodedData
from kaleido_jax.data.latents import LatentCache, Sample, subject_share
from kaleido_jax.errors import InputError, PeerLost, printable
from kaleido_jax.models.text import Tokenizer
from kaleido_jax.packing import rows
from kaleido_jax.training.experiment import DataConfig
from kaleido_jax.training.groups import GroupSource, SceneSource
from kaleido_jax.training.pairs import PairSource
from kaleido_jax.training.state import Batch, Packed

# Seconds without a batch that end a run: from the second batch on, and before the first, whose readers start up.
PATIENCE, STARTING = 30.0, 120.0


@dataclass(frozen=True)
class CachedSource:
    """Batches of latents that are on disk, in an order shuffled anew each epoch.

    An epoch draws as many samples as there are. Where they have weights, each comes as often as its weight over their
    mean, rounded up or down: which, the epoch decides, so that over many it comes out right (systematic sampling).

    A batch holds videos of one shape. With `reference_buckets` it holds samples of one reference count too, so there is
    one program for each; otherwise counts are mixed in one program. What does not fill a batch is left for another
    epoch's shuffle. Where data is packed, batches of short samples are laid side by side.
    """

    cache: LatentCache | EncodedData
    tokenizer: Tokenizer | None  # None: the cache holds a text encoder's output
    config: DataConfig
    size: int  # samples of a batch
    seed: int
    pixels: bool = False
    _plans: dict[int, list[list[np.ndarray]]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.batches_per_epoch:
            raise InputError(
                f"{len(self.cache)} samples on disk do not fill a batch of {self.size} with one shape and one "
                "reference count"
            )

    @property
    def batches_per_epoch(self) -> int:
        return sum(times for _, times in self._rows)

    @cached_property
    def _rows(self) -> list[tuple[tuple[int, ...], int]]:
        """The buckets of batches that lie side by side, and how many times an epoch they do."""
        buckets = self._buckets()
        batches = {kind: count // self.size for kind, count in self._drawn().items()}
        if not self.config.packed:
            return [((kind,), count) for kind, count in batches.items()]
        tokens, slots = {}, self._slots()
        for kind in batches:  # counted before patches are cut
            first = int(np.argmax(buckets == kind))
            sample = self.cache[first]
            tokens[kind] = math.prod(sample.video.shape[:3]) + int(slots[first]) * math.prod(sample.video.shape[1:3])
        return rows(batches, tokens)

    def _slots(self) -> np.ndarray:
        """The number of reference slots that each sample is given."""
        counts = np.minimum(self.cache.reference_counts, self.config.references)
        return counts if self.config.reference_buckets else np.full_like(counts, self.config.references)

    def _buckets(self) -> np.ndarray:
        """A number for every sample, equal for those that may share a batch."""
        return self.cache.buckets * (self.config.references + 1) + self._slots()

    def _drawn(self) -> dict[int, int]:
        """How many samples of each bucket an epoch draws."""
        totals = np.bincount(self._buckets(), self.cache.weights / self.cache.weights.mean())
        return {bucket: round(total) for bucket, total in enumerate(totals.tolist()) if total}

    def batch(self, step: int) -> Batch:
        (only,) = self.parts(step)
        return only

    def parts(self, step: int) -> list[Batch]:
        """The batches that lie side by side; one, unless data is packed."""
        epoch, place = divmod(step, self.batches_per_epoch)
        random = np.random.default_rng([self.seed, 1, step])
        return [self._assemble(chosen, random) for chosen in self._plan(epoch)[place]]

    def names(self, step: int) -> list[str]:
        """Of the samples of a batch, as the data set calls them."""
        epoch, place = divmod(step, self.batches_per_epoch)
        return [self.cache.name(int(index)) for index in np.concatenate(self._plan(epoch)[place])]

    def _plan(self, epoch: int) -> list[list[np.ndarray]]:
        """The samples of every batch of an epoch; of a packed one, those of each part."""
        if epoch not in self._plans:
            buckets = self._buckets()
            random = np.random.default_rng([self.seed, 0, epoch])
            order = random.permutation(len(buckets))
            left = {}
            for bucket in np.unique(buckets):
                members = order[buckets[order] == bucket]
                if np.ptp(self.cache.weights) > 0:
                    weights, count = self.cache.weights[members], self._drawn()[int(bucket)]
                    members = members[_systematic(weights, count, random)]
                starts = range(0, len(members) - self.size + 1, self.size)
                left[int(bucket)] = iter([members[i : i + self.size] for i in starts])
            batches = [[next(left[kind]) for kind in row] for row, times in self._rows for _ in range(times)]
            plan = [batches[i] for i in random.permutation(len(batches))]
            for old in [other for other in list(self._plans) if abs(other - epoch) > 1]:
                self._plans.pop(old, None)  # batches are drawn in several threads, also across the end of an epoch
            self._plans[epoch] = plan
            return plan
        return self._plans[epoch]

    def _assemble(self, chosen: np.ndarray, random: np.random.Generator) -> Batch:
        samples = [self.cache[int(index)] for index in chosen]
        picks = [choose_references(s.subjects, self.config, random) for s in samples]
        slots = int(self._slots()[chosen].max())
        return assemble(
            [s.video for s in samples],
            [s.references[list(pick)] for s, pick in zip(samples, picks)],
            [[s.subjects[i] for i in pick] for s, pick in zip(samples, picks)],
            [s.subject_share for s in samples],
            self._texts(samples, random),
            slots,
        )

    def _texts(self, samples: Sequence[Sample], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if self.tokenizer is not None:
            return prompts(self.tokenizer, [s.prompt for s in samples], self.config, random)
        assert isinstance(self.cache, EncodedData)
        dropped = random.random(len(samples)) < self.config.text_dropout
        texts = [self.cache.empty_text if drop else s.text for s, drop in zip(samples, dropped)]
        return padded(texts, self.config.text_tokens)


@dataclass(frozen=True)
class PackedSource:
    """Sequences of several samples: the batches of a source whose data is packed, side by side."""

    source: CachedSource
    pixels: bool = False

    @property
    def batches_per_epoch(self) -> int:
        return self.source.batches_per_epoch

    def batch(self, step: int) -> Packed:
        on = lambda i, part: replace(part, indices=part.indices + np.int32(i * self.source.size))
        return Packed(parts=tuple(on(i, part) for i, part in enumerate(self.source.parts(step))))

    def names(self, step: int) -> list[str]:
        """Of the samples of all parts."""
        return self.source.names(step)


def _systematic(weights: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` places in a new order, each as often as its share of the weights, rounded up or down."""
    edges = np.cumsum(weights)
    points = (np.arange(count) + random.random()) * (edges[-1] / max(count, 1))
    return random.permutation(np.minimum(np.searchsorted(edges, points, side="right"), len(weights) - 1))


@dataclass(frozen=True)
class WorldSource:
    """Batches of the procedural world as pixels; no sample is ever seen twice."""

    render: Callable[[int], Any]
    tokenizer: Tokenizer
    config: DataConfig
    size: int
    seed: int
    grid: tuple[int, int, int]  # latent frames, height and width
    pixels: bool = True

    def batch(self, step: int) -> Batch:
        random = np.random.default_rng([self.seed, 1, step])
        samples = [self.render(step * self.size + i) for i in range(self.size)]
        picks = [choose_references([subject for _, subject in s.references], self.config, random) for s in samples]
        return assemble(
            [s.video for s in samples],
            [np.stack([s.references[i][0] for i in pick]) for s, pick in zip(samples, picks)],
            [[s.references[i][1] for i in pick] for s, pick in zip(samples, picks)],
            [subject_share(s.masks, self.grid) for s in samples],
            prompts(self.tokenizer, [s.prompt for s in samples], self.config, random),
            self.config.references,
        )

    def names(self, step: int) -> list[str]:
        """Of the samples of a batch: the world's seeds."""
        return [str(step * self.size + i) for i in range(self.size)]


# Has a batch for every step, of latents, or of uint8 pixels where `pixels` is true; and the names of its samples.
Source: TypeAlias = CachedSource | PackedSource | WorldSource | GroupSource | SceneSource | PairSource


def choose_references(subjects: Sequence[int], config: DataConfig, random: np.random.Generator) -> list[int]:
    """Which of a sample's references are shown, in their order: mostly all, else one picture or more of each subject.

    The order stays and no subject is left out, because prompts speak of subjects in the order of their references.
    """
    order = [int(i) for i in random.permutation(len(subjects))]
    needed = [next(i for i in order if subjects[i] == subject) for subject in dict.fromkeys(subjects)]
    spare = [i for i in order if i not in needed]
    if random.random() < config.reference_subsets:
        spare = spare[: int(random.integers(0, len(spare) + 1))]
    return sorted([*needed, *spare][: config.references])


def prompts(
    tokenizer: Tokenizer, texts: list[str], config: DataConfig, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [b, m] and lengths [b]; some prompts are replaced by the empty one, for guidance."""
    dropped = random.random(len(texts)) < config.text_dropout
    return tokenizer.encode(["" if drop else text for text, drop in zip(texts, dropped)], config.text_tokens)


def padded(texts: Sequence[np.ndarray], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """What an encoder made of several prompts, each [m, d], as [b, tokens, d] with zeros behind; and the lengths [b].

    A text of more tokens loses its end.
    """
    lengths = np.asarray([min(len(text), tokens) for text in texts], np.int32)
    stacked = np.zeros((len(texts), tokens, texts[0].shape[1]), texts[0].dtype)
    for row, (text, length) in enumerate(zip(texts, lengths)):
        stacked[row, :length] = text[:length]
    return stacked, lengths


def assemble(
    videos: list[np.ndarray],
    references: list[np.ndarray],
    subjects: list[list[int]],
    shares: list[np.ndarray],
    text: tuple[np.ndarray, np.ndarray],
    slots: int,
) -> Batch:
    """Stack samples with up to `slots` references; what is absent is zero. Subjects are numbered from 0 as shown."""
    count = len(videos)
    stacked = np.zeros((count, slots, *references[0].shape[1:]), references[0].dtype)
    shown = np.zeros((count, slots), np.int32)
    for row, (pictures, numbers) in enumerate(zip(references, subjects)):
        stacked[row, : len(pictures)] = pictures
        order = list(dict.fromkeys(numbers))
        shown[row, : len(numbers)] = [order.index(number) for number in numbers]
    return Batch(
        video=np.stack(videos),
        references=stacked,
        reference_counts=np.asarray([len(pictures) for pictures in references], np.int32),
        subjects=shown,
        subject_share=np.stack(shares).astype(np.float32),
        text=text[0],
        text_lengths=text[1],
        indices=np.arange(count, dtype=np.int32),
    )


class _InWorker:
    """`source.batch` in a process that ends with the one that asked for it, however that ends."""

    def __init__(self, source: Source, parent: int) -> None:
        self._source, self._parent, self._watched = source, parent, False

    def __call__(self, step: int) -> Batch | Packed:
        if not self._watched and os.getpid() != self._parent:
            self._watched = True
            threading.Thread(target=self._watch, daemon=True).start()
        return self._source.batch(step)

    def _watch(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1.0)
        os._exit(1)


def stream(source: Source, start: int, stop: int, workers: int) -> Iterator[Batch | Packed]:
    """The batches of steps `start` to `stop`, read ahead in threads, or in `workers` processes if that is above 0.

    Raises:
      PeerLost: while batches are taken: a process of the loader died, or there was none for `PATIENCE` seconds.
    """
    dataset = grain.MapDataset.range(start, stop).map(_InWorker(source, os.getpid()))
    if not workers:
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return _answering(iter(dataset.to_iter_dataset(options)), "threads")
    if not flags.FLAGS.is_parsed():  # grain's processes read absl flags, which only absl's own main functions parse
        flags.FLAGS.mark_as_parsed()
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=4)
    read = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)).mp_prefetch(options)
    return _answering(iter(read), "processes")


def _answering(batches: grain.DatasetIterator, readers: str) -> Iterator[Batch | Packed]:
    """The batches, as long as what reads them lives and answers."""
    thread, limit = ThreadPoolExecutor(1), STARTING
    try:
        while True:
            coming = thread.submit(next, batches, None)
            try:
                batch = coming.result(limit)
            except TimeoutError:
                raise PeerLost(
                    f"the loader's {readers} have given no batch for {limit:g} s; look at the disk they read from, "
                    "and run the same command to continue"
                ) from None
            except RuntimeError as error:
                if readers == "threads":
                    raise
                reason = printable(str(error).splitlines()[0], 200)
                raise PeerLost(f"a process of the loader died ({reason}); run the same command to continue") from error
            if batch is None:
                return
            limit = PATIENCE
            yield batch
    except GeneratorExit:  # not where a process is dead or hangs: waiting for it is what must not happen
        batches.close()
        raise
    finally:
        thread.shutdown(wait=False)
