"""Does a video show the subject of the reference, doing what the prompt says, where it says?

Judged from the video's pixels and the world's ground truth (what every candidate looks like): never from the features
of a model, nor from how the real video was drawn. The judge's own errors are measured on real renderings of the same
cases.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kaleido_jax.data.world import World
from kaleido_jax.evaluation.cases import Case
from kaleido_jax.evaluation.identity import identity_scores
from kaleido_jax.evaluation.intervals import Share
from kaleido_jax.evaluation.matching import Artist
from kaleido_jax.evaluation.motion import MotionJudge, follow
from kaleido_jax.evaluation.scene import SceneJudge, background

QUESTIONS = ("identity", "motion", "scene")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a video was taken for: index of a candidate, names of a motion and of a scene, and whether each is right."""

    candidate: int
    motion: str
    scene: str
    right: dict[str, bool]


class FidelityJudge:
    """Judges videos of a world's size and length.

    Args:
      photographs: whether the world's scenes may be photographs (those of scikit-image, which must be installed then).
    """

    def __init__(self, world: World, *, photographs: bool = True):
        self.world = world
        self._artist = Artist(world)
        self._motion = MotionJudge(world.frames, world.width / world.height)
        self._scene = SceneJudge(with_photographs=photographs)

    def __call__(self, video: np.ndarray, case: Case) -> Verdict:
        """The verdict on a video uint8 `[f, h, w, 3]` that was made for `case`.

        Motion and scene are judged along the track of the case's own subject, whichever candidate was picked.
        """
        expected = case.sample.video.shape
        if video.dtype != np.uint8 or video.shape != expected:
            raise ValueError(
                f"video is {video.dtype} {list(video.shape)}; it must be uint8 {list(expected)}, as the case's own."
            )
        candidate = int(identity_scores(self._artist, video, case.candidates).argmax())
        track = follow(self._artist, video, case.candidates[case.answer])
        motion = self._motion(track)
        scene = self._scene(background(video, track))
        right = {"identity": candidate == case.answer, "motion": motion == case.motion, "scene": scene == case.scene}
        return Verdict(candidate=candidate, motion=motion, scene=scene, right=right)


def shares(verdicts: Iterable[dict[str, bool]]) -> dict[str, Share]:
    """How many are right, for each question and for all three at once."""
    rows = list(verdicts)
    count = lambda test: Share(sum(map(test, rows)), len(rows))
    return {name: count(lambda row: row[name]) for name in QUESTIONS} | {
        "all three": count(lambda row: all(row.values()))
    }
