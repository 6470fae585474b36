"""Cross pairs and pairs: whether references are drawn anew or cut out of the video that they go with.

Kaleido trains on references that show their subjects elsewhere ("cross-paired"), because references that are cut out
of the video itself teach a model to copy and paste. The world's references are drawn anew; here is the other kind, so
that the share of both can be chosen.
"""

from dataclasses import replace

import numpy as np
from PIL import Image

from kaleido_jax.data.drawing import between, chance, generator, pick
from kaleido_jax.data.world import BACKGROUND, Sample
from kaleido_jax.typing import UInt8

MARGIN = (0.68, 0.97)  # of the canvas that a cut-out fills, as in the world's own references


def paired(sample: Sample, seed: int, share: float) -> Sample:
    """The sample of `seed`, which with a chance of `share` keeps its references; else they are cut out of its video.

    A reference of the scene, and one of a subject that no frame shows, stays as it is.
    """
    rng = generator(0xC205, seed)
    if chance(rng, share):
        return sample
    references = []
    for picture, subject in sample.references:
        cut = None if subject == BACKGROUND else _cut_out(sample, subject, rng)
        references.append((picture if cut is None else cut, subject))
    return replace(sample, references=references)


def _cut_out(sample: Sample, subject: int, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"] | None:
    """A frame's pixels of a subject, centred on white; of the frames that show most of it, any."""
    seen = (sample.masks == subject).sum(axis=(1, 2))
    if not seen.max():
        return None
    frame = pick(rng, tuple(np.flatnonzero(seen >= 0.8 * seen.max()).tolist()))
    mask = sample.masks[frame] == subject
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    pixels = np.where(mask[box][..., None], sample.video[frame][box], np.uint8(255))
    height, width = sample.video.shape[1:3]
    tall, wide = pixels.shape[:2]
    scale = between(rng, *MARGIN) * min(height / tall, width / wide)
    size = max(1, min(width, round(wide * scale))), max(1, min(height, round(tall * scale)))
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    canvas.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(canvas).copy()
