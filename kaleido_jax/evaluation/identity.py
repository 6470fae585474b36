"""Which of several identities a video shows."""

from collections.abc import Sequence

import numpy as np

from kaleido_jax.data.sprites import Identity
from kaleido_jax.evaluation.matching import Artist, backdrop, refine, search

FRAMES = 5  # looked at, spread over the video
FINALISTS = 7  # compared in detail
ANGLES = np.arange(12) * (2 * np.pi / 12)


def identity_scores(artist: Artist, video: np.ndarray, candidates: Sequence[Identity]) -> np.ndarray:
    """How well each candidate explains a video uint8 `[f, h, w, 3]`; the largest is the one that it shows.

    All candidates are searched for in `FRAMES` frames; the best few are then matched in more detail where they were
    found.
    Scores of the others are the largest negative ones: they only keep their order.
    """
    still = backdrop(video)
    frames = video[np.unique(np.linspace(0, len(video) - 1, FRAMES).round().astype(int))]
    templates = artist.templates(candidates, angles=ANGLES)
    found = [search(frame, still, templates) for frame in frames]  # [frame][candidate][0]
    coarse = np.array([[max(places[0].gain, 0.0) for places in per_frame] for per_frame in found]).sum(0)
    scores = coarse - coarse.max() - 1.0
    for candidate in np.argsort(-coarse, kind="stable")[:FINALISTS].tolist():
        identity = candidates[candidate]
        fine = [
            refine(artist, frame, still, identity, places[candidate][0]).gain for frame, places in zip(frames, found)
        ]
        scores[candidate] = sum(max(gain, 0.0) for gain in fine)
    return scores
