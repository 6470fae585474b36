"""Wan's own models as they are released: text to video, and image to video, whose pictures are frames of the video.

A given frame is no token: its latents are channels beside the noisy ones (`models.wan.image_to_video`), and Wan 2.1
reads it once more through CLIP. All branches of the guidance see it. The text is read with its padding, which is zero.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax.numpy as jnp

from kaleido_jax.errors import UsageError
from kaleido_jax.layout import Grid, Segment, TokenLayout, patchify
from kaleido_jax.methods.method import Condition, Method, contents, make_table, one_text, segment_times
from kaleido_jax.models.wan.image_to_video import MASK_CHANNELS, conditioning_channels
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import AnyArray, Array, Float

_GIVEN = {"none": 0, "first": 1, "first-last": 2}
_WANTED = ("none: it makes videos of text alone", "one, the first frame", "two, the first frame and the last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wan(Method):
    """Wan 2.1 and 2.2: T2V-1.3B and 14B, I2V-14B, T2V-A14B and I2V-A14B, and TI2V-5B from text.

    frames: which of the video's frames are given: "none" (text to video), the "first", or "first-last". The condition's
        only reference then is the latents of `image_to_video.conditioning_clip`.
    """

    name: ClassVar[str] = "wan"
    pictures: ClassVar[Literal["subjects", "frames"]] = "frames"

    scheme: str = "channel-concat"
    frames: Literal["none", "first", "first-last"] = "none"

    def layout(self, video: Grid, references: Sequence[Grid], *, texts: Sequence[int]) -> TokenLayout:
        text = Segment(kind="text", grid=(one_text(self, texts), 1, 1))
        return TokenLayout((Segment(kind="video", grid=video), text))

    def table(self, layout: TokenLayout, times: Float[AnyArray, "b draws"], condition: Condition) -> TokenTable:
        lengths = jnp.full((condition.text.shape[0], 1), condition.text.shape[1], jnp.int32)
        present = contents(layout, reference_frames=condition.reference_frames, text_lengths=lengths)
        times = segment_times(layout, times, references="video")
        table = make_table(layout, present, times=times, scheme=self.scheme)
        return dataclasses.replace(table, self_mask=None, text_mask=None)  # everything is there and is read

    def tokens(self, video: Float[Array, "b f h w z"], condition: Condition, patch: Grid) -> Float[Array, "b n p"]:
        if self.frames == "none":
            return patchify(video, patch)
        (latents,) = condition.references
        channels = conditioning_channels(latents.astype(video.dtype), last=self.frames == "first-last")
        return patchify(jnp.concatenate([video, channels], axis=4), patch)

    def in_channels(self, channels: int, slots: int) -> int:
        return channels if self.frames == "none" else 2 * channels + MASK_CHANNELS

    def check_references(self, count: int) -> None:
        wanted = _GIVEN[self.frames]
        if count != wanted:
            raise UsageError(f"There are {count} pictures; this model takes {_WANTED[wanted]}.")
