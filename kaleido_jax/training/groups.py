"""Batches for methods that train on identity groups or on scenes of shots: rendered, so that none comes twice."""

from dataclasses import dataclass

import numpy as np

from kaleido_jax.data.groups import TruthDescriber, draw_group, draw_scene
from kaleido_jax.data.latents import subject_share
from kaleido_jax.data.world import World
from kaleido_jax.methods import differential
from kaleido_jax.methods.method import EMPTY_BYTE
from kaleido_jax.models.text import Tokenizer
from kaleido_jax.training.experiment import DataConfig
from kaleido_jax.training.state import Batch
from kaleido_jax.typing import Float, Int


@dataclass(frozen=True)
class GroupSource:
    """AnyID's samples as pixels: clips and pictures of an identity, another clip of it, and the differential prompt.

    A share `data.text_dropout` of the samples has the empty condition, prompt and references at once.
    """

    world: World
    split: str
    tokenizer: Tokenizer
    config: DataConfig
    size: int  # samples of a batch
    seed: int
    grid: tuple[int, int, int]  # latent frames, height and width of the video
    factor: int  # frames of a latent frame after the first
    pixels: bool = True

    @property
    def batches_per_epoch(self) -> int:
        """How many batches are looked at where a source is gone through once."""
        return max(1, self.config.heldout // self.size)

    def names(self, step: int) -> list[str]:
        """Of the samples of a batch: the world's seeds."""
        return [str(step * self.size + i) for i in range(self.size)]

    def batch(self, step: int) -> Batch:
        data, random = self.config, np.random.default_rng([self.seed, 1, step])
        clip = data.reference_frames
        groups = [
            draw_group(self.world, step * self.size + i, self.split, most=data.references, clip=clip)
            for i in range(self.size)
        ]
        elements, describer, comparer = differential.load_elements("miniature"), TruthDescriber(), differential.Words()
        texts, empty = [], random.random(self.size) < data.text_dropout
        height, width = groups[0].video.shape[1:3]
        references = np.full((self.size, data.references, clip, height, width, 3), EMPTY_BYTE, np.uint8)
        frames = np.zeros((self.size, data.references), np.int32)
        for row, group in enumerate(groups):
            kept = differential.differing(group.shown, group.target, elements, describer, comparer)
            texts.append("" if empty[row] else differential.prompt(kept, separator=" "))
            for slot, reference in enumerate(group.references):
                frames[row, slot] = 1 + (len(reference) - 1) // self.factor
                if not empty[row]:
                    references[row, slot, : len(reference)] = reference
        ids, lengths = self.tokenizer.encode(texts, data.text_tokens)
        return Batch(
            video=np.stack([group.video for group in groups]),
            references=references,
            reference_counts=(frames > 0).sum(axis=1).astype(np.int32),
            subjects=np.zeros(frames.shape, np.int32),
            subject_share=np.stack([subject_share(group.masks, self.grid) for group in groups]).astype(np.float32),
            text=ids,
            text_lengths=lengths,
            indices=np.arange(self.size, dtype=np.int32),
            reference_frames=frames,
        )


@dataclass(frozen=True)
class SceneSource:
    """LCT's samples as pixels: shots of one subject, a prompt for each, and one for the scene.

    A share `data.single_shots` of the samples is a single shot without a scene, so that the base model's skill is kept;
    a share `data.text_dropout` has empty prompts.
    """

    world: World
    split: str
    tokenizer: Tokenizer
    config: DataConfig
    size: int  # samples of a batch
    seed: int
    grid: tuple[int, int, int]  # latent frames, height and width of a shot
    pixels: bool = True

    @property
    def batches_per_epoch(self) -> int:
        """How many batches are looked at where a source is gone through once."""
        return max(1, self.config.heldout // self.size)

    def names(self, step: int) -> list[str]:
        """Of the samples of a batch: the world's seeds."""
        return [str(step * self.size + i) for i in range(self.size)]

    def batch(self, step: int) -> Batch:
        data, random = self.config, np.random.default_rng([self.seed, 1, step])
        scenes = [draw_scene(self.world, step * self.size + i, self.split, shots=data.shots) for i in range(self.size)]
        empty = random.random(self.size) < data.text_dropout
        alone = random.random(self.size) < data.single_shots
        texts = ["" if drop else text for scene, drop in zip(scenes, empty) for text in (scene.prompt, *scene.prompts)]
        ids, lengths = self.tokenizer.encode(texts, data.text_tokens)
        ids, lengths = ids.reshape(self.size, 1 + data.shots, -1), lengths.reshape(self.size, 1 + data.shots).copy()
        # A shot is there where its prompt is.
        lengths[alone, 0], lengths[alone, 2:] = 0, 0
        shares = [[subject_share(masks, self.grid) for masks in scene.masks] for scene in scenes]
        height, width = scenes[0].videos.shape[2:4]
        return Batch(
            video=np.stack([scene.videos for scene in scenes]),
            references=np.zeros((self.size, 0, height, width, 3), np.uint8),
            reference_counts=np.zeros(self.size, np.int32),
            subjects=np.zeros((self.size, 0), np.int32),
            subject_share=np.concatenate(np.asarray(shares).swapaxes(0, 1), axis=1).astype(np.float32),
            text=ids,
            text_lengths=lengths,
            indices=np.arange(self.size, dtype=np.int32),
        )


def losses_by_shots(losses: Float[np.ndarray, "n"], text_lengths: Int[np.ndarray, "n texts"]) -> dict[str, float]:
    """The mean loss of samples that are a single shot, and of whole scenes; what there is none of is left out.

    text_lengths: of the scene's prompt and of each shot's; a single shot has no scene.
    """
    alone = (text_lengths[:, 0] == 0) & (text_lengths[:, 2:] == 0).all(axis=1)
    parts = {"heldout_single_shot_loss": losses[alone], "heldout_scene_loss": losses[~alone]}
    return {name: float(values.mean()) for name, values in parts.items() if len(values)}
