"""What the stages ask of a model.

A configuration holds a *specification*: a small frozen dataclass with the path, the device and the thresholds, and a
method `load()` that gives the object below. `loaded` keeps one object per specification and process, so the workers of
any engine share nothing. A batch is what one clip holds: a score never depends on which clips were looked at in the
same run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np

from kaleido_jax.curation.pictures import Box


@dataclass(frozen=True, kw_only=True)
class Found:
    """A subject in the key frames of a clip: its box in each, None where it is not seen, and a score in [0, 1]."""

    boxes: tuple[Box | None, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Face:
    """A face: box in pixels, score in [0, 1], the head's turn in degrees (0, 0 looks into the camera)."""

    box: Box
    score: float
    yaw: float
    pitch: float


class Captioner(Protocol):
    def caption(self, frames: np.ndarray) -> str:
        """What the clip, uint8 [f, h, w, 3], shows, in one paragraph; "" where it cannot be said."""
        ...


class Detector(Protocol):
    def detect(self, frames: np.ndarray, keys: Sequence[int], phrases: Sequence[str]) -> list[Found | None]:
        """For each phrase where it is seen in the key frames of the clip, or None."""
        ...


class Segmenter(Protocol):
    def segment(self, frames: np.ndarray, keys: Sequence[int], found: Sequence[Found]) -> np.ndarray:
        """Masks bool [subjects, keys, h, w]; empty where a subject has no box."""
        ...


class Classifier(Protocol):
    def classify(self, pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
        """Probabilities [pictures, labels]; a row sums to 1."""
        ...


class FaceFinder(Protocol):
    def find(self, pictures: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces in each picture."""
        ...


class Inpainter(Protocol):
    def paint(self, picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """The picture uint8 [h, w, 3] with `hole` (bool [h, w]) filled with what may stand behind."""
        ...


class Editor(Protocol):
    def vary(self, picture: np.ndarray, mask: np.ndarray, phrase: str, seed: str) -> tuple[np.ndarray, np.ndarray]:
        """The subject of `mask` in another pose: (picture uint8 [h, w, 3], mask bool [h, w]) of any size."""
        ...


@cache
def loaded(specification: Any) -> Any:
    """The model of a specification, loaded once a process."""
    return specification.load()
