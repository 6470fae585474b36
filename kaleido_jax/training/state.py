"""What a training run carries from step to step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from kaleido_jax.training.optimizer import OptimizerConfig, direction
from kaleido_jax.tree import pytree
from kaleido_jax.typing import AnyArray, Array, Int, PyTree

# Parameters of every trained network, by its name ("transformer", "text") and then by dotted name.
Parameters = dict[str, dict[str, Array]]


@pytree
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a checkpoint holds. Float leaves are float32, whatever the networks compute in."""

    step: Int[AnyArray, ""]  # steps done, skipped ones among them
    skipped: Int[AnyArray, ""]  # non-finite steps in all
    skipped_in_a_row: Int[AnyArray, ""]
    parameters: Parameters
    average: Parameters  # exponential moving average; what is evaluated and exported
    moments: PyTree  # of the optimizer


@pytree
@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch on its way into the step; all samples fill the same bucket.

    Absent references (at or after a sample's count) hold anything: they are masked and never read. A reference may be a
    clip and a sample may have several prompts; then their arrays have one axis more.
    """

    video: AnyArray  # [b, f, h, w, z] latents; the shots of a scene one after another
    references: AnyArray  # [b, r, h, w, z] latents of pictures, or [b, r, f, h, w, z] of clips
    reference_counts: AnyArray  # int32 [b]
    subject_share: AnyArray  # [b, f, h, w], of each latent's pixels
    subjects: AnyArray  # int32 [b, r]
    text: AnyArray  # int32 [b, m] token ids, or [b, prompts, m]; of an encoder that is not trained the output [b, m, d]
    text_lengths: AnyArray  # int32 [b], or [b, prompts]
    indices: AnyArray  # int32 [b], place in the batch that the random numbers of a sample are drawn for
    reference_frames: AnyArray | None = None  # int32 [b, r], latent frames of each clip; None: pictures
    rejected: AnyArray | None = None  # [b, f, h, w, z] of preference pairs: the clip that `video` is preferred to
    image: AnyArray | None = None  # [b, p, e] tokens of an image encoder, for a method that reads them


@pytree
@dataclass(frozen=True, kw_only=True)
class Packed:
    """Several samples in every sequence: row i holds sample i of each batch, one after another."""

    parts: tuple[Batch, ...]  # of equally many samples; `indices` are counted on from one to the next


def parts_of(batch: Batch | Packed) -> tuple[Batch, ...]:
    """The batches of one shape each that lie side by side."""
    return batch.parts if isinstance(batch, Packed) else (batch,)


def joined(
    frozen: Mapping[str, Mapping[str, Any]], trained: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The parameters (or their shapes) of every network from those that stay as they are and those that are trained."""
    parts = {part: {**frozen.get(part, {}), **trained.get(part, {})} for part in sorted({*frozen, *trained})}
    return {part: dict(sorted(values.items())) for part, values in parts.items()}


def create(config: OptimizerConfig, parameters: Mapping[str, Mapping[str, Array]]) -> TrainState:
    """The state before the first step; the average starts as a copy, so that the state may be donated."""
    own = {part: {name: jnp.asarray(value) for name, value in leaves.items()} for part, leaves in parameters.items()}
    moments = direction(config).init(own)
    zero = lambda: jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero(),
        skipped=zero(),
        skipped_in_a_row=zero(),
        parameters=own,
        average=jax.tree.map(jnp.copy, own),
        moments=moments,
    )


def size(parameters: Parameters) -> int:
    """How many numbers there are to train."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters))
