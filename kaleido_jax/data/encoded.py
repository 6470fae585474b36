"""Encoded data sets: samples that went through VAE and text encoder once, as ArrayRecord shards with an index.

    FOLDER/dataset.json                 what the samples were made of and with, and how many shards there are
    FOLDER/empty.safetensors            the empty prompt, for guidance
    FOLDER/00003-1f2e3d4c5b6a7988.arrayrecord   shard 3, named by the SHA-256 of its content
    FOLDER/00003.json                   its index, written last: a shard without it does not exist

A record is a safetensors file in memory: video float16 [f, h, w, z], references float16 [r, h, w, z], subjects int32
[r], text bfloat16 [m, d] as its bits (only real tokens), the prompt's UTF-8 bytes, and, of samples with masks,
subject_share float16 [f, h, w]. The same samples give the same bytes, so writing is resumable at every shard.
"""

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from kaleido_jax.data.latents import Sample, subject_share
from kaleido_jax.errors import InputError, StorageError, printable
from kaleido_jax.media.storage import storage_error, written_whole

DATASET = "dataset.json"
EMPTY = "empty.safetensors"
FORMAT = 1
# One record a group, so that a single one is read at random; latents are noise to a compressor.
_OPTIONS = "group_size:1,uncompressed"


class EncodedData:
    """Reads one split. A record that cannot be read is replaced by the next one of its shape, with a warning.

    Args:
      folder: of one split, which must be complete.
      most_bad: the share of records that may be unreadable before reading stops.

    Raises:
      InputError: the folder is no encoded data set, is not complete, or a shard is not the one that its index names.
    """

    def __init__(self, folder: str | Path, *, most_bad: float = 0.001) -> None:
        self.folder = Path(folder)
        self.description = _read_json(self.folder / DATASET)
        if self.description.get("format") != FORMAT:
            raise InputError(f"{self.folder / DATASET} is not of format {FORMAT}, the one this version reads")
        count = self.description["shards"]
        missing = [number for number in range(count) if not (self.folder / f"{number:05d}.json").is_file()]
        if missing:
            raise InputError(
                f"{self.folder} lacks {len(missing)} of {count} shards, such as {missing[0]:05d}; run "
                "`kaleido data encode` again to finish it"
            )
        indexes = [_read_json(self.folder / f"{number:05d}.json") for number in range(count)]
        for index in indexes:
            path = self.folder / index["file"]
            if not path.is_file() or path.stat().st_size != index["bytes"]:
                size = f"has {path.stat().st_size} bytes, not {index['bytes']}" if path.is_file() else "is missing"
                raise InputError(f"{path} {size}; delete {self.folder / path.name[:5]}.json and encode it again")
        column = lambda name: [value for index in indexes for value in index[name]]
        self.identities: list[str] = column("identities")
        self.buckets = np.asarray(column("buckets"), np.int32)  # [samples], into description["buckets"]
        self.reference_counts = np.asarray(column("references"), np.int32)  # [samples]
        alike = "weights_sha256" not in self.description
        self.weights = np.ones(len(self.identities)) if alike else np.asarray(column("weights"), np.float64)
        if not self.identities:
            raise InputError(f"{self.folder} holds no samples")
        self._paths = [str(self.folder / index["file"]) for index in indexes if index["identities"]]
        self._bad: set[int] = set()
        self._most_bad = max(1, int(most_bad * len(self)))

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, index: int) -> Sample:
        for candidate in self._instead_of(index):
            try:
                return _sample(self._records[candidate])
            except Exception as error:  # the reader raises what it likes
                self._give_up_on(candidate, error)
        raise InputError(f"{self.folder}: no record of the shape of {printable(self.identities[index])} can be read")

    def name(self, index: int) -> str:
        """What the sample was called where it was encoded from."""
        return self.identities[index]

    def _instead_of(self, index: int) -> Iterator[int]:
        """The record, then those of its shape that come after it, in a circle: the same on every process."""
        yield index
        alike = np.flatnonzero(
            (self.buckets == self.buckets[index]) & (self.reference_counts == self.reference_counts[index])
        )
        yield from np.roll(alike, -int(np.searchsorted(alike, index)))[1:].tolist()

    def _give_up_on(self, index: int, error: Exception) -> None:
        if index not in self._bad:
            self._bad.add(index)
            name = printable(self.identities[index])
            warnings.warn(
                f"{self.folder}: record {index} ({name}) cannot be read and is replaced by another: {error}",
                stacklevel=2,
            )
        if len(self._bad) > self._most_bad:
            raise InputError(f"{self.folder}: {len(self._bad)} of {len(self)} records cannot be read; encode it again")

    @functools.cached_property
    def _records(self) -> Any:
        return grain.sources.ArrayRecordDataSource(self._paths)

    def __getstate__(self) -> dict[str, Any]:  # worker processes open the files themselves
        return {name: value for name, value in vars(self).items() if name != "_records"}

    @functools.cached_property
    def empty_text(self) -> np.ndarray:
        """The text encoder's output for the empty prompt, bfloat16 [m, d]."""
        return safetensors.numpy.load_file(str(self.folder / EMPTY))["text"].view(jnp.bfloat16)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path.parent} is no encoded data set: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _sample(record: bytes) -> Sample:
    arrays = safetensors.numpy.load(record)
    video = arrays["video"]
    return Sample(
        video=video,
        references=arrays["references"],
        subject_share=arrays.get("subject_share", np.zeros(video.shape[:3], np.float16)),
        subjects=tuple(arrays["subjects"].tolist()),
        prompt=arrays["prompt"].tobytes().decode(),
        text=arrays["text"].view(jnp.bfloat16),
    )


