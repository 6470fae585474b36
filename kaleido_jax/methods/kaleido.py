"""Kaleido: references are tokens in front of the video, set apart by shifted rotary positions (Kaleido, section 3.3).

As released: every reference is encoded alone into one latent frame of the video's size and stays clean; it is given the
video's time and modulation, reads the text, takes part in full bidirectional attention, and is dropped before the head.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp

from kaleido_jax import masks
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import Contents, Grid, Segment, TokenLayout, patchify
from kaleido_jax.methods.method import Condition, Method, contents, make_table, one_text, segment_times
from kaleido_jax.methods.tracking import ReferenceTracking
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import AnyArray, Array, Float, Int

SCHEME = "shift-wh"  # the paper's equation 4
CHANNELS = "channel-concat"  # the scheme whose references are channels instead of tokens (appendix A.2, table 6)


def layout(video: Grid, references: Sequence[Grid], *, text_tokens: int) -> TokenLayout:
    """References in their order, then the video, beside the text.

    Args:
      video: frames, height and width in patches.
      references: the same of each reference, as many as the bucket has room for; a picture is one frame.
      text_tokens: the longest prompt.
    """
    pictures = [Segment(kind="reference", grid=grid, subject=index) for index, grid in enumerate(references)]
    text = Segment(kind="text", grid=(text_tokens, 1, 1))
    return TokenLayout((*pictures, Segment(kind="video", grid=video), text))


def tokens(
    video: Float[Array, "b f h w z"], references: Sequence[Float[Array, "b _ _ _ z"]], patch: Grid
) -> Float[Array, "b n p"]:
    """Patches of the clean references and of the noisy video, in the layout's order."""
    return jnp.concatenate([patchify(piece, patch) for piece in (*references, video)], axis=1)


def table(
    layout: TokenLayout,
    *,
    times: Float[AnyArray, "b"],
    reference_counts: Int[AnyArray, "b"],
    text_lengths: Int[AnyArray, "b"],
    subjects: Int[AnyArray, "b r"] | None = None,
    scheme: str = SCHEME,
) -> TokenTable:
    """What distinguishes the samples of a batch, as data.

    Args:
      layout: of this method.
      times: flow time of each sample; its references get the same, as released.
      reference_counts: references that a sample really has, the first ones of its slots; others are never read.
      text_lengths: tokens that its prompt really has; padding is never read.
      subjects: which subject each reference shows, where a subject may have several pictures; None: one each.
      scheme: a name of `rope.SCHEMES`.
    """
    frames = jnp.asarray([s.grid[0] for s in layout.segments if s.kind == "reference"], jnp.int32)[None]
    there = jnp.arange(frames.shape[1], dtype=jnp.int32)[None] < jnp.asarray(reference_counts, jnp.int32)[:, None]
    present = contents(
        layout,
        reference_frames=jnp.where(there, frames, 0),
        text_lengths=jnp.asarray(text_lengths)[:, None],
        subjects=subjects,
    )
    return Kaleido(scheme=scheme).table_of(layout, jnp.asarray(times)[:, None], present)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kaleido(Method):
    """Kaleido with its options; the defaults are the paper's.

    scheme: any of `rope.SCHEMES` that places references; "shift-wh-released" is what the released model does.
        "channel-concat": references are no tokens but channels beside the video's own, repeated over its frames (what
        the paper compares with, and does not describe further); the network then reads
        (1 + reference slots) * latent channels.
    reference_time: the time that references are modulated by: the "video"'s (released) or "zero", as what is clean.
    rule: who reads whom; "unidirectional" keeps references from reading the video.
    references_read_text: as released. A reference that reads no text is the same for every prompt.
    tracking: above 0, sampling tracks points (`methods.tracking`): a video token reads the reference's point that is
        most like it, where their cosine is above this. Ours, and nothing is trained for it.
    """

    name: ClassVar[str] = "kaleido"

    scheme: str = SCHEME
    reference_time: Literal["video", "zero"] = "video"
    rule: Literal["bidirectional", "unidirectional", "separate-references", "separate-subjects"] = "bidirectional"
    references_read_text: bool = True
    tracking: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tracking <= 1:
            raise UsageError(f"kaleido's tracking is {self.tracking}; it must be a cosine above 0, or 0 for none.")
        if self.tracking and self.scheme == CHANNELS:
            raise UsageError("kaleido's tracking reads tokens of references, and channel-concat has none.")

    @property
    def pinned(self) -> bool:
        if self.tracking:  # the references' outputs are looked at in every pass
            return False
        return self.reference_time == "zero" and self.rule == "unidirectional" and self.scheme != CHANNELS

    @property
    def blind_to_text(self) -> bool:
        return not self.references_read_text

    def layout(self, video: Grid, references: Sequence[Grid], *, texts: Sequence[int]) -> TokenLayout:
        slots = () if self.scheme == CHANNELS else references
        return layout(video, slots, text_tokens=one_text(self, texts))

    def table(self, layout: TokenLayout, times: Float[AnyArray, "b draws"], condition: Condition) -> TokenTable:
        present = contents(
            layout,
            reference_frames=condition.reference_frames,
            text_lengths=condition.text_lengths,
            subjects=condition.subjects,
        )
        return self.table_of(layout, times, present)

    def table_of(self, layout: TokenLayout, times: Float[AnyArray, "b draws"], present: Contents) -> TokenTable:
        """The table of a batch whose contents are known."""
        return make_table(
            layout,
            present,
            times=segment_times(layout, times, references=self.reference_time),
            scheme=self.scheme,
            rules=(self.rule,),
            readers=None if self.references_read_text else masks.readers("video"),
        )

    def tokens(self, video: Float[Array, "b f h w z"], condition: Condition, patch: Grid) -> Float[Array, "b n p"]:
        if self.scheme != CHANNELS:
            return super().tokens(video, condition, patch)
        pieces = [video]
        for i, reference in enumerate(condition.references):
            there = (jnp.asarray(condition.reference_frames)[:, i] > 0)[:, None, None, None, None]
            pieces.append(jnp.broadcast_to(jnp.where(there, reference[:, :1], 0.0), video.shape))
        return patchify(jnp.concatenate(pieces, axis=4), patch)

    def sampling_hook(self, network: Any, layout: TokenLayout, batch: int) -> dict[str, Any]:
        if not self.tracking or not any(segment.kind == "reference" for segment in layout.segments):
            return {}
        if not hasattr(network, "config"):
            raise UsageError("kaleido's tracking compares all tokens with each other; its mesh must not divide them.")
        attend = ReferenceTracking.start(layout, self.tracking, network.config.layers, batch)
        return {"attend": attend, "remat": False}  # sums in place cannot be made again

    def in_channels(self, channels: int, slots: int) -> int:
        return channels * (1 + slots) if self.scheme == CHANNELS else channels
