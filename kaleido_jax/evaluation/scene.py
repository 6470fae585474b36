"""Which of the world's scenes a video is set in: a small classifier of what is left when the subject is taken out.

It is fitted when it is made, on plates that are painted for it alone, in a few seconds and the same way every time:
colours on a coarse grid and how lively small patches are, random rectified features of those, and ridge regression to
the names.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from kaleido_jax.data import photographs
from kaleido_jax.data.drawing import between, chance, generator
from kaleido_jax.data.scenes import PHOTO, SCENES, paint_scene
from kaleido_jax.evaluation.matching import Place

NAMES = (*SCENES, PHOTO)
SIDE = 32  # pixels that a background is shrunk to
PLATES = 100  # painted of each scene
HIDDEN = 1500
RIDGE = 30.0
REACH = 0.62  # of a subject's size: what is hidden around its middle


def background(video: np.ndarray, track: Sequence[Place]) -> np.ndarray:
    """Float32 `[SIDE, SIDE, 3]`, 0 to 1: the median over frames of a uint8 video `[f, h, w, 3]` outside the subject.

    What the subject always hides is filled with what is beside it.
    """
    frames = np.stack([_shrunk(frame) for frame in video])
    hidden = np.stack([_disc(place.x, place.y, REACH * place.size, video.shape[2] / video.shape[1]) for place in track])
    always = hidden.all(0)
    hidden[:, always] = False
    pixels = np.ma.masked_array(frames, np.broadcast_to(hidden[..., None], frames.shape))
    return _filled(np.ma.median(pixels, axis=0).filled(0).astype(np.float32), always)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255


def _disc(x: float, y: float, radius: float, aspect: float) -> np.ndarray:
    middle = (np.arange(SIDE) + 0.5) / SIDE
    return ((middle[None] - x) * aspect) ** 2 + (middle[:, None] - y) ** 2 < radius**2


def _filled(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The hole's pixels become the nearest ones of their row that are not in it or else the mean."""
    picture = picture.copy()
    for row in np.flatnonzero(hole.any(1)):
        out, known = np.flatnonzero(hole[row]), np.flatnonzero(~hole[row])
        if len(known):
            nearest = known[np.abs(out[:, None] - known[None]).argmin(1)]
            picture[row, out] = picture[row, nearest]
        else:
            picture[row, out] = picture[~hole].mean(0) if not hole.all() else 0.5
    return picture


def _features(picture: np.ndarray) -> np.ndarray:
    """Of a background `[SIDE, SIDE, 3]`: a grid of colours, and how neighbours differ in cells of a coarser one."""
    cells = lambda x, count: x.reshape(count, SIDE // count, count, SIDE // count, -1).mean((1, 3))
    across = np.abs(np.diff(picture, axis=1, append=picture[:, -1:]))
    down = np.abs(np.diff(picture, axis=0, append=picture[-1:]))
    lively = np.sqrt(np.concatenate([cells(across, 4), cells(down, 4)], -1))
    fine = cells(picture, 8)
    # Scenes are layered: each row's mean colour and its spread say most.
    rows = np.concatenate([picture.mean(1), picture.std(1)], -1)
    return np.concatenate([fine.ravel(), 2 * lively.ravel(), rows.ravel()])


class SceneJudge:
    """Names the scene of a background."""

    def __init__(self, *, split: str = "train", with_photographs: bool = True):
        rng = generator(0x5CE2E)
        pictures = photographs.load(split) if with_photographs else None
        rows, labels = [], []
        for label, name in enumerate(NAMES):
            for _ in range(PLATES):
                plate = paint_scene(name, 2**55 + int(rng.random() * 2**50), 96, 96, pictures).picture
                if chance(rng, 0.5):  # generated videos are softer than real ones
                    plate = plate.filter(ImageFilter.GaussianBlur(between(rng, 0.5, 2.5)))
                hole = _disc(rng.random(), between(rng, 0.3, 0.9), between(rng, 0.0, 0.3), 1.0)
                rows.append(_features(_filled(_shrunk(np.asarray(plate)), hole)))
                labels.append(label)
        features, targets = np.array(rows), np.eye(len(NAMES))[labels]
        self._mean, self._spread = features.mean(0), features.std(0) + 0.02
        noise = np.random.Generator(np.random.PCG64(0x5CE2E))
        self._mix = noise.standard_normal((features.shape[1], HIDDEN)).astype(np.float32) / np.sqrt(features.shape[1])
        self._shift = noise.standard_normal(HIDDEN).astype(np.float32) * 0.5
        hidden = self._hidden(features)
        gram = hidden.T @ hidden + RIDGE * np.eye(hidden.shape[1])
        self._weights = np.linalg.solve(gram, hidden.T @ (targets - 1 / len(NAMES)))

    def _hidden(self, features: np.ndarray) -> np.ndarray:
        features = (features - self._mean) / self._spread
        return np.concatenate([np.maximum(features @ self._mix + self._shift, 0), features / 4], axis=-1)

    def __call__(self, picture: np.ndarray) -> str:
        """The scene of a `background`."""
        return NAMES[int((self._hidden(_features(picture)) @ self._weights).argmax())]
