"""Batches of preference pairs, whose latents were kept when the pairs were sampled."""

from dataclasses import dataclass

import numpy as np

from kaleido_jax.errors import InputError, printable
from kaleido_jax.models.text import Tokenizer
from kaleido_jax.preference.files import Preference
from kaleido_jax.training.experiment import DataConfig
from kaleido_jax.training.state import Batch


@dataclass(frozen=True)
class PairSource:
    """Batches of pairs in an order shuffled anew each epoch; what does not fill a batch is left for another shuffle."""

    pairs: list[Preference]
    tokenizer: Tokenizer
    config: DataConfig
    size: int  # pairs of a batch
    seed: int
    clip: int  # latent frames that a reference has room for
    pixels: bool = False

    def __post_init__(self) -> None:
        if len(self.pairs) < self.size:
            raise InputError(f"There are {len(self.pairs)} preference pairs, which do not fill a batch of {self.size}.")

    @property
    def batches_per_epoch(self) -> int:
        return len(self.pairs) // self.size

    def _chosen(self, step: int) -> list[Preference]:
        epoch, place = divmod(step, self.batches_per_epoch)
        order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.pairs))
        return [self.pairs[i] for i in order[place * self.size : (place + 1) * self.size]]

    def names(self, step: int) -> list[str]:
        """Of the pairs of a batch."""
        return [pair.pair for pair in self._chosen(step)]

    def batch(self, step: int) -> Batch:
        pairs = self._chosen(step)
        slots = self.config.references
        chosen, rejected, references, frames = [], [], [], np.zeros((self.size, slots), np.int32)
        for row, pair in enumerate(pairs):
            with np.load(pair.latents, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("a", "b", "references", "reference_frames")}
            shown = arrays["references"]
            if len(shown) > slots or shown.shape[1] > self.clip:
                raise InputError(
                    f"{printable(pair.latents)} has {len(shown)} references of {shown.shape[1]} latent frames; "
                    f"data.references is {slots}, and data.reference_frames has room for {self.clip}."
                )
            shown = np.pad(shown, ((0, 0), (0, self.clip - shown.shape[1]), *((0, 0),) * 3))
            chosen.append(arrays[pair.chosen])
            rejected.append(arrays[pair.rejected])
            empty = np.zeros((slots - len(shown), *shown.shape[1:]), shown.dtype)
            references.append(np.concatenate([shown, empty]))
            frames[row, : len(shown)] = arrays["reference_frames"]
        ids, lengths = self.tokenizer.encode([pair.prompt for pair in pairs], self.config.text_tokens)
        video = np.stack(chosen).astype(np.float32)
        return Batch(
            video=video,
            rejected=np.stack(rejected).astype(np.float32),
            references=np.stack(references).astype(np.float32),
            reference_counts=(frames > 0).sum(axis=1).astype(np.int32),
            subjects=np.zeros(frames.shape, np.int32),
            subject_share=np.zeros(video.shape[:-1], np.float32),
            text=ids,
            text_lengths=lengths,
            indices=np.arange(self.size, dtype=np.int32),
            reference_frames=frames,
        )
