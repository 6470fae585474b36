"""Readers of published tables: OpenS2V-5M's JSON, OpenVid's CSV, Subject200K's Parquet, and WebDataset's tar files."""

import csv
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.curation.readers.folders import VIDEOS
from kaleido_jax.curation.records import Mark, Source, stable_id
from kaleido_jax.errors import InputError
from kaleido_jax.media.images import read_bytes

MOST_JSON = 4_000_000_000
MOST_MEMBER = 2_000_000_000


def opens2v(folder: Path) -> Iterator[Source]:
    """OpenS2V-5M: JSON files whose values have metadata, annotation and mask_annotation; videos by metadata.path.

    cut is in frames of the video, crop in its pixels; masks are of the cropped frame `ann_frame_idx`. An
    annotation without a mask is kept, and dropped later with its reason.
    """
    for path in sorted(folder.rglob("*.json")):
        document = _json(path)
        if not isinstance(document, Mapping):
            continue
        for key in sorted(document):
            entry = document[key]
            if isinstance(entry, Mapping) and isinstance(entry.get("metadata"), Mapping):
                yield _opens2v_entry(folder, path, key, entry)


def _opens2v_entry(folder: Path, path: Path, key: str, entry: Mapping[str, Any]) -> Source:
    where = f"{path}, entry {key!r}"
    try:
        metadata, annotation = entry["metadata"], entry.get("annotation") or {}
        fps = float(metadata["fps"])
        start, stop = (int(frame) for frame in metadata.get("face_cut") or metadata["cut"])
        crop = metadata.get("crop")
        caption = metadata.get("face_cap_qwen") or metadata.get("cap") or ""
        frame_data = annotation.get("ann_frame_data") or {}
        frame = int(frame_data.get("ann_frame_idx", start))
        given = frame_data.get("annotations") or []
        masks = (annotation.get("mask_annotation") or entry.get("mask_annotation") or {}).get(str(frame)) or {}
        marks = tuple(_mark(one, masks.get(str(number + 1))) for number, one in enumerate(given))
        scores = {name: metadata[name] for name in ("aesthetic", "tech", "motion") if name in metadata}
        if fps <= 0 or stop <= start:
            raise ValueError(f"fps {fps}, cut {start} to {stop}")
        name = str(metadata["path"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: cannot be read ({type(error).__name__}: {error}).") from None
    return Source(
        id=stable_id("opens2v", key),
        path=str(inside(folder, name, where)),
        caption=caption[0] if isinstance(caption, list) and caption else str(caption or ""),
        dataset="OpenS2V-5M",
        span=(start / fps, stop / fps),
        crop=None if crop is None else tuple(int(side) for side in crop),
        marks=marks,
        marked=frame / fps,
        extra={"key": key, **scores},
    )


def _mark(one: Mapping[str, Any], mask: Mapping[str, Any] | None) -> Mark:
    scores = {name: float(one[name]) for name in ("gme_score", "aes_score", "score") if one.get(name) is not None}
    return Mark(phrase=str(one["class_name"]), mask=mask, scores=scores)


def openvid(folder: Path) -> Iterator[Source]:
    """OpenVid-1M: CSV files with the columns video and caption (and scores); videos anywhere below the folder."""
    places = {path.name: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEOS}
    for path in sorted(folder.rglob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if not {"video", "caption"} <= set(rows.fieldnames or ()):
                raise InputError(f"{path}: has the columns {rows.fieldnames}; video and caption must be among them.")
            for row in rows:
                name = row["video"]
                yield Source(
                    id=stable_id("openvid", name),
                    path=str(places.get(Path(name).name, folder / Path(name).name)),
                    caption=(row["caption"] or "").strip(),
                    dataset="OpenVid",
                    extra={key: value for key, value in row.items() if key not in ("video", "caption") and key},
                )


def webdataset(folder: Path) -> Iterator[Source]:
    """WebDataset: tar files of samples KEY.mp4 with KEY.txt or KEY.json (caption or text).

    Videos are unpacked once, beside the tar file, into a hidden folder: a decoder needs a file that it can seek in.
    """
    for path in sorted(folder.rglob("*.tar")):
        unpacked = path.with_name(f".{path.stem}.unpacked")
        unpacked.mkdir(exist_ok=True)
        samples: dict[str, dict[str, Any]] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                stem, dot, ending = member.name.rpartition("/")[2].partition(".")
                if not member.isfile() or not dot or member.size > MOST_MEMBER:
                    continue  # links and devices are never followed
                key = f"{member.name.rpartition('/')[0]}/{stem}"
                content = archive.extractfile(member)
                if content is None:
                    continue
                sample = samples.setdefault(key, {})
                if f".{ending.lower()}" in VIDEOS:
                    # The name inside the archive decides no path outside of it.
                    sample["video"] = unpacked / f"{stable_id(key)}.{ending.lower()}"
                    _unpack(content, sample["video"], member.size)
                elif ending == "txt":
                    sample["caption"] = content.read(100_000).decode("utf-8", "replace").strip()
                elif ending == "json":
                    sample["facts"] = _parsed(content.read(10_000_000), f"{path}, {member.name}")
        for key in sorted(samples):
            sample = samples[key]
            facts = sample.get("facts") if isinstance(sample.get("facts"), Mapping) else {}
            if "video" in sample:
                yield Source(
                    id=stable_id("webdataset", path.name, key),
                    path=str(sample["video"]),
                    caption=sample.get("caption") or str(facts.get("caption") or facts.get("text") or ""),
                    dataset=path.stem,
                    license=str(facts.get("license") or ""),
                    url=str(facts.get("url") or ""),
                    extra={"key": key.lstrip("/")},
                )


def _unpack(content: Any, path: Path, size: int) -> None:
    if path.is_file() and path.stat().st_size == size:
        return
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    with open(temporary, "wb") as file:
        while chunk := content.read(1 << 20):
            file.write(chunk)
    os.replace(temporary, path)


@dataclass(frozen=True, kw_only=True)
class Composite:
    """A picture of Subject200K: two views of one subject.

    item: what the subject is. views: left and right, uint8 [h, w, 3]. captions: of each, "" where it has none.
    valid: whether the captions were found to be right. ratings: 0 to 5, by what they are of.
    """

    id: str
    item: str
    views: tuple[np.ndarray, np.ndarray]
    captions: tuple[str, str]
    valid: bool
    ratings: Mapping[str, int]


def subject200k(folder: Path) -> Iterator[Composite]:
    """The rows of Subject200K's Parquet.

    They are pairs already and no videos, so they are read apart from the stages (`curation.picture_pairs`). The white
    frame around and between the two panels differs between its collections and is found in each picture.
    """
    import pyarrow.parquet as pq

    for path in sorted(folder.rglob("*.parquet")):
        number = itertools.count()
        try:
            file = pq.ParquetFile(path)
            wanted = {"image", "description", "quality_assessment"} & set(file.schema_arrow.names)
            batches = file.iter_batches(batch_size=16, columns=sorted(wanted))
            rows = (row for batch in batches for row in batch.to_pylist())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: is no Parquet file that can be read ({error}).") from None
        for row in rows:
            place = next(number)
            said, rated = row.get("description") or {}, row.get("quality_assessment") or {}
            yield Composite(
                id=stable_id("subject200k", path.name, place),
                item=str(said.get("item") or ""),
                views=panels(_picture(row.get("image"), f"{path}, row {place}")),
                captions=(str(said.get("description_0") or ""), str(said.get("description_1") or "")),
                valid=said.get("description_valid") is not False,
                ratings={name: int(value) for name, value in rated.items() if value is not None},
            )


def panels(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two panels of a composite: its halves, each without the frame of one colour around it."""
    half = pixels.shape[1] // 2
    return trimmed(pixels[:, :half]), trimmed(pixels[:, pixels.shape[1] - half :])


def trimmed(pixels: np.ndarray, tolerance: int = 12) -> np.ndarray:
    """Without rows and columns at the border that are of the corner's colour throughout."""
    corner = pixels[0, 0].astype(int)
    differs = (np.abs(pixels.astype(int) - corner) > tolerance).any(-1)
    rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if not len(rows) or rows[0] == 0 or columns[0] == 0:
        # Not framed on both of the corner's sides, so it is a part of the picture that has this colour.
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _picture(value: Any, where: str) -> np.ndarray:
    try:
        content = value["bytes"]
        with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP"]) as picture:
            if picture.width * picture.height > 25_000_000:
                raise ValueError(f"{picture.width} x {picture.height} pixels")
            return np.asarray(picture.convert("RGB"))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{where}: holds no picture that can be read ({error}).") from None


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of `name` below the folder; InputError for one that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"{where}: the path {name!r} leads out of {folder}.")
    return path


def _json(path: Path) -> Any:
    return _parsed(read_bytes(path, MOST_JSON, "a JSON file"), str(path))


def _parsed(content: bytes, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is no JSON ({error}).") from None
