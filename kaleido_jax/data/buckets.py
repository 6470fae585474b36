"""Buckets: the shapes that videos are brought to, so that every batch has one shape and every shape one program."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kaleido_jax.errors import UsageError


@dataclass(frozen=True, kw_only=True, order=True)
class VideoBucket:
    """Height and width in pixels, and frames."""

    height: int
    width: int
    frames: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.frames}"

    @classmethod
    def parse(cls, text: str) -> "VideoBucket":
        """The bucket of "480x832x81". UsageError for what is not three whole numbers above 0."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
        if match is None:
            raise UsageError(f"The bucket is {text!r}; write HEIGHTxWIDTHxFRAMES, such as 480x832x81.")
        height, width, frames = map(int, match.groups())
        return cls(height=height, width=width, frames=frames)


def longest(buckets: Sequence[VideoBucket], size: tuple[int, int], frames: int) -> VideoBucket | None:
    """The bucket of this size with the most frames that a clip of so many frames fills, or None if it is too short."""
    fitting = [bucket for bucket in buckets if (bucket.height, bucket.width) == size and bucket.frames <= frames]
    return max(fitting, key=lambda bucket: bucket.frames, default=None)
