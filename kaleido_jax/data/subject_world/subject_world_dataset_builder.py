"""Writes samples of the procedural world as ArrayRecord files, so that training reads instead of draws.

    from kaleido_jax.data.subject_world.subject_world_dataset_builder import build
    build("data", config="96x96x17")

Features are Text, Scalar and Tensor only: the other kinds import TensorFlow when they are written or read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from kaleido_jax.data.records import to_record
from kaleido_jax.data.world import MAX_REFERENCES, MAX_SUBJECTS, SPLITS, World


@dataclass(kw_only=True, eq=False)
class SubjectWorldConfig(tfds.core.BuilderConfig):
    """A size of the videos and how many samples each split has."""

    height: int = 96
    width: int = 96
    frames: int = 17
    samples: tuple[int, int] = (20_000, 1_000)
    photographs: bool = True


class Builder(tfds.core.GeneratorBasedBuilder):
    """Samples of `World`: sample i of a split is the world's sample of seed i."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        SubjectWorldConfig(name="96x96x17", description="17 frames of 96 x 96 pixels"),
        SubjectWorldConfig(name="64x96x9", description="9 frames of 64 x 96 pixels", height=64, frames=9),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        size = (config.height, config.width)

        def pixels(*shape: int) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB)

        features = {
            "video": pixels(config.frames, *size, 3),
            "masks": pixels(config.frames, *size),
            "references": pixels(MAX_REFERENCES, *size, 3),
            "reference_count": tfds.features.Scalar(np.int32),
            "reference_subjects": tfds.features.Tensor(shape=(MAX_REFERENCES,), dtype=np.int32),
            "reference_pictures": tfds.features.Tensor(shape=(MAX_REFERENCES,), dtype=np.int32),
            "prompt": tfds.features.Text(),
            "motions": tfds.features.Tensor(shape=(MAX_SUBJECTS,), dtype=np.int32),
            "scene": tfds.features.Scalar(np.int32),
            "identities": tfds.features.Tensor(shape=(MAX_SUBJECTS,), dtype=np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedural subject-to-video samples: reference pictures, a caption, a video of the subjects.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {
            split: self._generate_examples(split, number) for split, number in zip(SPLITS, self.builder_config.samples)
        }

    def _generate_examples(self, split: str, number: int) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        world = World((config.height, config.width), config.frames, photographs=config.photographs)
        for seed in range(number):
            yield seed, to_record(world.sample(seed, split))


def build(directory: str | Path, config: str | SubjectWorldConfig = "96x96x17") -> Path:
    """Writes the data set under `directory` (unless it is there); returns the folder for `loader.stored_source`."""
    builder = Builder(data_dir=directory, config=config, file_format=tfds.core.FileFormat.ARRAY_RECORD)
    builder.download_and_prepare()
    return Path(builder.data_dir)
