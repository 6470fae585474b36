"""All that metrics look at of one case, each thing computed when it is first asked for and once."""

import functools
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kaleido_jax.errors import InputError, printable
from kaleido_jax.evaluation.detection import world_masks
from kaleido_jax.evaluation.encoders import ClipText, Encoder
from kaleido_jax.evaluation.faces import FaceFeatures, read_points
from kaleido_jax.evaluation.metrics.similarity import cosines
from kaleido_jax.evaluation.quality import ImagingQuality
from kaleido_jax.evaluation.runs import RunCase
from kaleido_jax.evaluation.smoothness import MotionSmoothness
from kaleido_jax.evaluation.video_text import VideoText
from kaleido_jax.evaluation.videos import Files, Shown
from kaleido_jax.media.images import read_bytes
from kaleido_jax.models.vision import Preprocessing

MAX_FEATURE_BYTES = 500_000_000
PLAIN = 0.02  # of a reference: a background with less that is not white is none
NO_BACKGROUND = "no reference has a background that can be told from its subject"


class NotApplicable(Exception):
    """A case lacks what a metric needs; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What a run is measured with.

    encoders: by role. text: CLIP's text tower, for CLIP-T. features: folders of features that other programs made, by
    name: <case>.npz with `frames` [f, d] and `references` [r, d], and `seen` bool [f] where a face was found.
    face_encoders, faces: networks by name in place of features, and the folder of the faces' points (`read_points`).
    viclip: for VBench's overall consistency. musiq: for its imaging quality. amt: for its motion smoothness. head:
    (weight [1, d], bias [1]) of the aesthetic predictor. temporal_role: the encoder of temporal consistency.
    world_detector: whether cases of the procedural world without masks are searched for their subjects.
    present: similarity from which an instance is taken for a subject. undetected: what a frame counts without the
    subject, "zero" or "skip". over_references: "mean" or "max", of S2V Decoupling.
    """

    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    text: ClipText | None = None
    features: Mapping[str, Path] = field(default_factory=dict)
    face_encoders: Mapping[str, FaceFeatures] = field(default_factory=dict)
    faces: Path | None = None
    viclip: VideoText | None = None
    musiq: ImagingQuality | None = None
    amt: MotionSmoothness | None = None
    head: tuple[np.ndarray, np.ndarray] | None = None
    temporal_role: str = "clip"
    world_detector: bool = False
    present: float = 0.5
    undetected: str = "zero"
    over_references: str = "mean"

    @property
    def networks(self) -> dict[str, VideoText | ImagingQuality | MotionSmoothness | None]:
        """What scores whole videos, by role."""
        return {"viclip": self.viclip, "musiq": self.musiq, "amt": self.amt}

    def lacks_faces(self, name: str) -> str | None:
        """What there must be for features of faces, or None if it is there."""
        if name in self.features or (name in self.face_encoders and self.faces is not None):
            return None
        return f"there are no {name} features (--features {name}=FOLDER, or --encoder {name}=PATH with --faces FOLDER)"