def write_encoded(
    folder: str | Path,
    *,
    identities: Sequence[str],
    read: Callable[[str], Any],
    encode_videos: Callable[[np.ndarray], np.ndarray],
    encode_texts: Callable[[Sequence[str]], Sequence[np.ndarray]],
    buckets: Sequence[str],
    provenance: Mapping[str, Any],
    weights: Sequence[float] | None = None,
    shard_size: int = 256,
    batch: int = 8,
    workers: int = 2,
    part: tuple[int, int] = (0, 1),
    most_rejected: float = 0.05,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Encode one split; what is there already is kept. Returns the samples that were rejected, with the reasons.

    Args:
      folder: of the split; made if it is missing.
      identities: the names of all samples, in their order.
      read: name -> a sample as pixels: video uint8 [f, h, w, 3], references [(uint8 [h, w, 3], subject)], prompt, and
        masks uint8 [f, h, w] or None. InputError rejects the sample.
      encode_videos: uint8 [n, f, h, w, 3] -> latents [n, f', h', w', z]; references are given as clips of one frame.
      encode_texts: prompts -> of each its real tokens [m, d].
      buckets: the shapes that videos may have, as "HEIGHTxWIDTHxFRAMES".
      provenance: what the samples are made of and with; a folder that was written with another one is refused.
      weights: how often training draws each sample, relative to each other; None: all alike.
      shard_size, batch: samples of a shard, and of them encoded together. workers: samples read at a time.
      part: (i, n) writes every n-th shard from the i-th, for n jobs on one folder.
      most_rejected: the share of a shard's samples that may be rejected.
      progress: called with (shards done, shards of this part) after each. stop: asked between batches; True ends early,
        with every shard written so far whole.

    Raises:
      InputError: too many samples are rejected. StorageError: the folder holds other samples, or cannot be written.
    """
    folder = Path(folder)
    listed = hashlib.sha256("\n".join(identities).encode()).hexdigest()
    shards = -(-len(identities) // shard_size)
    description = {
        "format": FORMAT,
        "samples": len(identities),
        "identities_sha256": listed,
        "shards": shards,
        "shard_size": shard_size,
        "buckets": list(buckets),
        "provenance": dict(provenance),
    }
    if weights is not None:
        description["weights_sha256"] = hashlib.sha256(np.asarray(weights, np.float64).tobytes()).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    path = folder / DATASET
    if path.is_file() and (found := _read_json(path)) != description:
        wrong = [name for name in description if found.get(name) != description[name]]
        raise StorageError(f"{folder} was written with another {' and '.join(wrong)}; use another folder")
    if not path.is_file():
        text = np.asarray(encode_texts([""])[0], jnp.bfloat16)
        with written_whole(folder / EMPTY) as temporary:
            safetensors.numpy.save_file({"text": text.view(np.uint16)}, str(temporary))
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(description, indent=1))

    weight_of = dict(zip(identities, weights)) if weights is not None else None
    index_of = lambda number: folder / f"{number:05d}.json"
    mine = range(part[0], shards, part[1])
    waiting = [number for number in mine if not index_of(number).is_file()]
    rejected: dict[str, str] = {}
    for number in mine:
        if number not in waiting:
            rejected |= _read_json(index_of(number))["rejected"]
    for place, number in enumerate(waiting):
        names = identities[number * shard_size : (number + 1) * shard_size]
        encode = functools.partial(_encode, encode_videos=encode_videos, encode_texts=encode_texts, buckets=buckets)
        index = _write_shard(folder, number, names, read, encode, batch, workers, stop)
        if index is None:
            break
        if len(index["rejected"]) > most_rejected * len(names):
            name, reason = next(iter(index["rejected"].items()))
            raise InputError(
                f"{len(index['rejected'])} of the {len(names)} samples of shard {number} cannot be used, more than "
                f"{most_rejected:.1%}; the first is {printable(name)}: {reason}"
            )
        rejected |= index["rejected"]
        if weight_of is not None:
            index["weights"] = [float(weight_of[name]) for name in index["identities"]]
        with written_whole(index_of(number)) as temporary:
            temporary.write_text(json.dumps(index))
        progress(len(mine) - len(waiting) + place + 1, len(mine))
    return rejected


def _write_shard(
    folder: Path,
    number: int,
    names: Sequence[str],
    read: Callable[[str], Any],
    encode: Callable[[list[Any]], list[tuple[int, bytes]]],
    batch: int,
    workers: int,
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Write the records of a shard and return its index; None if it was stopped."""
    from array_record.python.array_record_module import ArrayRecordWriter

    rejected: dict[str, str] = {}
    columns: dict[str, list] = {"identities": [], "buckets": [], "references": []}
    partial = folder / f".{number:05d}-{os.getpid()}.partial"
    try:
        writer = ArrayRecordWriter(str(partial), _OPTIONS)
        try:
            for group in _read_ahead(names, read, batch, workers):
                if stop():
                    return None
                rejected |= {name: str(found) for name, found in group if isinstance(found, InputError)}
                kept = [(name, found) for name, found in group if not isinstance(found, InputError)]
                for (name, sample), (bucket, record) in zip(kept, encode([sample for _, sample in kept])):
                    writer.write(record)
                    columns["identities"].append(name)
                    columns["buckets"].append(bucket)
                    columns["references"].append(len(sample.references))
        finally:
            writer.close()
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        final = folder / f"{number:05d}-{digest[:16]}.arrayrecord"
        partial.replace(final)
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError):
            raise storage_error(folder, error) from error
        raise StorageError(f"Cannot write shard {number} in {printable(str(folder))}: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return {"file": final.name, "bytes": final.stat().st_size, "sha256": digest} | columns | {"rejected": rejected}


def _read_ahead(
    names: Sequence[str], read: Callable[[str], Any], batch: int, workers: int
) -> Iterator[list[tuple[str, Any]]]:
    """Groups of (name, sample, or the InputError that rejects it); one group is read while another is encoded."""

    def attempt(name: str) -> Any:
        try:
            return read(name)
        except InputError as error:
            return error

    groups = [names[start : start + batch] for start in range(0, len(names), batch)]
    with ThreadPoolExecutor(max(workers, 1)) as threads:
        submit = lambda group: [threads.submit(attempt, name) for name in group]
        coming = submit(groups[0]) if groups else []
        for group, following in zip(groups, [*groups[1:], ()]):
            found = [future.result() for future in coming]
            coming = submit(following)
            yield list(zip(group, found))


def _encode(
    samples: list[Any],
    *,
    encode_videos: Callable[[np.ndarray], np.ndarray],
    encode_texts: Callable[[Sequence[str]], Sequence[np.ndarray]],
    buckets: Sequence[str],
) -> list[tuple[int, bytes]]:
    """(bucket, record) of every sample; those of one shape are encoded together."""
    if not samples:
        return []
    videos = _encode_alike([sample.video for sample in samples], encode_videos)
    pictures = [picture[None] for sample in samples for picture, _ in sample.references]
    references = iter(_encode_alike(pictures, encode_videos))
    texts = encode_texts([sample.prompt for sample in samples])
    records = []
    for sample, video, text in zip(samples, videos, texts):
        frames, height, width, _ = sample.video.shape
        arrays = {
            "video": video,
            "references": np.concatenate([next(references) for _ in sample.references]),
            "subjects": np.asarray([subject for _, subject in sample.references], np.int32),
            "text": np.asarray(text, jnp.bfloat16).view(np.uint16),
            "prompt": np.frombuffer(sample.prompt.encode(), np.uint8),
        }
        if sample.masks is not None:
            arrays["subject_share"] = subject_share(sample.masks, video.shape[:3]).astype(np.float16)
        record = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
        records.append((list(buckets).index(f"{height}x{width}x{frames}"), record))
    return records


def _encode_alike(clips: list[np.ndarray], encode: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """float16 latents of every clip; those of one shape are encoded together."""
    encoded: dict[int, np.ndarray] = {}
    for shape in dict.fromkeys(clip.shape for clip in clips):
        places = [place for place, clip in enumerate(clips) if clip.shape == shape]
        latents = np.asarray(encode(np.stack([clips[place] for place in places])), np.float16)
        encoded |= dict(zip(places, latents))
    return [encoded[place] for place in range(len(clips))]
