"""What is done of a curation, on disk: one small file a source, one a clip, written whole or not at all.

A run that is killed at any point leaves whole files only; the next one does what is missing. The names are ids, so two
processes that do the same work write the same file.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.curation import pictures
from kaleido_jax.curation.encoding import encoder
from kaleido_jax.curation.records import Candidate, Clip, Source
from kaleido_jax.curation.stages import Shots
from kaleido_jax.errors import StorageError
from kaleido_jax.media.storage import written_whole

THUMBNAIL = 160  # pixels of the longer side


@dataclass(frozen=True)
class Store:
    """The work folder of an output folder."""

    folder: Path

    def shots_path(self, source: str) -> Path:
        return self.folder / "work" / "sources" / source[:2] / f"{source}.json"

    def clip_path(self, clip: str) -> Path:
        return self.folder / "work" / "clips" / clip[:2] / f"{clip}.npz"

    def write_shots(self, source: str, shots: Shots) -> None:
        write_bytes(self.shots_path(source), shots.to_json().encode())

    def read_shots(self, source: str) -> Shots | None:
        """What slicing found, or None where it has not been done."""
        try:
            return Shots.from_json(self.shots_path(source).read_text())
        except FileNotFoundError:
            return None

    def has_clip(self, clip: str) -> bool:
        return self.clip_path(clip).is_file()

    def write_clip(self, clip: Clip, fps: float, quality: int) -> None:
        """The clip's facts; and, where a subject of it is kept, its video, key frames, masks and plate."""
        members: dict[str, bytes] = {"facts.json": json.dumps(facts(clip), sort_keys=True).encode()}
        if len(clip.frames):
            small = Image.fromarray(np.ascontiguousarray(clip.frames[clip.keys[0]]))
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            members["thumbnail.png"] = pictures.png(np.asarray(small))
        if clip.dropped is None and clip.kept:
            members["video.mp4"] = encoder().mp4(clip.frames, round(fps), quality)
            for number, frame in enumerate(clip.key_frames):
                members[f"key-{number}.png"] = pictures.png(frame)
            for one in clip.kept:
                assert one.masks is not None
                members[f"mask-{one.id}.png"] = pictures.png(np.concatenate(one.masks).astype(np.uint8) * 255)
            if clip.plate is not None:
                members["plate.png"] = pictures.png(clip.plate)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)  # with a fixed date
        write_bytes(self.clip_path(clip.id), buffer.getvalue())

    def facts(self, clip: str) -> dict[str, Any]:
        """What `facts` said of the clip when it was written."""
        return json.loads(self._member(clip, "facts.json"))

    def thumbnail(self, clip: str) -> np.ndarray | None:
        """A small picture of any clip that could be decoded, the dropped ones too."""
        if "thumbnail.png" not in self._names(clip):
            return None
        return pictures.from_png(self._member(clip, "thumbnail.png"))

    def video(self, clip: str) -> bytes:
        return self._member(clip, "video.mp4")

    def key_frame(self, clip: str, number: int) -> np.ndarray:
        return pictures.from_png(self._member(clip, f"key-{number}.png"))

    def masks(self, clip: str, subject: str) -> np.ndarray:
        """bool [key frames, h, w]."""
        grey = pictures.from_png(self._member(clip, f"mask-{subject}.png"), "L") > 127
        keys = len(self.facts(clip)["keys"])
        return grey.reshape(keys, -1, grey.shape[-1])

    def plate(self, clip: str) -> np.ndarray:
        return pictures.from_png(self._member(clip, "plate.png"))

    def _names(self, clip: str) -> list[str]:
        with zipfile.ZipFile(self.clip_path(clip)) as archive:
            return archive.namelist()

    def _member(self, clip: str, name: str) -> bytes:
        try:
            with zipfile.ZipFile(self.clip_path(clip)) as archive:
                return archive.read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            reason = f"{type(error).__name__}: {error}"
            raise StorageError(f"{self.clip_path(clip)} cannot be read ({reason}); remove it and run again.") from None


def write_bytes(path: Path, content: bytes) -> None:
    """The file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def facts(clip: Clip) -> dict[str, Any]:
    """Everything of the clip but its pixels, as JSON can hold it."""
    source = clip.source
    return {
        "id": clip.id,
        "source": source_facts(source),
        "shot": clip.shot,
        "begin": clip.begin,
        "end": clip.end,
        "frames": len(clip.frames),
        "size": list(clip.frames.shape[1:3]),
        "keys": list(clip.keys),
        "caption": clip.caption,
        "mentions": [asdict(mention) for mention in clip.mentions],
        "plate": clip.plate is not None,
        "scores": dict(clip.scores),
        "dropped": None if clip.dropped is None else asdict(clip.dropped),
        "candidates": [_candidate_facts(one) for one in clip.candidates],
    }


def source_facts(source: Source) -> dict[str, Any]:
    return {
        "id": source.id,
        "path": os.path.basename(source.path),
        "dataset": source.dataset,
        "license": source.license,
        "url": source.url,
        "identity": source.identity,
        "extra": dict(source.extra),
    }


def _candidate_facts(one: Candidate) -> Mapping[str, Any]:
    seen = [] if one.masks is None else [round(float(mask.mean()), 6) for mask in one.masks]
    return {
        "id": one.id,
        "phrase": one.phrase,
        "category": one.category,
        "frame": one.frame,
        "box": list(one.box),
        "faces": [list(face) for face in one.faces],
        "seen": seen,
        "scores": dict(one.scores),
        "dropped": None if one.dropped is None else asdict(one.dropped),
    }
