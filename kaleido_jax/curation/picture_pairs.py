"""Pairs of pictures as training data: each view of Subject200K's composites with the other one as its reference."""

from collections.abc import Mapping
from pathlib import Path

from kaleido_jax.curation import pictures
from kaleido_jax.curation.encoding import encoder
from kaleido_jax.curation.readers.tables import Composite, subject200k
from kaleido_jax.curation.store import write_bytes
from kaleido_jax.errors import InputError

RATED = ("compositeStructure", "objectConsistency", "imageQuality")
LEAST = 5  # of 5: what the data set's authors keep
QUALITY = 14  # as `settings.Frames`


def why_not(composite: Composite) -> str | None:
    """Why the composite is no training data, or None."""
    if not all(caption.split() for caption in composite.captions):
        return "no caption"
    if not composite.valid:
        return "captions found wrong"
    if any(composite.ratings.get(name, 0) < LEAST for name in RATED):
        return f"rated below {LEAST}"
    return None


def write(folder: Path, output: Path) -> Mapping[str, int]:
    """Writes two samples for each good composite in the layout that Kaleido trains on: videos/ID.mp4 of one frame,
    labels/ID.txt, references/ID/ref1.png. What is there already is kept. Returns how many were kept, and dropped by
    reason.

    Raises:
      InputError: the folder has no Parquet file, or one holds what cannot be read.
      StorageError: `output` cannot be written.
    """
    counts: dict[str, int] = {"kept": 0}
    if not any(folder.rglob("*.parquet")):
        raise InputError(f"{folder}: holds no *.parquet; give the folder of Subject200K's data/train-*.parquet.")
    for composite in subject200k(folder):
        reason = why_not(composite)
        counts[reason or "kept"] = counts.get(reason or "kept", 0) + 1
        if reason:
            continue
        for side, caption in enumerate(composite.captions):
            name = f"{composite.id}-{side}"
            label = output / "labels" / f"{name}.txt"  # written last
            if label.is_file():
                continue
            write_bytes(output / "references" / name / "ref1.png", pictures.png(composite.views[1 - side]))
            clip = encoder().mp4(composite.views[side][None], 1, QUALITY)
            write_bytes(output / "videos" / f"{name}.mp4", clip)
            write_bytes(label, " ".join(caption.split()).encode() + b"\n")
    return counts