def cut_out(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What `mask` bool `[h, w]` shows of a picture, in the smallest square around it, on white."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inner = np.where(mask[top:bottom, left:right, None], picture[top:bottom, left:right], 255).astype(np.uint8)
    side = max(inner.shape[:2])
    canvas = np.full((side, side, 3), 255, np.uint8)
    y, x = (side - inner.shape[0]) // 2, (side - inner.shape[1]) // 2
    canvas[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return canvas


def without(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture with white where `mask` bool `[h, w]` is true."""
    return np.where(mask[..., None], 255, picture).astype(np.uint8)


def backgrounds(
    case: RunCase, references: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]
) -> list[np.ndarray]:
    """What is around the subjects of those references that show more there than white, the subjects filled white."""
    known = [
        without(picture, mask)
        for reference, picture, mask in zip(case.references, references, masks)
        if reference.subject and mask is not None
    ]
    return [picture for picture in known if (picture < 250).any(-1).mean() >= PLAIN]


def prompts_of(prompt: str, pictures: int) -> list[str]:
    """The prompt of each picture of a group, which " || " divides, or the one of all frames."""
    parts = prompt.split(" || ")
    return parts if len(parts) == pictures > 1 else [prompt]


class Evidence:
    """One case, its video, and what the tools see in it."""

    def __init__(self, case: RunCase, tools: Tools, shown: Shown | None = None):
        """Reads the case's files unless what they show is given. Raises InputError for a missing or broken video."""
        self.case, self.tools = case, tools
        self._shown = Files(case) if shown is None else shown
        self.video = self._shown.video
        self._cache: dict[tuple, object] = {}

    def frames(self, role: str, preprocessing: Preprocessing | None = None) -> np.ndarray:
        """Features `[f, d]` of the whole frames."""
        return self._once(("frames", role, preprocessing), lambda: self._encode(role, list(self.video), preprocessing))

    @functools.cached_property
    def references(self) -> list[np.ndarray]:
        """The reference pictures. Raises NotApplicable if there are none."""
        if not self.case.references:
            raise NotApplicable("the case has no references")
        return self._shown.references

    def reference_features(self, role: str) -> np.ndarray:
        """Features `[r, d]` of the whole reference pictures."""
        return self._once(("references", role), lambda: self._encode(role, self.references))

    @functools.cached_property
    def subjects(self) -> list[tuple[np.ndarray, int]]:
        """(what shows the subject, subject) of each reference that shows one; all of it where its mask is unknown."""
        found = []
        for reference, picture, mask in zip(self.case.references, self.references, self._shown.reference_masks):
            if reference.subject:
                known = mask is not None and mask.any()
                found.append((cut_out(picture, mask) if known else picture, reference.subject))
        if not found:
            raise NotApplicable("no reference shows a subject")
        return found

    def reference_subjects(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """Features `[r, d]` of the subjects cut out of the references, and whose they are, int `[r]`."""
        pictures, numbers = zip(*self.subjects)
        return self._once(("subjects", role), lambda: self._encode(role, list(pictures))), np.array(numbers)

    @functools.cached_property
    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Instances uint8 `[f, h, w]` and the subject that each was found as. NotApplicable if there are none."""
        masks = self._shown.masks
        if masks is None and self.tools.world_detector and self.case.world is not None:
            masks = world_masks(self.video, self.case.world)
        if masks is None:
            raise NotApplicable("the case has no masks, which tell the subjects from the background")
        return masks

    @functools.cached_property
    def crops(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The subjects cut out of the frames, and which rows of bool `[f, s]` they are."""
        instances, claimed = self.masks
        count = max(self.case.subjects, 1)
        of = [np.isin(instances, np.flatnonzero(claimed == subject + 1) + 1) for subject in range(count)]
        regions = np.stack(of, axis=1)  # [f, s, h, w]
        seen = regions.any((2, 3))
        return [cut_out(self.video[f], regions[f, s]) for f, s in zip(*np.nonzero(seen))], seen

    def regions(self, role: str) -> tuple[np.ndarray, np.ndarray]:
        """Features `[f, s, d]` of each subject cut out of each frame, and where it is seen, bool `[f, s]`."""
        pictures, seen = self.crops
        return self._once(("regions", role), lambda: self._spread(role, pictures, seen)), seen

    def instances(self, role: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(similarity `[f, i, s]` of every instance with every subject's references, boxes `[f, i, 4]`, claimed)."""
        masks, claimed = self.masks
        references, numbers = self.reference_subjects(role)
        count = len(claimed)
        there = (
            np.stack([(masks == i + 1).any((1, 2)) for i in range(count)], 1) if count else np.zeros((len(masks), 0))
        )
        there = there.astype(bool)
        pictures = [cut_out(self.video[f], masks[f] == i + 1) for f, i in zip(*np.nonzero(there))]
        similarity = np.full((len(masks), count, self.case.subjects), np.nan)
        boxes = np.zeros((len(masks), count, 4))
        if pictures:
            rows = self._once(("instances", role), lambda: self._encode(role, pictures))
            each = cosines(rows, references)
            of_subject = [
                each[:, numbers == s + 1].max(1) if (numbers == s + 1).any() else np.full(len(each), -1.0)
                for s in range(self.case.subjects)
            ]
            similarity[there] = np.stack(of_subject, 1)
            boxes[there] = [_box(masks[f] == i + 1) for f, i in zip(*np.nonzero(there))]
        return similarity, boxes, claimed

    def backgrounds(self, role: str) -> np.ndarray:
        """Features `[f, d]` of the frames with every instance filled white."""
        instances, _ = self.masks
        pictures = lambda: [without(frame, mask > 0) for frame, mask in zip(self.video, instances)]
        return self._once(("backgrounds", role), lambda: self._encode(role, pictures()))

    def reference_backgrounds(self, role: str) -> np.ndarray:
        """Features `[r, d]` of what is around the subjects of those references that show more there than white."""
        found = backgrounds(self.case, self.references, self._shown.reference_masks)
        if not found:
            raise NotApplicable(NO_BACKGROUND)
        return self._once(("reference backgrounds", role), lambda: self._encode(role, found))

    @functools.cached_property
    def text(self) -> np.ndarray:
        """CLIP's features `[n, d]` of the prompt: one row, or one for each picture of a group (`prompts_of`)."""
        if self.tools.text is None:
            raise NotApplicable("there is no CLIP with a text tower")
        if not self.case.prompt:
            raise NotApplicable("the case has no prompt")
        prompts = prompts_of(self.case.prompt, len(self.video) if self.case.video.is_dir() else 0)
        return np.stack([self.tools.text(prompt) for prompt in prompts])

    def faces(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(frames `[f, d]`, where a face is seen bool `[f]`, references `[r, d]`): features of faces by a network, or
        that another program has computed."""
        made = self._foreign if name in self.tools.features else self._faces
        return self._once(("faces", name), lambda: made(name))

    def _faces(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lacking = self.tools.lacks_faces(name)
        if lacking:
            raise NotApplicable(lacking)
        path = (self.tools.faces or Path()) / f"{self.case.id}.npz"
        if not path.is_file():
            raise NotApplicable(f"there is no {path.name} among the points of faces")
        pictures = self._shown.references
        frame_points, reference_points = read_points(path, len(self.video), len(pictures))
        found = []
        for shown, points in ((self.video, frame_points), (pictures, reference_points)):
            seen = np.isfinite(points).all((1, 2))
            there = [picture for picture, has in zip(shown, seen) if has]
            rows = self.tools.face_encoders[name](there, points[seen]) if there else np.zeros((0, 1))
            spread = np.zeros((len(seen), rows.shape[1]))
            spread[seen] = rows
            found.append((spread, seen))
        (frames, seen), (references, known) = found
        if pictures and not known.any():
            raise NotApplicable("no reference shows a face")
        references = references[known]
        if not seen.any():
            frames = np.zeros((len(frames), references.shape[1] if len(references) else 1))
        return frames, seen, references

    def _foreign(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        path = self.tools.features[name] / f"{self.case.id}.npz"
        if not path.is_file():
            raise NotApplicable(f"there is no {path.name} among the {name} features")
        try:
            with np.load(io.BytesIO(read_bytes(path, MAX_FEATURE_BYTES, "features")), allow_pickle=False) as file:
                frames, references = file["frames"], file["references"]
                seen = file["seen"].astype(bool) if "seen" in file else np.ones(len(frames), bool)
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{printable(str(path))}: holds no features that can be read ({error}).") from None
        if frames.ndim != 2 or references.shape[1:] != frames.shape[1:] or seen.shape != frames.shape[:1]:
            raise InputError(
                f"{printable(str(path))}: frames are {list(frames.shape)}, references {list(references.shape)}, seen "
                f"{list(seen.shape)}; expected [f, d], [r, d] and [f]."
            )
        return frames, seen, references

    def _spread(self, role: str, pictures: list[np.ndarray], seen: np.ndarray) -> np.ndarray:
        if not pictures:
            return np.zeros((*seen.shape, 1))
        rows = self._encode(role, pictures)
        out = np.zeros((*seen.shape, rows.shape[1]))
        out[seen] = rows
        return out

    def _encode(self, role: str, pictures: list[np.ndarray], preprocessing: Preprocessing | None = None) -> np.ndarray:
        if role not in self.tools.encoders:
            raise NotApplicable(f"there is no encoder for the role {role} (--encoder {role}=PATH)")
        return self.tools.encoders[role](pictures, preprocessing)

    def _once(self, key: tuple, make: Callable):
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def _box(mask: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom of what is true in bool `[h, w]`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
