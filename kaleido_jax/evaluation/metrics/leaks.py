"""What should not be in a video: the reference pictures themselves. These scores are our own; lower is better."""

import numpy as np
from jaxtyping import Bool, Num
from PIL import Image

from kaleido_jax.evaluation.metrics.similarity import cosines

SIDE = 16  # pixels that a picture is shrunk to before it is compared
COPIED = 0.9  # correlation from which a subject counts as the reference's own picture


def correlation_features(pictures: list[np.ndarray]) -> np.ndarray:
    """Features `[n, SIDE * SIDE * 3]` of uint8 pictures `[h, w, 3]` whose cosine is the correlation of shrunk pixels.

    Each picture is squeezed into a square, and the mean of each of its channels is taken away.
    """
    rows = [
        np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
        for picture in pictures
    ]
    small = np.stack(rows)
    return (small - small.mean((1, 2), keepdims=True)).reshape(len(small), -1)


def reference_leak(frames: Num[np.ndarray, "f d"], references: Num[np.ndarray, "r d"]) -> float:
    """How much the most similar frame looks like the most similar whole reference picture: about 1 for one shown."""
    return float(max(cosines(frames, references).max(), 0.0))


def first_frame_leak(frames: Num[np.ndarray, "f d"], references: Num[np.ndarray, "r d"]) -> float:
    """`reference_leak` of the first frame, where models that hold references for frames show them."""
    return reference_leak(frames[:1], references)


def copy_paste_rate(
    regions: Num[np.ndarray, "f d"], seen: Bool[np.ndarray, "f"], references: Num[np.ndarray, "r d"]
) -> float:
    """The share of frames in which the subject, cut out, is a reference's own picture: same pose, same view.

    A correlation of `COPIED` or more with one of its references, mirrored ones left to the caller. Frames without the
    subject count as not copied.
    """
    if not len(seen):
        return 0.0
    copied = np.zeros(len(seen), bool)
    if seen.any():
        copied[seen] = cosines(regions[seen], references).max(1) >= COPIED
    return float(copied.mean())
