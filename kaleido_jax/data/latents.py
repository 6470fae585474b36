"""The latent cache: samples that went through the VAE once, kept as float16 shards that are memory-mapped.

On a CPU the VAE's encoder costs more than a training step of the miniature's transformer, so samples are encoded before
training and read many times. A shard is four files: `video-NNNNN.npy` [samples, frames, height, width, channels],
`references-NNNNN.npy` [samples, slots, height, width, channels] (slots a sample does not use hold zeros),
`subject-NNNNN.npy` [samples, frames, height, width] (the share of a latent's pixels that show a subject), and
`index-NNNNN.json`, written last: a shard without it does not exist, which makes writing resumable.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import reduce

from kaleido_jax.errors import InputError, StorageError

DESCRIPTION = "cache.json"
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One encoded sample. `subjects[i]` says which subject of the video reference i shows."""

    video: np.ndarray  # float16 [frames, height, width, channels]
    references: np.ndarray  # float16 [count, height, width, channels]
    subject_share: np.ndarray  # float16 [frames, height, width], see `subject_share`
    subjects: tuple[int, ...]
    prompt: str
    text: np.ndarray | None = None  # of a frozen text encoder, [tokens, channels]


class LatentCache:
    """Reads the samples of one split. Raises InputError when the folder holds fewer than `samples`."""

    def __init__(self, folder: str | Path, samples: int) -> None:
        self.folder = Path(folder)
        self._shards: list[tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]] = []
        self._rows: list[tuple[int, int]] = []
        for index in sorted(self.folder.glob("index-*.json")):
            number = index.stem.removeprefix("index-")
            entries = json.loads(index.read_text())
            video, references, share = (
                np.load(self.folder / f"{name}-{number}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("video", "references", "subject")
            )
            if {len(video), len(references), len(share)} != {len(entries)}:
                raise InputError(f"{index} lists {len(entries)} samples but its arrays hold {len(video)}")
            self._rows += [(len(self._shards), row) for row in range(len(entries))]
            self._shards.append((video, references, share, entries))
        if len(self._rows) < samples:
            raise InputError(f"{self.folder} holds {len(self._rows)} samples, fewer than the {samples} asked for")
        self._rows = self._rows[:samples]
        counts = [len(self._shards[shard][3][row]["subjects"]) for shard, row in self._rows]
        self.reference_counts = np.asarray(counts, np.int32)  # [samples]
        self.buckets = np.zeros(len(counts), np.int32)  # [samples]; all videos are of one shape
        self.weights = np.ones(len(counts))  # [samples]; the world is drawn evenly

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """The seed that the sample was rendered from."""
        return str(index)

    def __getitem__(self, index: int) -> Sample:
        shard, row = self._rows[index]
        video, references, share, entries = self._shards[shard]
        entry = entries[row]
        count = len(entry["subjects"])
        return Sample(
            video=video[row],
            references=references[row, :count],
            subject_share=share[row],
            subjects=tuple(entry["subjects"]),
            prompt=entry["prompt"],
        )


def write_cache(
    folder: str | Path,
    *,
    samples: int,
    render: Callable[[int], Any],
    encode_videos: Callable[[np.ndarray], np.ndarray],
    encode_pictures: Callable[[np.ndarray], np.ndarray],
    fingerprint: str,
    slots: int,
    shard_size: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Encode samples 0 .. `samples` - 1 that the folder does not hold yet.

    Args:
        folder: of one split; made if it is missing.
        samples: rounded up to whole shards.
        render: sample seed -> an object with video uint8 [f, h, w, 3], references [(uint8 [h, w, 3], subject)], prompt,
            and masks uint8 [f, h, w], 0 where no subject is seen.
        encode_videos: uint8 [n, f, h, w, 3] -> latents [n, f', h', w', c].
        encode_pictures: uint8 [n, h, w, 3] -> latents [n, h', w', c].
        fingerprint: of the encoder and the data; a folder written with another one is refused with StorageError.
        slots: references a sample may have.
        progress: called with (samples done, samples in all) after every shard.
        stop: asked before every shard; True ends early, with every shard written so far whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {"format": FORMAT, "fingerprint": fingerprint, "slots": slots, "shard_size": shard_size}
    path = folder / DESCRIPTION
    if path.is_file() and (found := json.loads(path.read_text())) != description:
        raise StorageError(f"{folder} was written with {found}, but this run needs {description}; use another folder")
    path.write_text(json.dumps(description))
    missing = [
        start
        for start in range(0, samples, shard_size)
        if not (folder / f"index-{start // shard_size:05d}.json").is_file()
    ]
    draw = lambda start: [render(seed) for seed in range(start, start + shard_size)]
    with ThreadPoolExecutor(1) as threads:  # the next shard is drawn while this one is encoded
        drawn = threads.submit(draw, missing[0]) if missing else None
        for start, following in zip(missing, [*missing[1:], None]):
            assert drawn is not None
            rendered = drawn.result()
            drawn = threads.submit(draw, following) if following is not None and not stop() else None
            _write_shard(folder, f"{start // shard_size:05d}", start, rendered, encode_videos, encode_pictures, slots)
            progress(start + shard_size, samples)
            if drawn is None:
                return


def _write_shard(
    folder: Path,
    number: str,
    start: int,
    rendered: Sequence[Any],
    encode_videos: Callable[[np.ndarray], np.ndarray],
    encode_pictures: Callable[[np.ndarray], np.ndarray],
    slots: int,
) -> None:
    videos = np.asarray(encode_videos(np.stack([sample.video for sample in rendered])), np.float16)
    pictures = [picture for sample in rendered for picture, _ in sample.references]
    encoded = np.asarray(encode_pictures(np.stack(pictures)), np.float16)
    references = np.zeros((len(rendered), slots, *encoded.shape[1:]), np.float16)
    position = 0
    for row, sample in enumerate(rendered):
        count = len(sample.references)
        if count > slots:
            raise InputError(f"sample {start + row} has {count} references, more than the {slots} that are cached")
        references[row, :count] = encoded[position : position + count]
        position += count
    np.save(folder / f"video-{number}.npy", videos)
    np.save(folder / f"references-{number}.npy", references)
    shares = [subject_share(sample.masks, videos.shape[1:4]) for sample in rendered]
    np.save(folder / f"subject-{number}.npy", np.stack(shares).astype(np.float16))
    entries = [
        {"seed": start + row, "prompt": sample.prompt, "subjects": [int(s) for _, s in sample.references]}
        for row, sample in enumerate(rendered)
    ]
    temporary = folder / f"index-{number}.tmp"
    temporary.write_text(json.dumps(entries))
    temporary.replace(folder / f"index-{number}.json")


def subject_share(masks: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """The share of every latent's pixels that show a subject, float32 `grid`.

    The first latent frame stands for the first frame alone, each later one for equally many (as in a causal VAE).

    Args:
        masks: uint8 [frames, height, width], 0 where no subject is seen.
        grid: latent (frames, height, width).
    """
    frames, height, width = grid
    seen = (masks > 0).astype(np.float32)
    seen = reduce(seen, "f (h y) (w x) -> f h w", "mean", h=height, w=width)
    if frames == 1:
        return seen[:1]
    return np.concatenate([seen[:1], reduce(seen[1:], "(f t) h w -> f h w", "mean", f=frames - 1)])
