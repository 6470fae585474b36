"""Per subject: is it missing, there twice, in another's place, or swapped with another? These scores are our own.

A detector gives instances: regions of a frame, each with the subject that it was found as (`claimed`, 0 if it was
found without a name). `similarity` says how much an instance looks like each subject's references. An instance is
*assigned* to the subject it looks most like, if that is at least `present`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

OVERLAP = 0.5  # share of the smaller box that two instances share when one is in the other's place


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Of each subject, float `[s]`: the share of frames in which it is missing, duplicated, overlapping, or swapped."""

    missing: Float[np.ndarray, "s"]
    duplicated: Float[np.ndarray, "s"]
    overlapping: Float[np.ndarray, "s"]
    swapped: Float[np.ndarray, "s"]


def presence(
    similarity: Float[np.ndarray, "f i s"],
    boxes: Float[np.ndarray, "f i 4"],
    claimed: Int[np.ndarray, "i"],
    *,
    present: float,
) -> Presence:
    """Counts of instances against subjects.

    missing: no instance is assigned to the subject. duplicated: two or more are. overlapping: an instance assigned to
    it shares `OVERLAP` of the smaller box with another instance. swapped: the instance found as this subject is
    assigned to another one.

    Args:
      similarity: of instance i in frame f with subject s + 1; NaN where the instance is not in the frame.
      boxes: left, top, right, bottom of the instances; not read where similarity is NaN.
      claimed: the subject (from 1) that each instance was found as; 0 unknown.
      present: similarity from which an instance is taken for a subject.
    """
    frames, instances, subjects = similarity.shape
    if not frames or not instances:
        return Presence(
            missing=np.ones(subjects), duplicated=np.zeros(subjects), overlapping=np.zeros(subjects),
            swapped=np.zeros(subjects),
        )  # fmt: skip
    there = ~np.isnan(similarity).any(-1)
    filled = np.where(there[..., None], similarity, -np.inf)
    best = np.where(there & (filled.max(-1) >= present), filled.argmax(-1) + 1, 0)
    of_subject = best[..., None] == np.arange(1, subjects + 1)  # [f, i, s]
    counts = of_subject.sum(1)
    overlap = _overlap(boxes) * (there[:, :, None] & there[:, None, :])
    crowded = (overlap * (1 - np.eye(instances))).max(-1) >= OVERLAP
    elsewhere = (best > 0) & (claimed > 0) & (best != claimed)
    swapped = [(elsewhere & (claimed == subject)).any(1).mean() for subject in range(1, subjects + 1)]
    return Presence(
        missing=(counts == 0).mean(0),
        duplicated=(counts > 1).mean(0),
        overlapping=(of_subject & crowded[..., None]).any(1).mean(0),
        swapped=np.array(swapped),
    )


def duplication(similarity: Float[np.ndarray, "f i s"]) -> float:
    """How much like a subject its second most similar instance is: frames' mean, of the subject where it is largest.

    A frame with less than two instances counts 0.
    """
    frames, instances, subjects = similarity.shape
    if instances < 2 or not frames:
        return 0.0
    second = np.sort(np.nan_to_num(similarity, nan=0.0), axis=1)[:, -2]
    return float(second.mean(0).max())


def swap(similarity: Float[np.ndarray, "f i s"], claimed: Int[np.ndarray, "i"]) -> float:
    """How much more the instances look like each other's subjects than like those they were found as; below 0 if less.

    The mean over frames, and over instances that were found by name, of the largest similarity with another subject
    minus that with its own. 0 with less than two subjects.
    """
    subjects = similarity.shape[2]
    named = np.flatnonzero(claimed)
    if subjects < 2 or not len(named):
        return 0.0
    own = similarity[:, named, claimed[named] - 1]
    others = similarity[:, named].copy()
    others[:, np.arange(len(named)), claimed[named] - 1] = -np.inf
    margin = others.max(-1) - own
    return float(np.nanmean(margin)) if not np.isnan(margin).all() else 0.0


def _overlap(boxes: np.ndarray) -> np.ndarray:
    """Of every two boxes of a frame, their common area over the smaller one's; `[f, i, i]`."""
    low = np.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = np.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(-1)
    return common / np.maximum(np.minimum(area[:, :, None], area[:, None]), 1e-9)
