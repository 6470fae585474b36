"""AdamW on parameters by dotted name, with clipping, and the learning rate as a function of progress.

The rate is an argument of the update and not of optax's step counter: progress is a share of the run, so that a run may
be given a number of steps or an amount of time, and a skipped step does not move the schedule.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float

# Parameters that weight decay leaves alone: gains, offsets, and tables that are added rather than multiplied.
NOT_DECAYED = re.compile(r"(bias|norm|scale|gamma|modulation|position|table|embedding)")
# What stands between a prompt and the transformer's blocks; names start with the part of the parameters.
READS_TEXT = re.compile(r"^(text\.|transformer\.text_embedding\.)")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """`learning_rate` is the peak, reached after `warmup_steps` and left on half a cosine.

    "muon" orthogonalises the updates of the blocks' matrices, scaled to the size of AdamW's so that learning rates
    carry over (arXiv 2502.16982, section 2.2), and leaves everything else to AdamW.

    `text_rate` slows down what reads the prompt where a text encoder is trained from nothing together with the
    transformer. For hundreds of steps prompts tell the loss little, and AdamW shrinks what looks like noise as fast as
    it learns: at the full rate the embedding of the text has died before there is anything to learn from it.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    text_rate: float = 1.0  # of the learning rate, for the text encoder and the embedding of what it says
    warmup_steps: int = 100
    final_fraction: float = 0.02  # of the peak, at the end of the run
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"optimizer.learning_rate must be positive, got {self.learning_rate}")
        if not 0 <= self.text_rate <= 1:
            raise ValueError(f"optimizer.text_rate must be in [0, 1], got {self.text_rate}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"optimizer.ema_decay must be in [0, 1), got {self.ema_decay}")


def learning_rate(config: OptimizerConfig, step: Float[Array, ""], progress: Float[Array, ""]) -> Float[Array, ""]:
    """Linear warm-up over steps, times half a cosine over progress in [0, 1] down to `final_fraction` of the peak."""
    warmup = jnp.minimum(1.0, (step + 1.0) / max(config.warmup_steps, 1))
    cosine = 0.5 * (1.0 + jnp.cos(math.pi * jnp.clip(progress, 0.0, 1.0)))
    return config.learning_rate * warmup * (config.final_fraction + (1.0 - config.final_fraction) * cosine)


def direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Everything of the optimizer but the learning rate: parameters -= learning_rate * its output."""
    if config.kind == "muon":
        return optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.contrib.muon(
                -1.0,  # optax's updates are to be added
                beta=0.95,
                eps=config.epsilon,
                weight_decay=config.weight_decay,
                adam_b1=config.beta1,
                adam_b2=config.beta2,
                muon_weight_dimension_numbers=_matrices,
                consistent_rms=0.2,
            ),
            _slower_text(config.text_rate),
        )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
        _slower_text(config.text_rate),
    )


def _slower_text(rate: float) -> optax.GradientTransformation:
    def scaled(updates: dict[str, dict[str, jax.Array]], parameters: Any) -> dict[str, dict[str, jax.Array]]:
        return {
            part: {name: leaf * rate if READS_TEXT.match(f"{part}.{name}") else leaf for name, leaf in leaves.items()}
            for part, leaves in updates.items()
        }

    return optax.stateless(scaled)


def _decayed(parameters: dict[str, dict[str, jax.Array]]) -> dict[str, dict[str, bool]]:
    return {part: {name: NOT_DECAYED.search(name) is None for name in leaves} for part, leaves in parameters.items()}


def _matrices(parameters: Any) -> Any:
    """Which axes of a stacked kernel [layers, in, out] are a matrix's; None for whatever is not one of the blocks'."""
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return {
        part: {name: axes if re.search(r"^blocks\..*kernel$", name) else None for name in leaves}
        for part, leaves in parameters.items()
    }


def average(ema: Float[Array, "..."], parameter: Float[Array, "..."], decay: Float[Array, ""]) -> Float[Array, "..."]:
    """Exponential moving average, written as a correction so that it is exact where both are equal."""
    return ema + (1.0 - decay) * (parameter - ema)
