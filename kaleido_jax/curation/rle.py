"""Masks as COCO's run-length encoding: column by column, the runs of zeros and ones in turn.

In JSON the runs are either a list of numbers, or (`compressed`) a string: each number as the difference from the one
two before it, five bits a character from 48 on, the sixth saying that more follow.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from kaleido_jax.errors import InputError

MOST_PIXELS = 100_000_000


def decode(value: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """The mask of {"size": [height, width], "counts": string or list}; InputError where it cannot be one."""
    try:
        height, width = (int(side) for side in value["size"])
        counts = value["counts"]
        runs = _runs(counts) if isinstance(counts, str) else [int(run) for run in counts]
    except (KeyError, TypeError, ValueError):
        raise InputError("a mask must have size [height, width] and counts, a string or a list of runs.") from None
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise InputError(f"a mask has size {height} x {width}; it must have 1 to {MOST_PIXELS} pixels.")
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise InputError(f"a mask of size {height} x {width} has runs of {sum(runs)} pixels; they must agree.")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def encode(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """{"size", "counts"} with compressed counts."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat.size and flat[0]:
        runs = [0, *runs]
    return {"size": list(mask.shape), "counts": _text(runs)}


def _text(runs: Sequence[int]) -> str:
    characters = []
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            low, value = value & 31, value >> 5
            more = value != (-1 if low & 16 else 0)
            characters.append(chr(48 + low + (32 if more else 0)))
            if not more:
                break
    return "".join(characters)


def _runs(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for character in text:
        low = ord(character) - 48
        if not 0 <= low < 64 or shift > 60:
            raise ValueError(character)
        value |= (low & 31) << shift
        shift += 5
        if low & 32:
            continue
        if low & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError(text[-1:])
    return runs
