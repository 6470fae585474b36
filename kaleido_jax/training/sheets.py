"""Contact sheets of a run: one row a held-out sample, with its references, what was generated, and the truth below.

Beside each sheet lies a video of the same name: all samples next to each other, the truth below.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from einops import rearrange
from PIL import Image

from kaleido_jax.media.storage import written_whole
from kaleido_jax.media.video import write_mp4
from kaleido_jax.parallel import processes
from kaleido_jax.training.sources import Source
from kaleido_jax.training.state import Batch
from kaleido_jax.typing import UInt8

GAP = 4


def first_samples(source: Source, count: int) -> Batch:
    """The first samples of a source's first batch."""
    batch = source.batch(0)
    return jax.tree.map(lambda x: x[:count], batch)


def write(
    path: str | Path,
    *,
    references: Sequence[UInt8[np.ndarray, "b h w 3"]],
    counts: np.ndarray,
    generated: UInt8[np.ndarray, "b f h w 3"],
    truth: UInt8[np.ndarray, "b f h w 3"],
    frames_per_second: int,
    columns: int = 6,
) -> None:
    """Write the sheet as PNG, of which `columns` frames are shown, spread over the clip; and the video as MP4."""
    frames = np.unique(np.linspace(0, generated.shape[1] - 1, columns).round().astype(int))
    rows = []
    for sample in range(len(generated)):
        blank = np.full_like(generated[0, 0], 255)
        shown = [pictures[sample] if i < counts[sample] else blank for i, pictures in enumerate(references)]
        rows.append(_row([*shown, *generated[sample, frames]]))
        rows.append(_row([*[blank] * len(shown), *truth[sample, frames]]))
    if not processes.is_first():
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary)
    sides = [rearrange(clips, "b f h w c -> f h (b w) c") for clips in (generated, truth)]
    with written_whole(path.with_suffix(".mp4")) as temporary:
        write_mp4(temporary, np.concatenate(sides, axis=1), frames_per_second)


def _row(pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> np.ndarray:
    return np.concatenate([np.pad(p, ((0, GAP), (0, GAP), (0, 0)), constant_values=128) for p in pictures], axis=1)
