"""The curated data set: ArrayRecord files that tensorflow-datasets and grain read, and the records of training.

| feature | |
|---|---|
| id, caption, license, dataset, url | text |
| video | bytes: MP4 (H.264) |
| fps | float32 |
| references | [r] bytes: PNG, tight, of any size; padded when they are read |
| reference_subjects | [r] int32: 1, 2, ... in the order of mention, 0 for the scene |
| reference_kinds, reference_donors | [r] text: the kind, and the source of the scene behind a cross pair |
| reference_cross | [r] int32: 1 for cross pairs |
| phrases, categories | [s] text, one a subject |
| boxes | [s, 4] float32: in key frame `frames[s]` |
| frames | [s] int32: the frame of the video that the box and the mask are of |
| masks | [s] bytes: PNG, where that frame shows the subject |
| weight | float32: how often to draw the sample, 1 on average |

Features are text, scalars and tensors only: the other kinds import TensorFlow.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from kaleido_jax.curation import pictures
from kaleido_jax.data.loader import stored_source
from kaleido_jax.data.records import Record
from kaleido_jax.data.world import MAX_REFERENCES, MAX_SUBJECTS
from kaleido_jax.errors import InputError, StorageError
from kaleido_jax.media.references import fit_on_white
from kaleido_jax.media.storage import written_whole

NAME, VERSION = "curated", "1.0.0"
SPLITS = ("pretrain", "sft")


def features() -> Any:
    """The tensorflow-datasets features of a sample."""
    import tensorflow_datasets as tfds

    text, tensor = tfds.features.Text, tfds.features.Tensor
    strings = lambda: tensor(shape=(None,), dtype=np.bytes_)
    return tfds.features.FeaturesDict(
        {
            "id": text(),
            "caption": text(),
            "license": text(),
            "dataset": text(),
            "url": text(),
            "video": tensor(shape=(), dtype=np.bytes_),
            "fps": tfds.features.Scalar(np.float32),
            "references": strings(),
            "reference_subjects": tensor(shape=(None,), dtype=np.int32),
            "reference_kinds": strings(),
            "reference_donors": strings(),
            "reference_cross": tensor(shape=(None,), dtype=np.int32),
            "phrases": strings(),
            "categories": strings(),
            "boxes": tensor(shape=(None, 4), dtype=np.float32),
            "frames": tensor(shape=(None,), dtype=np.int32),
            "masks": strings(),
            "weight": tfds.features.Scalar(np.float32),
        }
    )


def shard_name(split: str, number: int, shards: int) -> str:
    return f"{NAME}-{split}.array_record-{number:05d}-of-{shards:05d}"


class ShardWriter:
    """Writes samples as one ArrayRecord file: equal samples in equal order give equal bytes."""

    def __init__(self) -> None:
        from tensorflow_datasets.core import example_serializer

        self._features = features()
        self._serializer = example_serializer.ExampleSerializer(self._features.get_serialized_info())

    def write(self, path: Path, samples: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
        """(samples, bytes) written, one at a time, uncompressed: the payloads are compressed already."""
        from array_record.python.array_record_module import ArrayRecordWriter

        count = size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            try:
                for sample in samples:
                    example = self._serializer.get_tf_example(self._features.encode_example(sample))
                    content = example.SerializeToString(deterministic=True)
                    writer.write(content)
                    count, size = count + 1, size + len(content)
            finally:
                writer.close()
        return count, size


def describe(folder: Path, splits: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Writes what tensorflow-datasets needs beside the shards: (samples, bytes) of each one of a split."""
    import tensorflow_datasets as tfds

    core = tfds.core
    template = lambda split: core.ShardedFileTemplate(
        data_dir=str(folder), dataset_name=NAME, split=split, filetype_suffix="array_record"
    )
    infos = [
        core.SplitInfo(
            name=split,
            shard_lengths=[count for count, _ in shards],
            num_bytes=sum(size for _, size in shards),
            filename_template=template(split),
        )
        for split, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features(),
        split_infos=infos,
        version=VERSION,
        check_data=False,  # checking imports TensorFlow
        description="Videos with references of their subjects, curated by kaleido_jax.",
    )


