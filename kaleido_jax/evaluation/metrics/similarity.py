"""Cosines between features, and what the papers average of them.

Features are float arrays `[n, d]`, one row a picture; everything is computed in float64.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from kaleido_jax.names import lookup

# What a frame counts in which the subject was not found.
UNDETECTED = ("zero", "skip")


def cosines(a: Num[np.ndarray, "n d"], b: Num[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """The cosine of every row of `a` with every row of `b`; 0 where one of them is zero."""
    return unit(a) @ unit(b).T


def unit(x: Num[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length 1; a row of zeros stays."""
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def reference_similarity(frames: Num[np.ndarray, "f d"], references: Num[np.ndarray, "r d"]) -> float:
    """CLIP-I and DINO-I: the mean cosine over all pairs of a frame and a reference (DreamBooth, arXiv:2208.12242)."""
    return float(cosines(frames, references).mean())


def text_similarity(frames: Num[np.ndarray, "f d"], text: Num[np.ndarray, "n d"]) -> float:
    """CLIP-T: the mean cosine of the frames and the prompt, or of each picture and its own where text has as many rows.

    Torchmetrics' CLIP score is 100 of it, not below 0.
    """
    return float((unit(frames) * unit(text)).sum(-1).mean())


def pairwise_similarity(pictures: Num[np.ndarray, "n d"]) -> float:
    """CharaConsist's CLIP-I, CLIP-I-fg, CLIP-I-bg and ID Sim: the mean cosine over all pairs of different pictures of
    one character. Raises ValueError for less than two pictures."""
    count = len(pictures)
    if count < 2:
        raise ValueError(f"there are {count} pictures; similarity within a set needs at least 2.")
    return float(cosines(pictures, pictures)[np.triu_indices(count, 1)].mean())


def region_similarity(
    regions: Num[np.ndarray, "f s d"],
    seen: Bool[np.ndarray, "f s"],
    references: Num[np.ndarray, "r d"],
    subjects: Int[np.ndarray, "r"],
    *,
    over_references: str,
    undetected: str = "zero",
) -> Float[np.ndarray, "s"]:
    """How much the region of each subject looks like its references, averaged over frames.

    With over_references="max" the mean over subjects is Kaleido's S2V Consistency (section 5.2: "for each frame the
    maximum similarity with reference images is computed and averaged"); with "mean" it is AnyID's Ele-CLIP and Ele-DINO
    and, of faces, an identity score over all references.

    Args:
      regions: features of subject s + 1 cut out of each frame; rows that are not `seen` are not read.
      references: features of the subjects cut out of the references; subjects: whose, from 1.
      over_references: "max" or "mean" over a subject's references in a frame.
      undetected: a frame without the subject counts 0 ("zero") or not at all ("skip"; 0 if it is in no frame).

    Returns:
      One value a subject; NaN for a subject without a reference.
    """
    reduce = lookup({"max": np.max, "mean": np.mean}, over_references, "way to reduce over references")
    lookup(dict.fromkeys(UNDETECTED), undetected, "rule for undetected subjects")
    values = np.full(regions.shape[1], np.nan)
    for subject in range(regions.shape[1]):
        mine = references[subjects == subject + 1]
        if len(mine) and len(regions):
            found = seen[:, subject]
            each = np.zeros(len(regions))
            if found.any():
                each[found] = reduce(cosines(regions[found, subject], mine), axis=1)
            counted = found if undetected == "skip" else np.ones(len(regions), bool)
            values[subject] = each[counted].mean() if counted.any() else 0.0
    return values


def s2v_decoupling(
    backgrounds: Num[np.ndarray, "f d"], references: Num[np.ndarray, "r d"], *, over_references: str = "mean"
) -> float:
    """Kaleido's S2V Decoupling (section 5.2): 1 - the similarity of the video's background to the references'.

    The paper does not say how several references count: "mean", or "max" for the one that is copied most.
    """
    reduce = lookup({"max": np.max, "mean": np.mean}, over_references, "way to reduce over references")
    return float(1 - reduce(cosines(backgrounds, references), axis=1).mean())


def shifted(cosine: float) -> float:
    """A cosine moved from [-1, 1] to [0, 1]."""
    return (1 + cosine) / 2
