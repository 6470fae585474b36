"""A curated data set in the forms of others: the folder that Kaleido trains on, and OpenS2V-5M's JSON."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.curation import pictures, rle
from kaleido_jax.curation.dataset import decoded
from kaleido_jax.curation.store import write_bytes
from kaleido_jax.data.folder import WEIGHTS
from kaleido_jax.data.loader import stored_source

MOST_REFERENCES = 3  # Kaleido's loader reads ref1.png to ref3.png


def samples(dataset: Path, split: str) -> Iterator[Mapping[str, Any]]:
    """The stored samples of a split, in order."""
    source = stored_source(dataset, split)
    for number in range(len(source)):
        yield source[number]


def kaleido(dataset: Path, output: Path, split: str = "pretrain") -> int:
    """Writes labels/ID.txt, videos/ID.mp4 and references/ID/ref1.png ... below `output`, and in weights.json how often
    to draw each; returns how many samples."""
    count, weights = 0, {}
    for sample in samples(dataset, split):
        count += 1
        name = sample["id"].decode()
        weights[name] = float(sample["weight"])
        write_bytes(output / "videos" / f"{name}.mp4", sample["video"])
        # Kaleido's loader reads the first line only.
        label = " ".join(sample["caption"].decode().split())
        write_bytes(output / "labels" / f"{name}.txt", label.encode() + b"\n")
        for number, content in enumerate(sample["references"][:MOST_REFERENCES], 1):
            write_bytes(output / "references" / name / f"ref{number}.png", content)
    write_bytes(output / WEIGHTS, json.dumps(weights, sort_keys=True).encode())
    return count


def opens2v(dataset: Path, output: Path, split: str = "pretrain") -> int:
    """Writes videos/ID.mp4 and annotations.json below `output`; returns how many samples.

    The subjects of a clip are seen in several frames here and in one there: a mask stands under its own frame, and
    `ann_frame_data` is that of the first subject's frame.
    """
    document = {}
    for sample in samples(dataset, split):
        name = sample["id"].decode()
        path = Path("videos") / f"{name}.mp4"
        write_bytes(output / path, sample["video"])
        video = decoded(sample["video"])
        height, width = video[0].shape[:2]
        frame = int(sample["frames"][0])
        annotations, masks, names = [], {}, {}
        for number, (phrase, box, at, mask) in enumerate(
            zip(sample["phrases"], sample["boxes"], sample["frames"], sample["masks"]), 1
        ):
            pixels = pictures.from_png(mask, "L") > 127
            annotations.append({"class_name": phrase.decode(), "bbox": [float(side) for side in box]})
            masks.setdefault(str(int(at)), {})[str(number)] = rle.encode(pixels[:height, :width])
            names[str(number)] = {"class_name": phrase.decode()}
        document[name] = {
            "metadata": {
                "path": path.as_posix(),
                "cut": [0, len(video)],
                "crop": [0, width, 0, height],
                "fps": float(np.float32(sample["fps"])),
                "num_frames": len(video),
                "resolution": {"height": height, "width": width},
                "cap": [sample["caption"].decode()],
            },
            "annotation": {
                "ann_frame_data": {
                    "ann_frame_idx": frame,
                    "annotations": annotations,
                    "box_format": "xyxy",
                    "img_width": width,
                    "img_height": height,
                },
                "mask_map": names,
                "mask_annotation": masks,
            },
        }
    write_bytes(output / "annotations.json", json.dumps(document, indent=1, sort_keys=True).encode())
    return len(document)


WRITERS: dict[str, Callable[..., int]] = {"kaleido": kaleido, "opens2v": opens2v}