class CuratedSource:
    """Records of training (`data.records`) of a curated data set, for `data.loader.batches`: random access.

    Videos and references are fitted on white inside height x width, as Kaleido does; a video's last frame is repeated
    where it is too short. What the procedural world alone knows (motions, scene, identities) is -1. Masks are those of
    each subject's key frame, 0 elsewhere.

    Args:
        folder: with `dataset_info.json`.
        split: one of SPLITS.
        frames, height, width: of a record's video.
    """

    def __init__(self, folder: str | Path, split: str = "pretrain", *, frames: int, height: int, width: int):
        self._folder, self._split = Path(folder), split
        self._source = stored_source(folder, split)
        self._frames, self._height, self._width = frames, height, width

    def __len__(self) -> int:
        return len(self._source)

    def weights(self) -> np.ndarray:
        """How often to draw each sample, float32 [samples]: read from the audit table, so that no video is read."""
        import pyarrow.parquet as pq

        found: list[float] = []
        for path in sorted(self._folder.glob("audit-*.parquet")):  # one a shard, whose samples are in the order of ids
            rows = pq.read_table(path, columns=["clip", "kept", "tier", "weight"]).to_pylist()
            tiers = ("sft",) if self._split == "sft" else SPLITS
            shard = {row["clip"]: row["weight"] for row in rows if row["kept"] and row["tier"] in tiers}
            found += [shard[clip] for clip in sorted(shard)]
        if len(found) != len(self):
            raise StorageError(f"{self._folder}: the audit table has {len(found)} samples and the shards {len(self)}.")
        return np.array(found, np.float32)

    def __getitem__(self, index: SupportsIndex) -> Record:
        stored = self._source[int(index)]
        size = self._height, self._width
        frames = decoded(stored["video"])
        whole = [fit_on_white(frame, *size) for frame in frames[: self._frames]]
        whole += [whole[-1]] * (self._frames - len(whole))
        references = np.full((MAX_REFERENCES, *size, 3), 255, np.uint8)
        subjects = np.full(MAX_REFERENCES, -1, np.int32)
        pictures_of = np.full(MAX_REFERENCES, -1, np.int32)
        given = list(stored["reference_subjects"])[:MAX_REFERENCES]
        for place, subject in enumerate(given):
            references[place] = fit_on_white(pictures.from_png(stored["references"][place]), *size)
            subjects[place], pictures_of[place] = subject, given[:place].count(subject)
        masks = np.zeros((self._frames, *size), np.uint8)
        for number, (frame, content) in enumerate(zip(stored["frames"], stored["masks"])):
            if frame < self._frames and number < MAX_SUBJECTS:
                grey = pictures.from_png(content, "L")
                shown = fit_on_white(np.repeat(np.uint8(255) - grey[..., None], 3, -1), *size)[..., 0] < 128
                masks[frame][shown] = number + 1
        return {
            "video": np.stack(whole),
            "masks": masks,
            "references": references,
            "reference_count": np.array(len(given), np.int32),
            "reference_subjects": subjects,
            "reference_pictures": pictures_of,
            "prompt": stored["caption"].decode(),
            "motions": np.full(MAX_SUBJECTS, -1, np.int32),
            "scene": np.array(-1, np.int32),
            "identities": np.full(MAX_SUBJECTS, -1, np.int64),
        }


class Balanced:
    """A source whose samples come as often as their weights say, for `data.loader.batches`: random access.

    An epoch has every sample v times, rounded up or down, where v is its weight over the smallest one; so each is seen,
    and what is rare more often. Which are rounded up, the order decides (systematic sampling).

    Args:
        source: a random-access source.
        weights: [samples], all above 0; those of a `CuratedSource` by default.
    """

    def __init__(self, source: Any, weights: np.ndarray | None = None):
        values = np.asarray(source.weights() if weights is None else weights, np.float64)
        if values.shape != (len(source),) or not (values > 0).all():
            raise InputError(f"weights has the shape {values.shape}; it must hold {len(source)} numbers above 0.")
        self._source, self._edges = source, np.cumsum(values / values.min())

    def __len__(self) -> int:
        return int(np.ceil(self._edges[-1] - 0.5))

    def __getitem__(self, index: SupportsIndex) -> Any:
        return self._source[int(np.searchsorted(self._edges, int(index) + 0.5, side="right"))]


def decoded(content: bytes) -> list[np.ndarray]:
    """Frames of an MP4 that `store` wrote: a file of our own, so it is decoded in this process."""
    import av

    try:
        with av.open(io.BytesIO(content), mode="r", format="mp4") as container:
            return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise StorageError(f"a stored video cannot be decoded ({error}); curate into a new folder.") from None
