"""Where the subjects are in a video of the procedural world, found from its pixels and from what they look like.

In place of Grounding DINO and Segment Anything, which the papers use: a subject whose looks are known is followed
through the video, and its own outline is the mask.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.data.sprites import Identity, Pose, place
from kaleido_jax.data.world import World
from kaleido_jax.errors import InputError, printable
from kaleido_jax.evaluation.matching import Artist
from kaleido_jax.evaluation.motion import follow

POSE = Pose(gait=0.25, reach=0.5)
FOUND = 0.0  # gain (see `matching`) above which a subject is taken to be there


@functools.cache
def _world(height: int, width: int) -> tuple[World, Artist]:
    world = World((height, width))
    return world, Artist(world)


def world_masks(video: np.ndarray, truth: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(instances uint8 `[f, h, w]`, subjects int `[i]`) of a video uint8 `[f, h, w, 3]`: one instance for each subject.

    Args:
      truth: of a manifest's case: `identities`, the numbers of its subjects in the world.

    Raises:
      InputError: truth names no identities.
    """
    numbers = truth.get("identities")
    if not isinstance(numbers, list) or not all(isinstance(n, int) and 0 <= n < 2**60 for n in numbers):
        raise InputError(f"world.identities is {printable(repr(numbers), 60)}; expected a list of whole numbers.")
    world, artist = _world(*video.shape[1:3])
    masks = np.zeros(video.shape[:3], np.uint8)
    for subject, number in enumerate(numbers, 1):
        _paint(masks, subject, video, world, artist, world.identity(number))
    return masks, np.arange(1, len(numbers) + 1)


def _paint(
    masks: np.ndarray, subject: int, video: np.ndarray, world: World, artist: Artist, identity: Identity
) -> None:
    """Writes `subject` into `masks` where the identity's outline lies in each frame."""
    height, width = video.shape[1:3]
    sprite = world.painter_of(identity).sprite(identity, POSE, fine=False)
    for frame, found in enumerate(follow(artist, video, identity)):
        canvas = Image.new("RGB", (width, height))
        at = (found.x * width, found.y * height, found.size * height, found.angle, found.mirror)
        placed = place(canvas, sprite, *at) if found.gain > FOUND else None
        if placed:
            alpha, (left, top) = placed
            seen = np.asarray(alpha) > 127
            masks[frame, top : top + seen.shape[0], left : left + seen.shape[1]][seen] = subject
