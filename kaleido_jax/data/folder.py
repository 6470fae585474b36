"""A folder of files in the layout of Kaleido's release: videos/ID.mp4, labels/ID.txt, references/ID/ref1.png ...

Beside them may be weights.json, {ID: how often the sample is drawn, relative to the others}, as curation writes it.

Where the released loader drops all but a label's first line, takes a missing label for an empty one and skips frames by
whole strides, this one joins the lines, refuses the sample, and samples frames by their time stamps.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kaleido_jax.data.buckets import VideoBucket, longest
from kaleido_jax.errors import InputError, printable
from kaleido_jax.media.clips import read_video
from kaleido_jax.media.images import read_bytes, read_image
from kaleido_jax.media.references import fit_on_white

MAX_LABEL_BYTES = 1_000_000
MAX_WEIGHTS_BYTES = 1 << 30
WEIGHTS = "weights.json"
_REFERENCE = re.compile(r"ref([1-9]\d*)\.(png|jpg|jpeg|webp)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class FolderSample:
    """One sample of a folder as pixels, of one bucket. Every reference shows a subject of its own, from 1."""

    video: np.ndarray  # uint8 [frames, height, width, 3]
    references: list[tuple[np.ndarray, int]]  # uint8 [height, width, 3], fitted on white; the subject
    prompt: str
    masks: np.ndarray | None = None  # nothing says where the subjects are


def identities(folder: str | Path) -> list[str]:
    """The names of all samples, sorted. Raises InputError for a folder that has none."""
    videos = Path(folder) / "videos"
    found = sorted(path.stem for path in videos.glob("*.mp4")) if videos.is_dir() else []
    if not found:
        raise InputError(
            f"{printable(str(folder))} has no videos/*.mp4; the layout is videos/ID.mp4, labels/ID.txt and "
            "references/ID/ref1.png, ref2.png ..."
        )
    return found


def weights(folder: str | Path, names: Sequence[str]) -> list[float] | None:
    """How often to draw each of these samples, relative to each other; None if the folder says nothing of it.

    Raises:
      InputError: weights.json is no JSON object, or has no number above 0 for one of the samples.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        return None
    shown = printable(str(path))
    try:
        found = json.loads(read_bytes(path, MAX_WEIGHTS_BYTES, "the samples' weights"))
    except ValueError as error:
        raise InputError(f"{shown}: is no JSON ({error}).") from None
    if not isinstance(found, dict):
        raise InputError(f"{shown}: is no JSON object; write {{ID: weight}}.")
    for name in names:
        value = found.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{shown}: has {value!r} for {printable(name)}; write a number above 0 for every sample.")
    return [float(found[name]) for name in names]


def read_sample(
    folder: str | Path,
    identity: str,
    *,
    buckets: Sequence[VideoBucket],
    frames_per_second: int,
    most_references: int,
) -> FolderSample:
    """One sample in the bucket that its clip fits best.

    The clip is scaled to cover the bucket's size and cut around its middle; of its references the first
    `most_references` are taken, by their numbers.

    Raises:
      InputError: the clip, the label or every reference is missing or cannot be used, or the clip is too short.
    """
    folder = Path(folder)
    label = folder / "labels" / f"{identity}.txt"
    try:
        prompt = " ".join(read_bytes(label, MAX_LABEL_BYTES, "a label").decode("utf-8-sig").split())
    except UnicodeDecodeError:
        raise InputError(f"{printable(str(label))}: is not UTF-8 text.") from None
    if not prompt:
        raise InputError(f"{printable(str(label))}: holds no words.")
    pictures = folder / "references" / identity
    numbered = [(match, path) for path in pictures.glob("*") if (match := _REFERENCE.fullmatch(path.name))]
    chosen = [path for _, path in sorted(numbered, key=lambda pair: int(pair[0][1]))][:most_references]
    if not chosen:
        raise InputError(f"{printable(str(pictures))}: has no ref1.png.")
    path = folder / "videos" / f"{identity}.mp4"
    sizes = list(dict.fromkeys((bucket.height, bucket.width) for bucket in buckets))
    most = max(bucket.frames for bucket in buckets)
    video = read_video(path, sizes=sizes, frames=most, frames_per_second=frames_per_second)
    height, width = video.shape[1:3]
    bucket = longest(buckets, (height, width), len(video))
    if bucket is None:
        least = min(b.frames for b in buckets if (b.height, b.width) == (height, width))
        found = f"{len(video)} frames at {frames_per_second} a second"
        raise InputError(f"{printable(str(path))}: has {found}, and the shortest bucket takes {least}.")
    return FolderSample(
        video=video[: bucket.frames],
        references=[(fit_on_white(read_image(path), height, width), i) for i, path in enumerate(chosen, 1)],
        prompt=prompt,
    )
