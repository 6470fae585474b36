"""What goes through the stages: sources, clips of them, and candidates for subjects in them.

Everything has a stable id, made of what it is and not of when or where it was met; every random choice is a function of
an id. So any process may do any part of the work in any order, again if need be, and the result is the same bytes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def stable_id(*parts: Any) -> str:
    """20 hexadecimal digits that name the thing which the parts describe."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=10).hexdigest()


def fraction(*parts: Any) -> float:
    """A number in [0, 1), evenly spread over ids, the same for the same parts for ever."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8, person=b"fraction").digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def choose(weights: Mapping[T, float], *parts: Any) -> T:
    """One of the keys, drawn in proportion to the weights by the parts alone."""
    point, last = fraction(*parts) * sum(weights.values()), None
    for key, weight in weights.items():
        if weight > 0:
            last = key
            point -= weight
            if point < 0:
                return key
    if last is None:
        raise ValueError(f"the weights {dict(weights)} hold nothing above 0")
    return last


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What a data set already says of a subject of a video.

    phrase: its class. mask: of the marked frame of the cropped video, run-length encoded as `rle` does, or None.
    scores: whatever was measured.
    """

    phrase: str
    mask: Mapping[str, Any] | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video that a reader found.

    Attributes:
        id: stable: the same file of the same data set has the same in every run.
        path: of the file.
        caption: what it shows, or "" where a captioner has to say.
        dataset, license, url: where it comes from, for the audit table.
        identity: the name of whom it shows, the same in every video of one person or thing; "" if unknown.
        span: (begin, end) in seconds to look at, or None for all of it.
        crop: (x0, x1, y0, y1) in pixels to look at, or None.
        references: pictures of the subjects that came with the video.
        marks: subjects that the data set has found already, in the frame at second `marked`.
        extra: whatever else the reader knows, kept in the audit table as JSON.
    """

    id: str
    path: str
    caption: str = ""
    dataset: str = ""
    license: str = ""
    url: str = ""
    identity: str = ""
    span: tuple[float, float] | None = None
    crop: tuple[int, int, int, int] | None = None
    references: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    marked: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Why something was dropped: the stage, and one of the stage's few reasons."""

    stage: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A subject that may become a reference.

    phrase: the words of the caption that name it. category: of the taxonomy. box: (x0, y0, x1, y1) in pixels of key
    frame `frame`. masks: bool [key frames, h, w], None before segmentation. faces: boxes of faces in key frame `frame`.
    scores: every number that a stage measured. dropped: None while it is kept.
    """

    id: str
    phrase: str
    category: str
    frame: int = 0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    masks: np.ndarray | None = None
    faces: tuple[tuple[float, float, float, float], ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    dropped: Drop | None = None

    def scored(self, **scores: float) -> "Candidate":
        return replace(self, scores={**self.scores, **scores})

    def drop(self, stage: str, reason: str) -> "Candidate":
        return replace(self, dropped=Drop(stage=stage, reason=reason))


@dataclass(frozen=True, kw_only=True)
class Mention:
    """A subject that a caption names: its category, its own words, and where they stand in the caption."""

    category: str
    phrase: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One shot of a source, or a part of one.

    Attributes:
        id: stable.
        source: what it is of.
        shot: its number in the source.
        begin, end: in seconds of the source.
        frames: uint8 [f, h, w, 3] at the configuration's rate.
        keys: which of the frames are looked at for subjects.
        caption, mentions: what it shows, and the subjects named there.
        plate: uint8 [h, w, 3]: the scene without its subjects, or None.
        candidates: subjects found in it.
        scores: every number that a stage measured of the clip.
        dropped: None while it is kept.
    """

    id: str
    source: Source
    shot: int
    begin: float
    end: float
    frames: np.ndarray
    keys: tuple[int, ...] = (0,)
    caption: str = ""
    mentions: tuple[Mention, ...] = ()
    plate: np.ndarray | None = None
    candidates: tuple[Candidate, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    dropped: Drop | None = None

    @property
    def key_frames(self) -> np.ndarray:
        """uint8 [key frames, h, w, 3]."""
        return self.frames[list(self.keys)]

    @property
    def kept(self) -> tuple[Candidate, ...]:
        return tuple(candidate for candidate in self.candidates if candidate.dropped is None)

    def scored(self, **scores: float) -> "Clip":
        return replace(self, scores={**self.scores, **scores})

    def drop(self, stage: str, reason: str) -> "Clip":
        return replace(self, dropped=Drop(stage=stage, reason=reason))

    def with_kept(self, changed: Sequence[Candidate]) -> "Clip":
        """The clip with its kept candidates, in order, replaced."""
        rest = iter(changed)
        return replace(self, candidates=tuple(next(rest) if one.dropped is None else one for one in self.candidates))
