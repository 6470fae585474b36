"""ContextAnyone: the network paints the reference again beside the video (arXiv 2512.07328).

The reference's clean latents stand in front of the video, a gap away in time (Gap-RoPE). The video reads them in
self-attention and once more in an Emphasize-Attention of its own; they never read the video. Tokens of an image encoder
come in by a branch of the cross-attention. Both additions are the network's (`WanConfig.emphasis`, `image_dim`). The
loss is that of the video plus lambda times that of the reference's reconstruction.

The paper reconstructs a reference that enters clean, which leaves open what a velocity is there. Without noise and at
time 0 the velocity noise - x_0 is -x_0: that is what the network should answer for the reference, and its best answer
before any tuning, so the reconstruction is the answer's negative.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from kaleido_jax import masks, rope
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import Grid, Segment, TokenLayout, patchify, unpatchify
from kaleido_jax.methods.cache import part
from kaleido_jax.methods.method import Condition, Decode, Method, contents, make_table, segment_times
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import AnyArray, Array, Float

BETA = 4  # frames between the reference and the video


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextAnyone(Method):
    """ContextAnyone with what its paper leaves open as options; it takes one reference, several are our extension.

    scheme, beta: Gap-RoPE, and its gap. Other schemes of `rope.SCHEMES` know no beta.
    reconstruction: scales lambda = f_r / f_v, the latent frames of the reference over the video's; 0 leaves the
        reconstruction out of the loss.
    reconstruction_on: "latents", or decoded "pixels", at the price of the decoder in each step. The paper writes its
        L2 on the reference's latents and draws it behind the decoder.
    """

    name: ClassVar[str] = "contextanyone"
    most_references: ClassVar[int | None] = 5

    scheme: str = "gap"
    beta: int = BETA
    reconstruction: float = 1.0
    reconstruction_on: Literal["latents", "pixels"] = "latents"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 0 or self.reconstruction < 0:
            raise UsageError(
                f"contextanyone's beta is {self.beta} and its reconstruction {self.reconstruction}; "
                "both must be at least 0."
            )

    @property
    def reconstructs(self) -> bool:
        return True

    @property
    def decodes(self) -> bool:
        return self.reconstruction_on == "pixels" and self.reconstruction > 0

    def _weights(self, layout: TokenLayout, condition: Condition) -> Float[Array, "b r"]:
        """Lambda for each reference, 0 for those that are absent."""
        frames = jnp.asarray(condition.reference_frames, jnp.float32)
        return self.reconstruction * frames / float(layout.select("visual")[-1].grid[0])

    def decoded_loss(
        self, out: Float[Array, "b n p"], condition: Condition, *, layout: TokenLayout, patch: Grid, decode: Decode
    ) -> Float[Array, "b"]:
        """Lambda times the mean squared difference of the decoded references and their decoded reconstructions."""
        total = jnp.zeros((out.shape[0],), jnp.float32)
        weights, parts = self._weights(layout, condition), zip(layout.slices("visual"), layout.select("visual"))
        for index, ((piece, segment), reference) in enumerate(zip(parts, condition.references)):
            painted = decode(-unpatchify(out[:, piece], segment.grid, patch)).astype(jnp.float32)
            error = jnp.square(painted - decode(reference).astype(jnp.float32))
            total = total + weights[:, index] * error.mean(axis=(1, 2, 3, 4))
        return total

    def prompts(self, prompt: str) -> tuple[str, ...]:
        """One prompt, or "REFERENCE || VIDEO": what the painted reference shows, and what the video does.

        Raises UsageError for more, or for an empty one beside another.
        """
        parts = tuple(part.strip() for part in prompt.split("||"))
        if len(parts) > 2 or not all(parts):
            raise UsageError(
                f"The prompt has {len(parts)} parts, {sum(not part for part in parts)} of them empty; contextanyone "
                "takes one prompt, or two as REFERENCE || VIDEO."
            )
        return parts

    def layout(self, video: Grid, references: Sequence[Grid], *, texts: Sequence[int]) -> TokenLayout:
        """With two prompts, the first tells of the references, which read it, and the second of the video."""
        self.check_references(len(references))
        if len(texts) not in (1, 2):
            raise UsageError(
                f"There are {len(texts)} prompts; contextanyone takes one, or the reference's and the video's."
            )
        own = len(texts) - 1  # the number of the video's prompt
        slots = [
            Segment(kind="reference", grid=grid, subject=index, target=True) for index, grid in enumerate(references)
        ]
        prompts = [Segment(kind="text", grid=(length, 1, 1), shot=number) for number, length in enumerate(texts)]
        return TokenLayout((*slots, Segment(kind="video", grid=video, shot=own), *prompts))

    def table(self, layout: TokenLayout, times: Float[AnyArray, "b draws"], condition: Condition) -> TokenTable:
        present = contents(
            layout,
            reference_frames=condition.reference_frames,
            text_lengths=condition.text_lengths,
            subjects=condition.subjects,
        )
        weight = self._weights(layout, condition) * float(not self.decodes)
        two = len(layout.select("text")) == 2
        return make_table(
            layout,
            present,
            times=segment_times(layout, times, references="zero"),
            scheme=rope.Continuing(references="before", gap=self.beta) if self.scheme == "gap" else self.scheme,
            rules=("unidirectional",),
            readers=masks.own_shot if two else None,
            weights=jnp.concatenate([weight, jnp.ones_like(weight[:, :1])], axis=1),
        )

    def targets(self, velocity: Float[Array, "b f h w z"], condition: Condition, patch: Grid) -> Float[Array, "b n p"]:
        references = [-patchify(reference, patch) for reference in condition.references]
        return jnp.concatenate([*references, patchify(velocity, patch)], axis=1)

    def image(self, condition: Condition, patch: Grid) -> Float[Array, "b p e"]:
        """The image encoder's tokens, or the patches of the references' own latents where there is no encoder."""
        if condition.image is not None:
            return condition.image
        there = jnp.asarray(condition.reference_frames) > 0
        first = [
            jnp.where(there[:, i, None, None, None, None], reference[:, :1], 0.0)
            for i, reference in enumerate(condition.references)
        ]
        return jnp.concatenate([patchify(picture, (1, *patch[1:])) for picture in first], axis=1)


def reconstruct(
    method: Method, network: Any, condition: Condition, *, layout: TokenLayout, patch: Grid
) -> list[Float[Array, "b _ _ _ z"]]:
    """The references as the network paints them again: latents of each slot.

    They depend on neither the video nor its time, so the references run alone and once.
    """
    numbers = [i for i, segment in enumerate(layout.select("visual")) if segment.kind == "reference"]
    zero = jnp.zeros((condition.text_lengths.shape[0], 1), jnp.float32)
    some, table = part(layout, method.table(layout, zero, condition), numbers, ())
    tokens = jnp.concatenate([patchify(reference, patch) for reference in condition.references], axis=1)
    out = -network(tokens, table, condition.text, layout=some, image=method.image(condition, patch))
    return [
        unpatchify(out[:, piece], segment.grid, patch)
        for piece, segment in zip(some.slices("visual"), some.select("visual"))
    ]
