"""Detectors without weights: what moves before a camera that stands still, GrabCut, and plain image processing.

They know no words: they find how many subjects there are, and can name them only where that leaves no doubt. OpenCV
(extra `curation`) is used on one thread with a fixed seed, so the same clip gives the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from kaleido_jax.curation import pictures
from kaleido_jax.curation.models.protocol import Face, Found
from kaleido_jax.curation.records import fraction

NOISE = 14  # levels of one channel that compression changes


def opencv() -> Any:
    """OpenCV on one thread with its random numbers begun anew."""
    import cv2  # pyright: ignore[reportMissingImports]

    cv2.setNumThreads(1)
    cv2.setRNGSeed(0)
    return cv2


def filled(mask: Bool[np.ndarray, "h w"], closing: int) -> Bool[np.ndarray, "h w"]:
    """The mask with gaps up to `closing` pixels closed, holes filled, and specks of less than that removed."""
    cv2 = opencv()
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (closing, closing))
    grey = np.pad(mask.astype(np.uint8), closing)
    grey = cv2.morphologyEx(grey, cv2.MORPH_CLOSE, kernel)
    contours, _ = cv2.findContours(grey, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(grey, contours, -1, 1, cv2.FILLED)
    small = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    grey = cv2.morphologyEx(grey, cv2.MORPH_OPEN, small)
    return grey[closing:-closing, closing:-closing] > 0


def grabcut(
    picture: UInt8[np.ndarray, "h w 3"], hints: UInt8[np.ndarray, "h w"], rounds: int
) -> Bool[np.ndarray, "h w"]:
    """GrabCut (Rother et al., 2004) from a mask of OpenCV's hints: 0 and 1 are sure, 2 and 3 probable; odd is subject.

    Hints without any subject or any background come back as they are.
    """
    cv2 = opencv()
    subject = hints % 2 == 1
    if subject.sum() < 10 or (~subject).sum() < 10:
        return subject
    mask, background, foreground = hints.copy(), np.zeros((1, 65)), np.zeros((1, 65))
    bgr = np.ascontiguousarray(picture[..., ::-1])
    cv2.grabCut(bgr, mask, None, background, foreground, rounds, cv2.GC_INIT_WITH_MASK)
    return mask % 2 == 1


def moving(
    frames: UInt8[np.ndarray, "f h w 3"],
) -> tuple[Bool[np.ndarray, "f h w"], Bool[np.ndarray, "h w"], np.ndarray]:
    """What moves before a still camera: (subject in each frame, ever touched by it, difference from the scene).

    The scene is the median over time. A place that a subject covers most of the time is filled in from its outline.
    """
    closing = max(3, round(min(frames.shape[1:3]) / 24)) | 1
    plate = np.median(frames, axis=0)
    difference = np.abs(frames.astype(np.int16) - plate.astype(np.int16)).max(-1)
    touched = filled((frames.max(0).astype(np.int16) - frames.min(0)).max(-1) > 2 * NOISE, closing)
    changed = (difference > NOISE) & ~shaded(frames, plate)
    return np.stack([filled(frame, closing) & touched for frame in changed]), touched, difference


def shaded(frames: UInt8[np.ndarray, "f h w 3"], plate: np.ndarray) -> Bool[np.ndarray, "f h w"]:
    """Where a frame is the scene, but darker by nearly the same factor in every channel: shadows."""
    factor = (frames.astype(np.float32) + 8) / (plate.astype(np.float32) + 8)
    darker = (factor.mean(-1) > 0.4) & (factor.mean(-1) < 0.97)
    return darker & (factor.max(-1) - factor.min(-1) < 0.12)


def parts(mask: Bool[np.ndarray, "h w"], least: float) -> list[np.ndarray]:
    """The connected parts of at least `least` of the picture, the largest first."""
    cv2 = opencv()
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    areas = np.bincount(labels.ravel(), minlength=count)[1:]
    order = [int(number) for number in np.argsort(-areas, kind="stable") if areas[number] >= least * mask.size]
    return [labels == number + 1 for number in order]


@dataclass(frozen=True, kw_only=True)
class MovingSubjects:
    """Boxes of what moves; where nothing does, of what stands out in the middle, with the score `still`.

    A phrase is given its subject only if there is no doubt: one phrase and one subject, or as many subjects as phrases
    that all say the same. least: the smallest subject, as a share of the picture.
    """

    least: float = 0.01
    still: float = 0.2

    def load(self) -> "MovingSubjects":
        return self

    def detect(self, frames: np.ndarray, keys: Sequence[int], phrases: Sequence[str]) -> list[Found | None]:
        if len(set(phrases)) > 1 or not phrases:
            return [None] * len(phrases)  # several names, and nothing here that could tell who is who
        seen, touched, difference = moving(frames)
        if touched.mean() < self.least:
            box = pictures.box_of(standing_out(frames[keys[0]]))
            found = Found(boxes=(box,) * len(keys), scores=(self.still,) * len(keys))
            return [found if len(phrases) == 1 and box[2] > box[0] else None] * len(phrases)
        wanted = len(phrases)
        boxes: list[list[pictures.Box | None]] = [[] for _ in phrases]
        scores: list[list[float]] = [[] for _ in phrases]
        for key in keys:
            blobs = parts(seen[key], self.least)
            if wanted == 1 and blobs:
                # Small pieces beside the largest are its own; a second one of some size is another subject.
                large = [blob for blob in blobs if blob.sum() > 0.25 * blobs[0].sum()]
                blobs = [np.any(blobs, axis=0)] if len(large) == 1 else []
            if len(blobs) != wanted:
                blobs = []
            blobs.sort(key=lambda blob: pictures.box_of(blob)[0])
            for place in range(wanted):
                blob = blobs[place] if blobs else None
                boxes[place].append(None if blob is None else pictures.box_of(blob))
                scores[place].append(0.0 if blob is None else contrast(difference[key], blob))
        return [
            Found(boxes=tuple(row), scores=tuple(values)) if any(box is not None for box in row) else None
            for row, values in zip(boxes, scores)
        ]


def contrast(difference: np.ndarray, mask: Bool[np.ndarray, "h w"]) -> float:
    """How clearly what moves differs from the scene behind it, in [0, 1]: 1 is a quarter of all levels."""
    return float(min(1.0, np.minimum(difference[mask], 128).mean() / 64)) if mask.any() else 0.0


def standing_out(picture: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """What differs from the colours at the picture's border, by GrabCut from an ellipse in the middle."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    middle = ((y + 0.5) / height - 0.5) ** 2 + ((x + 0.5) / width - 0.5) ** 2 < 0.3**2
    hints = np.where(middle, 3, 2).astype(np.uint8)
    edge = max(2, min(height, width) // 24)
    hints[:edge], hints[-edge:], hints[:, :edge], hints[:, -edge:] = 0, 0, 0, 0
    blobs = parts(filled(grabcut(picture, hints, 4), 3), 0.01)
    return blobs[0] if blobs else np.zeros((height, width), bool)


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """Masks inside boxes: what moves is a first guess, GrabCut finds the outline. rounds: of GrabCut."""

    rounds: int = 3

    def load(self) -> "Cutter":
        return self

    def segment(self, frames: np.ndarray, keys: Sequence[int], found: Sequence[Found]) -> np.ndarray:
        masks = np.zeros((len(found), len(keys), *frames.shape[1:3]), bool)
        seen, touched, difference = moving(frames)
        is_moving = touched.mean() >= 0.01
        # Where a place is free in most frames, the scene is known, and what looks like it is not the subject.
        known = seen.mean(0) < 0.4
        for place, one in enumerate(found):
            for number, (key, box) in enumerate(zip(keys, one.boxes)):
                if box is not None:
                    guess, possible = (seen[key], touched) if is_moving else (None, None)
                    if possible is not None:
                        possible = possible & ~(known & ~seen[key] & (difference[key] <= NOISE))
                    masks[place, number] = self._cut(frames[key], box, guess, possible)
        return masks

    def _cut(self, picture, box: pictures.Box, guess, possible) -> np.ndarray:
        height, width = picture.shape[:2]
        pad = max(2, round(min(height, width) / 48))
        x0, y0, x1, y1 = pictures.whole_box((box[0] - pad, box[1] - pad, box[2] + pad, box[3] + pad), height, width)
        inside = np.zeros((height, width), bool)
        inside[y0:y1, x0:x1] = True
        hints = np.zeros((height, width), np.uint8)
        if guess is None:
            hints[inside] = 3
        else:
            hints[inside & (possible | pictures.grown(guess, 1))] = 2
            hints[inside & guess] = 3
            hints[inside & ~pictures.grown(~guess, pad)] = 1
        blobs = parts(filled(grabcut(picture, hints, self.rounds), 3), 0.002)
        return (
            np.any([blob for blob in blobs if blob.sum() > 0.1 * blobs[0].sum()], axis=0) if blobs else inside & False
        )


@dataclass(frozen=True, kw_only=True)
class Smear:
    """Fills holes from their borders (Telea, 2004). radius: in pixels."""

    radius: float = 4.0

    def load(self) -> "Smear":
        return self

    def paint(self, picture: UInt8[np.ndarray, "h w 3"], hole: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
        cv2 = opencv()
        return cv2.inpaint(np.ascontiguousarray(picture), hole.astype(np.uint8), self.radius, cv2.INPAINT_TELEA)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Another pose without a model: the cut-out turned, mirrored, stretched and lit in another way.

    angle: the most, in degrees. stretch: the most, as a factor.
    """

    angle: float = 25.0
    stretch: float = 1.2

    def load(self) -> "Turn":
        return self

    def vary(self, picture: np.ndarray, mask: np.ndarray, phrase: str, seed: str) -> tuple[np.ndarray, np.ndarray]:
        draw = lambda what: fraction("turn", what, seed)
        cut = np.dstack([picture, mask.astype(np.uint8) * 255])
        if draw("mirror") < 0.5:
            cut = np.ascontiguousarray(cut[:, ::-1])
        wide = self.stretch ** (2 * draw("stretch") - 1)
        size = (max(2, round(cut.shape[1] * wide)), max(2, round(cut.shape[0] / wide)))
        angle = self.angle * (2 * draw("angle") - 1)
        turned = Image.fromarray(cut).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(turned.rotate(angle, Image.Resampling.BICUBIC, expand=True))
        light = 0.8 + 0.4 * draw("light")
        lit = np.clip(pixels[..., :3].astype(np.float32) * light, 0, 255).astype(np.uint8)
        return lit, pixels[..., 3] > 127


@dataclass(frozen=True, kw_only=True)
class FrontalFaces:
    """Faces that look into the camera, by the cascade that scikit-image carries (Viola and Jones, 2001; extra `data`).

    It knows no other faces, so what it finds has a turn of 0 and, as it gives no probabilities, a score of 1.
    least: the smallest face, as a share of the picture's shorter side. side: pictures are searched at this shorter side
    at most.
    """

    least: float = 0.12
    side: int = 256

    def load(self) -> "_FrontalFaces":
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade

        return _FrontalFaces(self, Cascade(lbp_frontal_face_cascade_filename()))


class _FrontalFaces:
    def __init__(self, settings: FrontalFaces, cascade: Any):
        self._settings, self._cascade = settings, cascade

    def find(self, pictures: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces in each picture, the largest first."""
        return [self._faces(picture) for picture in pictures]

    def _faces(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Face]:
        height, width = picture.shape[:2]
        scale = min(1.0, self._settings.side / min(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BILINEAR))
        shorter = min(small.shape[:2])
        least = max(24, round(self._settings.least * shorter))  # the cascade's window is 24 pixels
        if least > shorter:
            return []
        found = self._cascade.detect_multi_scale(
            small, scale_factor=1.15, step_ratio=1.0, min_size=(least, least), max_size=(shorter, shorter)
        )
        boxes = [(one["c"], one["r"], one["c"] + one["width"], one["r"] + one["height"]) for one in found]
        boxes.sort(key=lambda box: (box[0] - box[2], box))
        to_picture = lambda box: tuple(float(side) / scale for side in box)
        return [Face(box=to_picture(box), score=1.0, yaw=0.0, pitch=0.0) for box in boxes]
