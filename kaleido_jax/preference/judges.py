"""Automatic judges of preference pairs: the procedural world's truth, and vision-language models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.world import World
from kaleido_jax.describers import ModelDescriber
from kaleido_jax.errors import InputError, printable
from kaleido_jax.evaluation.identity import ANGLES
from kaleido_jax.evaluation.matching import Artist, backdrop, refine, search
from kaleido_jax.evaluation.motion import MotionJudge, follow
from kaleido_jax.evaluation.scene import SceneJudge, background
from kaleido_jax.media.clips import is_clip, read_clip
from kaleido_jax.media.images import read_image
from kaleido_jax.preference.files import TRACKS, VOTES, Pair, Vote, append, read_pairs, read_votes
from kaleido_jax.typing import UInt8

# Gains of a subject in two clips that differ by less than this share of the larger one are the same.
CLEAR = 0.05
MOST_FRAMES = 401


@runtime_checkable
class Judge(Protocol):
    """Something that says which clip of a pair is better along a track: "a", "b" or "same"."""

    name: str

    def better(self, folder: Path, pair: Pair, track: str) -> str: ...


class WorldJudge:
    """What the procedural world knows: how well the true identity explains a clip, and its true motion and scene."""

    name = "world"

    def __init__(self) -> None:
        self._worlds: dict[tuple, tuple[World, Artist, MotionJudge]] = {}
        self._scenes: SceneJudge | None = None

    def better(self, folder: Path, pair: Pair, track: str) -> str:
        truth = pair.truth
        if not truth:
            raise InputError(f"The pair {printable(pair.id)} is not of the procedural world; name another judge.")
        size = (truth["height"], truth["width"])
        key = (*size, truth["frames"], truth["photographs"], truth["world"])
        if key not in self._worlds:
            world = World(size, key[2], photographs=key[3], seed=key[4])
            self._worlds[key] = world, Artist(world), MotionJudge(world.frames, world.width / world.height)
        world, artist, motion = self._worlds[key]
        identity = world.identity(truth["identity"])
        clips = [pixels(folder / name, *size) for name in (pair.a, pair.b)]
        if track == "identity":
            one, other = (self._gain(artist, clip, identity) for clip in clips)
            return _sided(one, other, CLEAR * max(one, other))
        if self._scenes is None:
            self._scenes = SceneJudge(with_photographs=truth["photographs"])
        scores = []
        for clip in clips:
            track_of = follow(artist, clip, identity)
            far = motion.distances(track_of)
            scores.append(
                -float(far[MOTIONS.index(truth["motion"])] - far.min())
                + float(self._scenes(background(clip, track_of)) == truth["scene"])
            )
        return _sided(*scores, 0.02)

    @staticmethod
    def _gain(artist: Artist, clip: np.ndarray, identity) -> float:
        still = backdrop(clip)
        templates = artist.templates([identity], angles=ANGLES)
        frames = clip[np.unique(np.linspace(0, len(clip) - 1, 5).round().astype(int))]
        places = [search(frame, still, templates)[0][0] for frame in frames]
        gains = [refine(artist, frame, still, identity, place).gain for frame, place in zip(frames, places)]
        return float(sum(max(gain, 0.0) for gain in gains))


class ModelJudge:
    """A vision-language model, asked in both orders of the clips."""

    def __init__(self, describer: ModelDescriber, name: str) -> None:
        self.describer, self.name = describer, name

    def better(self, folder: Path, pair: Pair, track: str) -> str:
        shown = pair.group if track == "identity" else pair.references[:1]
        a, b, *others = (pixels(folder / name) for name in (pair.a, pair.b, *shown))
        return self.describer.better(track, others, a, b, pair.prompt)


def judge(
    folder: Path,
    judge: Judge,
    tracks: Sequence[str] = TRACKS,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Lets a judge vote on every pair and track that it has not voted on; returns how many votes it gave.

    Every vote is kept at once, so that a stop loses none.
    """
    pairs = read_pairs(folder)
    done = {(vote.pair, vote.track) for vote in read_votes(folder, pairs) if vote.by == judge.name}
    waiting = [(pair, track) for pair in pairs.values() for track in tracks if (pair.id, track) not in done]
    for number, (pair, track) in enumerate(waiting):
        progress(number, len(waiting))
        choice = judge.better(folder, pair, track)
        append(folder, VOTES, Vote(pair=pair.id, track=track, choice=choice, by=judge.name))
    progress(len(waiting), len(waiting))
    return len(waiting)


def pixels(path: Path, height: int = 512, width: int = 512) -> UInt8[np.ndarray, "f h w 3"]:
    """The frames of a clip, or of a picture its only one."""
    if is_clip(path):
        return read_clip(path, frames=MOST_FRAMES, height=height, width=width, frames_per_second=8)
    return read_image(path)[None]


def _sided(one: float, other: float, margin: float) -> str:
    if abs(one - other) <= margin:
        return "same"
    return "a" if one > other else "b"
