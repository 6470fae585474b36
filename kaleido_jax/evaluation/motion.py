"""Where a known subject goes in a video, and which of the world's motions that is."""

from dataclasses import dataclass

import numpy as np

from kaleido_jax.data.drawing import between, chance, generator
from kaleido_jax.data.motions import MOTIONS, SIZES, draw_path
from kaleido_jax.data.sprites import Identity
from kaleido_jax.evaluation.matching import Artist, Place, backdrop, refine, search

ANGLES = np.arange(12) * (2 * np.pi / 12)
PLACES = 3  # considered in each frame
PATHS = 500  # drawn of each motion, to compare with
# Moves between frames and departures from a path that count as much as each other: shares of the frame, a factor,
# radians.
MOVE, GROWTH, TURN = 0.06, 0.15, 0.5


def follow(artist: Artist, video: np.ndarray, identity: Identity) -> list[Place]:
    """The place of `identity` in every frame of a video uint8 `[f, h, w, 3]`.

    Of the best places of each frame, those are taken whose gains are large and which are close to each other in
    neighbouring frames (dynamic programming over the whole video).
    """
    templates = artist.templates([identity], angles=ANGLES)
    still = backdrop(video)
    frames = [
        [refine(artist, frame, still, identity, near) for near in search(frame, still, templates, best=PLACES)[0]]
        for frame in video
    ]
    state = [np.array([(p.x, p.y, np.log(p.size), p.angle, p.gain) for p in places]) for places in frames]
    scale = max(float(np.median([places[:, 4].max() for places in state])), 1e-9)
    total, steps = state[0][:, 4] / scale, []
    for before, now in zip(state, state[1:]):
        change = np.abs(now[:, None] - before[None])
        turn = np.abs((change[..., 3] + np.pi) % (2 * np.pi) - np.pi)
        cost = (change[..., :2].max(-1) / MOVE) ** 2 + (change[..., 2] / GROWTH) ** 2 + (turn / TURN) ** 2
        value = total[None] - 0.3 * cost / (1 + 0.3 * cost)  # a jump costs at most as much as a frame's gain is worth
        steps.append(value.argmax(1))
        total = value.max(1) + now[:, 4] / scale
    best = int(total.argmax())
    track = [best]
    for step in reversed(steps):
        track.append(int(step[track[-1]]))
    return [places[index] for places, index in zip(frames, reversed(track))]


@dataclass(frozen=True)
class _Paths:
    """Paths `[n, frames]`, each about its own mean, and the motion `[n]` that each is of."""

    x: np.ndarray
    y: np.ndarray
    growth: np.ndarray
    angle: np.ndarray
    motion: np.ndarray


class MotionJudge:
    """Names the motion of a track: that of the nearest of many paths drawn anew, wherever they are in the frame.

    Args:
      frames: of a video. aspect: its width over its height.
    """

    def __init__(self, frames: int, aspect: float = 1.0):
        rng = generator(0x307)
        rows: list[tuple] = []
        for motion in range(len(MOTIONS)):
            for _ in range(PATHS):
                grounded = chance(rng, 0.5)
                path = draw_path(
                    rng,
                    MOTIONS[motion],
                    frames,
                    aspect=aspect,
                    lane=(0.0, 1.0),
                    floor=(0.6, 0.97),
                    grounded=grounded,
                    low=SIZES[0],
                    high=SIZES[1],
                )
                # A subject that is flatter than long stands lower than its square box would.
                drop = between(rng, 0.0, 0.35) * path.height if grounded else 0.0
                rows.append((path.x, path.y + drop, np.log(path.height), path.angle, motion))
        x, y, growth, angle, number = (np.array(column) for column in zip(*rows))
        centred = [values - values.mean(1, keepdims=True) for values in (x, y, growth)]
        self._paths = _Paths(*centred, angle, number)

    def __call__(self, track: list[Place]) -> str:
        """The motion of a track with as many places as the paths have frames."""
        return MOTIONS[int(self.distances(track).argmin())]

    def distances(self, track: list[Place]) -> np.ndarray:
        """How far the track is from the nearest path of each motion."""
        paths = self._paths
        far = np.zeros(paths.x.shape)
        measured = ([p.x for p in track], [p.y for p in track], np.log([p.size for p in track]))
        for values, theirs, unit in zip(measured, (paths.x, paths.y, paths.growth), (MOVE, MOVE, GROWTH)):
            difference = np.asarray(values)[None] - theirs
            # The two need not agree where they are, only on how it goes on; the median lets lost frames be lost.
            difference -= np.median(difference, axis=1, keepdims=True)
            far += (difference / unit) ** 2
        distance = (far / (1 + far)).mean(1)
        turned = np.exp(1j * (np.array([p.angle for p in track])[None] - paths.angle))
        distance += 1.5 * (1 - np.abs(turned.mean(1)))
        return np.array([distance[paths.motion == motion].min() for motion in range(len(MOTIONS))])
