"""Whether a reference leaks into the video: its first frame must not be one of the references.

What goes wrong where references stand next to the video in time (a known complaint of reference-to-video models).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from kaleido_jax.typing import UInt8

COPY = 0.9  # a correlation of pixels above this is a copy; frames of one clip of the world have 0.9 to 1


@dataclasses.dataclass(frozen=True)
class Leak:
    """How alike the first frame and each reference are, and how alike the rest of the video is.

    first: the highest correlation of the video's first frame with a frame of each reference. later: the same for the
    later frame that is most alike; a copy throughout the video is no leak of the first frame, but copied and pasted.
    """

    first: tuple[float, ...]
    later: tuple[float, ...]

    @property
    def leaked(self) -> tuple[int, ...]:
        """The numbers, from 0, of the references that the first frame is a copy of."""
        return tuple(i for i, value in enumerate(self.first) if value > COPY)


def leak(video: UInt8[np.ndarray, "f h w 3"], references: Sequence[UInt8[np.ndarray, "_ h w 3"]]) -> Leak:
    """The correlation of pixels (Pearson's, over all three colours) between a video's frames and each reference's."""
    frames = _standard(video)
    highest = [(frames @ _standard(reference).T).max(axis=1) for reference in references]
    later = [float(each[1:].max()) if len(each) > 1 else 0.0 for each in highest]
    return Leak(tuple(float(each[0]) for each in highest), tuple(later))


def _standard(frames: UInt8[np.ndarray, "f h w 3"]) -> np.ndarray:
    """Each frame as a vector of mean 0 and length 1; a frame of one colour is zero and like nothing."""
    flat = frames.reshape(len(frames), -1).astype(np.float64)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(length > 1e-9, flat / np.maximum(length, 1e-9), 0.0)
