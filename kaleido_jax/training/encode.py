"""Encoding a data set once, before training: clips and references by the VAE, prompts by the text encoder."""

import functools
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax.bundle import merge, parameters
from kaleido_jax.data import folder as folder_data
from kaleido_jax.data.encoded import write_encoded
from kaleido_jax.data.world import Sample, World
from kaleido_jax.errors import UsageError
from kaleido_jax.models.text import Tokenizer, UMT5Encoder
from kaleido_jax.models.vae import WanVAE
from kaleido_jax.parallel import MeshConfig, batch_shardings, place, shardings
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.frozen import digest, find_vae, load_text
from kaleido_jax.training.metrics import duration, report
from kaleido_jax.training.programs import encode_pixels
from kaleido_jax.typing import Array

WORLD = "world"


class Encoders:
    """Frozen networks, compiled for batches of one size; on a mesh the batch is divided and the text encoder too."""

    def __init__(
        self, vae: WanVAE, text: UMT5Encoder, tokenizer: Tokenizer, *, tokens: int, batch: int, mesh: Mesh | None
    ) -> None:
        self._mesh, self._batch, self._tokens, self._tokenizer = mesh, batch, tokens, tokenizer
        graph, self._text = nnx.split(text)[0], parameters(text)
        self._vae = parameters(vae)
        if mesh is not None:
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._vae = {name: jax.device_put(value, everywhere) for name, value in self._vae.items()}
            self._text = place(self._text, shardings(self._text, mesh))
        self._encode_pixels = jax.jit(functools.partial(encode_pixels, graph=nnx.split(vae)[0]))
        self._encode_text = jax.jit(lambda weights, ids, lengths: merge(graph, weights)(ids, lengths))

    def videos(self, clips: np.ndarray) -> np.ndarray:
        """Latents of uint8 clips [n, f, h, w, 3], for any n."""
        return self._in_batches(lambda part: self._encode_pixels(self._vae, part), clips)

    def texts(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Of each prompt the encoder's output for its real tokens, bfloat16 [m, d]."""
        ids, lengths = self._tokenizer.encode(prompts, self._tokens)
        encoded = self._in_batches(
            lambda ids, lengths: self._encode_text(self._text, ids, lengths).astype(jnp.bfloat16), ids, lengths
        )
        return [row[:length] for row, length in zip(encoded, lengths)]

    def _in_batches(self, function: Callable[..., Array], *arrays: np.ndarray) -> np.ndarray:
        """Batches of one size, the last filled up with copies of its first row, so that there is one program."""
        pieces = []
        for start in range(0, len(arrays[0]), self._batch):
            parts = [array[start : start + self._batch] for array in arrays]
            count = len(parts[0])
            whole = [np.concatenate([part, np.repeat(part[:1], self._batch - count, axis=0)]) for part in parts]
            if self._mesh is not None:
                whole = [place(part, batch_shardings(part, self._mesh)) for part in whole]
            pieces.append(np.asarray(function(*whole))[:count])
        return np.concatenate(pieces)


def encode(
    experiment: Experiment,
    source: str | Path,
    out: str | Path,
    *,
    batch: int = 8,
    shard_size: int = 256,
    workers: int = 2,
    part: tuple[int, int] = (0, 1),
    most_rejected: float = 0.05,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Write `out`/train and `out`/heldout, or what they lack, for `data.source=encoded`.

    Args:
      source: "world", of which data.samples and data.heldout samples are drawn; or a folder in the layout of Kaleido's
        release, of which the data.heldout samples with the smallest SHA-256 of their names are held out.
      batch, shard_size, workers, part, most_rejected, stop: as of `data.encoded.write_encoded`.

    Returns:
      The rejected samples of this part, with the reasons.

    Raises:
      UsageError, InputError, StorageError: naming what cannot be read, used or written.
    """
    data, mesh = experiment.data, _mesh(experiment.mesh, batch)
    vae = find_vae(experiment)
    for bucket in data.shapes:
        vae.config.latent_frames(bucket.frames)  # raises for what it cannot encode
        if bucket.height % vae.config.spatial_factor or bucket.width % vae.config.spatial_factor:
            raise UsageError(f"The bucket {bucket} is not a multiple of {vae.config.spatial_factor} pixels a side.")
    splits = _world_names(experiment) if str(source) == WORLD else _folder_names(experiment, source)
    text, tokenizer = load_text(experiment, mesh)
    encoders = Encoders(vae, text, tokenizer, tokens=data.text_tokens, batch=batch, mesh=mesh)
    provenance = {
        "source": "world" if str(source) == WORLD else "folder",
        "vae": digest(vae),
        "text": digest(text),
        "text_tokens": data.text_tokens,
        "frames_per_second": experiment.sampling.frames_per_second,
        "references": data.references,
    }
    rejected: dict[str, str] = {}
    of_folder = str(source) != WORLD
    for split, names in splits.items():
        began = time.monotonic()

        def progress(done: int, total: int, split: str = split, began: float = began) -> None:
            left = (time.monotonic() - began) / max(done, 1) * (total - done)
            report(f"{split}: {done} of {total} shards, {duration(left)} left")

        rejected |= write_encoded(
            Path(out) / split,
            identities=names,
            read=_reader(experiment, source, split),
            encode_videos=encoders.videos,
            encode_texts=encoders.texts,
            buckets=list(map(str, data.shapes)),
            provenance=provenance,
            # What is held out is measured, each sample once.
            weights=folder_data.weights(source, names) if of_folder and split == "train" else None,
            shard_size=shard_size,
            batch=batch,
            workers=workers,
            part=part,
            most_rejected=most_rejected,
            progress=progress,
            stop=stop,
        )
    return rejected


def _mesh(config: MeshConfig, batch: int) -> Mesh | None:
    mesh = config.make()
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch % shares:
        raise UsageError(f"--batch is {batch}; mesh.data times mesh.fsdp, {shares}, must divide it")
    return mesh if mesh.size > 1 else None


def _world_names(experiment: Experiment) -> dict[str, list[str]]:
    data = experiment.data
    return {
        split: [f"{split}-{number:09d}" for number in range(count)]
        for split, count in (("heldout", data.heldout), ("train", data.samples))
    }


def _folder_names(experiment: Experiment, source: str | Path) -> dict[str, list[str]]:
    names = folder_data.identities(source)
    count = experiment.data.heldout
    if not 0 < count < len(names):
        most = len(names) - 1
        raise UsageError(f"data.heldout is {count}; of the {most + 1} samples in {source}, hold out 1 to {most}")
    hashed = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    heldout = set(hashed[:count])
    return {"heldout": sorted(heldout), "train": [name for name in names if name not in heldout]}


def _reader(experiment: Experiment, source: str | Path, split: str) -> Callable:
    data = experiment.data
    if str(source) != WORLD:
        return functools.partial(
            folder_data.read_sample,
            source,
            buckets=data.shapes,
            frames_per_second=experiment.sampling.frames_per_second,
            most_references=data.references,
        )
    worlds = [World(size=(bucket.height, bucket.width), frames=bucket.frames) for bucket in data.shapes]

    def draw(name: str) -> Sample:
        number = int(name.rpartition("-")[2])
        return worlds[number % len(worlds)].sample(number, split=split)

    return draw
