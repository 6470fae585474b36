"""How steady a video is, from features of its frames or from its pixels."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Num, UInt8

from kaleido_jax.evaluation.metrics.similarity import unit

LATENT_FRAMES = 3  # the first ones, where references that are taken for frames show
TEMPORAL_FACTOR = 4  # frames a latent frame stands for, after the first, in Wan's autoencoders

Video = UInt8[np.ndarray, "f h w 3"]


def temporal_consistency(frames: Num[np.ndarray, "f d"]) -> float:
    """The mean cosine of neighbouring frames; 1 for a video of one frame."""
    rows = unit(frames)
    return float((rows[1:] * rows[:-1]).sum(-1).mean()) if len(rows) > 1 else 1.0


def first_latent_consistency(
    frames: Num[np.ndarray, "f d"], latent_frames: int = LATENT_FRAMES, factor: int = TEMPORAL_FACTOR
) -> float:
    """`temporal_consistency` of the first latent frames alone.

    The first latent frame is frame 0, each later one `factor` more. A reference that is taken for the first frames
    shows here and is thinned out in the mean of a whole video.
    """
    return temporal_consistency(frames[: 1 + (latent_frames - 1) * factor])


def vbench_consistency(frames: Num[np.ndarray, "f d"]) -> float:
    """VBench's subject consistency (of DINO's features) and background consistency (of CLIP's), of one video.

    The mean over frames but the first of (max(0, cosine to the one before) + max(0, cosine to the first)) / 2
    (arXiv:2311.17982, sections A.1 and A.2, and its code). 1 for a video of one frame.
    """
    if len(frames) < 2:
        return 1.0
    rows = unit(frames)
    before, first = (rows[1:] * rows[:-1]).sum(-1), rows[1:] @ rows[0]
    return float((np.maximum(before, 0) + np.maximum(first, 0)).mean() / 2)


def temporal_flickering(video: Video) -> float:
    """VBench's: (255 - the mean absolute difference of neighbouring frames) / 255. 1 for a video of one frame."""
    if len(video) < 2:
        return 1.0
    differences = [np.abs(b.astype(np.int16) - a).mean() for a, b in zip(video, video[1:])]
    return float((255 - np.mean(differences)) / 255)


def motion_smoothness(video: Video, interpolate: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """The form of VBench's motion smoothness: every second frame, told from the two beside it, against the real one.

    (255 - mean absolute difference) / 255. VBench's `interpolate` is the network AMT-S; 1 for less than three frames.

    Args:
      interpolate: two frames uint8 [h, w, 3] to the one in their middle, in 0 to 255.
    """
    middles = range(1, len(video) - 1, 2)
    if not middles:
        return 1.0
    errors = [np.abs(interpolate(video[i - 1], video[i + 1]).astype(np.float32) - video[i]).mean() for i in middles]
    return float((255 - np.mean(errors)) / 255)


def halfway(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The plainest interpolation: the mean of two frames."""
    return (before.astype(np.float32) + after.astype(np.float32)) / 2
