"""Classifier-free guidance: which conditions the network sees at a step, and how its velocities are combined.

Each rule is a weighted sum of branches whose weights sum to 1. A branch names what its text and its references are;
whoever drives a model builds the condition of each branch, in the order of `Guidance.branches`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One condition: the user's prompt, the negative prompt or "", beside the references or their empty form.

    Empty references keep their places: they are the latents of an all-zero clip ("zero_pixels", mid grey), or latents
    that are zero themselves ("zero_latents").
    """

    text: Literal["prompt", "negative", "empty"]
    references: Literal["kept", "zero_pixels", "zero_latents"]


@dataclass(frozen=True)
class Guidance:
    """Branches and their weights, which sum to 1.

    The weights may be traced arrays, so that a compiled program serves every scale.
    """

    branches: tuple[Branch, ...]
    weights: tuple[float | jax.Array, ...]

    @classmethod
    def of(cls, *terms: tuple[float, Branch]) -> "Guidance":
        """From (weight, branch) pairs; those of weight 0 are left out, so that nobody computes them."""
        kept = [(weight, branch) for weight, branch in terms if weight != 0]
        return cls(tuple(branch for _, branch in kept), tuple(weight for weight, _ in kept))

    def combine(self, velocities: Sequence) -> Any:
        """The guided velocity, in float32, from the velocity of each branch in the order of `branches`."""
        parts = [weight * value.astype(jnp.float32) for weight, value in zip(self.weights, velocities, strict=True)]
        return sum(parts[1:], parts[0])


PROMPT = Branch(text="prompt", references="kept")


def text_guidance(scale: float = 6.0) -> Guidance:
    """Text only, references kept in both branches: u + s (c - u), u with the negative prompt (Kaleido, scale 6)."""
    return Guidance.of((1.0 - scale, Branch(text="negative", references="kept")), (scale, PROMPT))


def joint_guidance(scale: float = 5.0) -> Guidance:
    """One empty condition for text and references together: u + s (c - u) (AnyID, section 3.4, scale 5).

    The paper's empty references are zero pixels; its empty text is "".
    """
    return Guidance.of((1.0 - scale, Branch(text="empty", references="zero_pixels")), (scale, PROMPT))


def image_text_guidance(image_scale: float = 5.0, text_scale: float = 7.5) -> Guidance:
    """Two scales in three passes: n + s_img (r - n) + s_txt (c - r) (Phantom: 5 and 7.5).

    n sees neither (negative prompt, zero latents), r the references with the negative prompt, c references and prompt.
    """
    return Guidance.of(
        (1.0 - image_scale, Branch(text="negative", references="zero_latents")),
        (image_scale - text_scale, Branch(text="negative", references="kept")),
        (text_scale, PROMPT),
    )


def guided(
    velocity: Callable[[jax.Array, Any, Any], jax.Array],
    conditions: Sequence[Any],
    guidance: Guidance,
    *,
    batched: bool = True,
) -> Callable[[jax.Array, Any], jax.Array]:
    """v(x, t) for a sampler, from the network's velocity(x, t, condition).

    Args:
        velocity: takes x `[batch, ...]`, a scalar t, and a condition.
        conditions: one pytree for each of guidance.branches, alike in structure; every leaf starts with the batch axis.
        batched: all branches in one call, concatenated along the batch (branch by branch); otherwise one call each,
            which is slower on an accelerator and needs less memory.
    """
    if len(conditions) != len(guidance.branches):
        raise ValueError(
            f"conditions must be one for each of the {len(guidance.branches)} branches, got {len(conditions)}."
        )
    count = len(conditions)
    if not batched or count == 1:
        return lambda x, t: guidance.combine([velocity(x, t, condition) for condition in conditions])
    stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conditions)

    def together(x, t):
        return guidance.combine(jnp.split(velocity(jnp.concatenate([x] * count), t, stacked), count))

    return together
