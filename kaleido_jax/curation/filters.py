"""The plain filters: each measures, keeps its scores, and drops what is outside the configured thresholds."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kaleido_jax.curation import pictures
from kaleido_jax.curation.records import Candidate, Clip
from kaleido_jax.curation.settings import Faces, Filters
from kaleido_jax.curation.taxonomy import PERSON, Taxonomy


def light(clip: Clip, settings: Filters) -> Clip:
    """Brightness of all frames, blur of the sharpest key frame, motion between frames."""
    grey = pictures.luma(clip.key_frames)
    brightness, blur = float(grey.mean()), max(pictures.blur(frame) for frame in grey)
    moves = pictures.motion(clip.frames)
    clip = clip.scored(brightness=brightness, blur=blur, motion=moves)
    if brightness < settings.brightness[0]:
        return clip.drop("light", "dark")
    if brightness > settings.brightness[1]:
        return clip.drop("light", "bright")
    if blur < settings.blur:
        return clip.drop("light", "blurred")
    if moves < settings.motion[0]:
        return clip.drop("light", "still")
    if moves > settings.motion[1]:
        return clip.drop("light", "restless")
    return clip


def taxonomy(clip: Clip, names: Taxonomy) -> Clip:
    """Finds the subjects that the caption names; a clip whose caption names none is dropped."""
    mentions = names.mentions(clip.caption)
    clip = replace(clip, mentions=mentions)
    return clip if mentions or clip.source.marks else clip.drop("taxonomy", "no known subject")


def detection(clip: Clip, settings: Filters) -> Clip:
    """Drops weak boxes, and all but the strongest few."""
    strong = lambda one: one.scores.get("detection", 1.0)
    order = sorted(clip.kept, key=lambda one: (-strong(one), one.id))
    most = {one.id for one in order[: settings.subjects]}

    def judge(one: Candidate) -> Candidate:
        if strong(one) < settings.detection:
            return one.drop("detection", "weak box")
        return one if one.id in most else one.drop("detection", "too many subjects")

    return clip.with_kept([judge(one) for one in clip.kept])


def size(clip: Clip, settings: Filters) -> Clip:
    """The subject's share of its frame, and how far its box is from the frame's border."""
    height, width = clip.frames.shape[1:3]

    def judge(one: Candidate) -> Candidate:
        area = float(one.masks[one.frame].mean()) if one.masks is not None else 0.0
        x0, y0, x1, y1 = one.box
        inside = min(x0 / width, y0 / height, 1 - x1 / width, 1 - y1 / height)
        one = one.scored(area=area, inside=inside)
        if area < settings.area[0]:
            return one.drop("size", "small")
        if area > settings.area[1]:
            return one.drop("size", "large")
        return one if inside >= settings.inside else one.drop("size", "cut off")

    return clip.with_kept([judge(one) for one in clip.kept])


def overlap(clip: Clip, settings: Filters) -> Clip:
    """Of two subjects whose masks are nearly the same, the smaller one is dropped."""
    kept = list(clip.kept)
    area = lambda one: int(one.masks[one.frame].sum()) if one.masks is not None else 0
    order = sorted(kept, key=lambda one: (-area(one), one.id))
    dropped: dict[str, Candidate] = {}
    scores = dict.fromkeys((one.id for one in kept), 0.0)
    for place, one in enumerate(order):
        for larger in order[:place]:
            if larger.id in dropped or one.masks is None or larger.masks is None:
                continue
            value = pictures.mask_overlap(one.masks[one.frame], larger.masks[one.frame])
            scores[one.id] = max(scores[one.id], value)
        if scores[one.id] > settings.overlap:
            dropped[one.id] = one.drop("overlap", "same as another")
    return clip.with_kept([dropped.get(one.id, one).scored(overlap=scores[one.id]) for one in kept])


def subject_light(clip: Clip, settings: Filters) -> Clip:
    """Brightness and blur inside each subject's mask."""
    keys = clip.key_frames

    def judge(one: Candidate) -> Candidate:
        if one.masks is None or not one.masks[one.frame].any():
            return one.drop("subject light", "empty")
        grey, mask = pictures.luma(keys[one.frame]), one.masks[one.frame]
        one = one.scored(brightness=float(grey[mask].mean()), blur=pictures.blur(grey, mask))
        if not settings.brightness[0] <= one.scores["brightness"] <= settings.brightness[1]:
            return one.drop("subject light", "dark or bright")
        return one if one.scores["blur"] >= settings.subject_blur else one.drop("subject light", "blurred")

    return clip.with_kept([judge(one) for one in clip.kept])


def category(clip: Clip, settings: Filters, names: Taxonomy, classify: Callable) -> Clip:
    """Asks a classifier whether the cut-out subject is what the caption says.

    classify: (pictures, labels) -> probabilities [pictures, labels] that sum to 1 over the labels.
    """
    kept = clip.kept
    if not kept:
        return clip
    shown = [cutout(clip, one) for one in kept]
    labels = names.categories
    table = np.asarray(classify(shown, labels), np.float64)
    column = {label: number for number, label in enumerate(labels)}

    def judge(one: Candidate, row: np.ndarray) -> Candidate:
        one = one.scored(category=float(row[column[one.category]]))
        return one if one.scores["category"] >= settings.category else one.drop("category", "another category")

    return clip.with_kept([judge(one, row) for one, row in zip(kept, table)])


def faces(clip: Clip, settings: Faces, names: Taxonomy, find: Callable) -> Clip:
    """People have to show a frontal face in their key frame; drawn people and everything else do not.

    find: pictures -> for each picture a list of faces with box, score, yaw and pitch in degrees.
    """
    people = [one for one in clip.kept if names.groups.get(one.category) == PERSON]
    if not people or names.is_drawn(clip.caption):
        return clip
    found = dict(zip((one.id for one in people), find([clip.key_frames[one.frame] for one in people])))

    def judge(one: Candidate) -> Candidate:
        if one.id not in found:
            return one
        inside = [face for face in found[one.id] if _centre_in(face.box, one.box)]
        if not inside:
            return one.scored(face=0.0).drop("faces", "no face")
        best = max(inside, key=lambda face: face.score)
        one = replace(one, faces=(best.box,)).scored(face=best.score, yaw=best.yaw, pitch=best.pitch)
        if best.score < settings.score:
            return one.drop("faces", "no face")
        frontal = abs(best.yaw) <= settings.yaw and abs(best.pitch) <= settings.pitch
        return one if frontal else one.drop("faces", "turned away")

    return clip.with_kept([judge(one) for one in clip.kept])


def cutout(clip: Clip, one: Candidate) -> np.ndarray:
    """The subject of its key frame on white, cut to its box, uint8 [h, w, 3]."""
    picture = clip.key_frames[one.frame]
    mask = one.masks[one.frame] if one.masks is not None else np.ones(picture.shape[:2], bool)
    x0, y0, x1, y1 = pictures.whole_box(one.box, *picture.shape[:2])
    return np.where(mask[..., None], picture, np.uint8(255))[y0:y1, x0:x1]


def _centre_in(inner: pictures.Box, outer: pictures.Box) -> bool:
    x, y = (inner[0] + inner[2]) / 2, (inner[1] + inner[3]) / 2
    return outer[0] <= x <= outer[2] and outer[1] <= y <= outer[3]
