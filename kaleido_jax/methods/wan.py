"""Wan's own models as they are released: text to video, and image to video, whose pictures are frames of the video.

In the 14B models a given frame is no token: its latents are channels beside the noisy ones
(`models.wan.image_to_video`), and Wan 2.1 reads it once more through CLIP. TI2V-5B has no such channels: the first
latent frame of the video *is* the picture, clean and at time 0, beside noisy ones at the time of the flow. All branches
of the guidance see it. The text is read with its padding, which is zero.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax.numpy as jnp

from kaleido_jax.errors import UsageError
from kaleido_jax.layout import Grid, Segment, TokenLayout, patchify
from kaleido_jax.methods.method import Condition, Method, contents, make_table, one_text, segment_times
from kaleido_jax.models.wan.image_to_video import MASK_CHANNELS, conditioning_channels, conditioning_clip
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import AnyArray, Array, Float

# How many pictures, and that in words.
_GIVEN = {
    "none": ((0,), "none: it makes videos of text alone"),
    "first": ((1,), "one, the first frame"),
    "first-last": ((2,), "two, the first frame and the last"),
    "first-latent": ((0, 1), "one, the first frame, or none"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wan(Method):
    """Wan 2.1 and 2.2: T2V-1.3B and 14B, I2V-14B, T2V-A14B and I2V-A14B, and TI2V-5B.

    frames: which of the video's frames are given: "none" (text to video), the "first", or "first-last", as channels.
        The condition's only reference then is the latents of `image_to_video.conditioning_clip`. "first-latent" is
        TI2V-5B's: the only reference is the picture's latent, which takes the place of the video's first; without one
        it is text to video.
    """

    name: ClassVar[str] = "wan"
    pictures: ClassVar[Literal["subjects", "frames"]] = "frames"

    scheme: str = "channel-concat"
    frames: Literal["none", "first", "first-last", "first-latent"] = "none"

    def layout(self, video: Grid, references: Sequence[Grid], *, texts: Sequence[int]) -> TokenLayout:
        text = Segment(kind="text", grid=(one_text(self, texts), 1, 1))
        if self.frames != "first-latent" or not references:
            return TokenLayout((Segment(kind="video", grid=video), text))
        # The given frame and the others are segments of their own, for each has one time.
        frames, *sides = video
        if frames < 2:
            raise UsageError("The video has one latent frame, which the picture would fill; ask for more frames.")
        return TokenLayout(tuple(Segment(kind="video", grid=(n, *sides)) for n in (1, frames - 1)) + (text,))

    def table(self, layout: TokenLayout, times: Float[AnyArray, "b draws"], condition: Condition) -> TokenTable:
        lengths = jnp.full((condition.text.shape[0], 1), condition.text.shape[1], jnp.int32)
        present = contents(layout, reference_frames=condition.reference_frames, text_lengths=lengths)
        moving = jnp.asarray([self._moving(layout)], jnp.float32)  # what is given has time 0 and is not learned
        times = segment_times(layout, times, references="video") * moving
        table = make_table(layout, present, times=times, scheme=self.scheme, weights=moving)
        return dataclasses.replace(table, self_mask=None, text_mask=None)  # everything is there and is read

    def tokens(self, video: Float[Array, "b f h w z"], condition: Condition, patch: Grid) -> Float[Array, "b n p"]:
        if self.frames in ("none", "first-latent"):
            return patchify(self.given(video, condition), patch)
        (latents,) = condition.references
        channels = conditioning_channels(latents.astype(video.dtype), last=self.frames == "first-last")
        return patchify(jnp.concatenate([video, channels], axis=4), patch)

    def in_channels(self, channels: int, slots: int) -> int:
        return channels if self.frames in ("none", "first-latent") else 2 * channels + MASK_CHANNELS

    def levels(self, layout: TokenLayout, times: Float[AnyArray, "b draws"]) -> Float[Array, "b f"]:
        videos = (segment.grid[0] for segment in layout.segments if segment.kind == "video")
        moving = [level for level, frames in zip(self._moving(layout), videos) for _ in range(frames)]
        return jnp.asarray(times, jnp.float32)[:, :1] * jnp.asarray([moving], jnp.float32)

    def given(self, video: Float[Array, "b f h w z"], condition: Condition) -> Float[Array, "b f h w z"]:
        if self.frames != "first-latent" or not condition.references:
            return video
        (first,) = condition.references
        return video.at[:, : first.shape[1]].set(first[: video.shape[0]].astype(video.dtype))

    def given_clip(self, pictures: Sequence[Float[Array, "b h w c"]], frames: int) -> Float[Array, "b _ h w c"]:
        return conditioning_clip(pictures[0], 1 if self.frames == "first-latent" else frames, *pictures[1:])

    def check_references(self, count: int) -> None:
        counts, wanted = _GIVEN[self.frames]
        if count not in counts:
            raise UsageError(f"There are {count} pictures; this model takes {wanted}.")

    def _moving(self, layout: TokenLayout) -> list[float]:
        """Of each video segment, 1 if it is denoised and 0 if it is given: the first of two."""
        videos = sum(segment.kind == "video" for segment in layout.segments)
        return [0.0] * (videos - 1) + [1.0]
