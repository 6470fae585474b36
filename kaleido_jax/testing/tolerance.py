"""How far two arrays are apart."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def relative_error(actual: Any, expected: Any) -> float:
    """|actual - expected| / |expected| in the 2-norm, computed in float64.

    Raises:
      ValueError: if the shapes differ (nothing is broadcast), or if `actual` holds a value that is not finite.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise ValueError(f"actual has shape {actual.shape}; expected {expected.shape}.")
    if not np.isfinite(actual).all():
        raise ValueError(f"actual holds {np.count_nonzero(~np.isfinite(actual))} values that are not finite.")
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(actual - expected) / norm) if norm else float(np.linalg.norm(actual))


def relative_errors(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """`relative_error` of every array by name, the largest first.

    Raises:
      ValueError: if the names differ, or as `relative_error` does.
    """
    if actual.keys() != expected.keys():
        raise ValueError(f"names found on one side only: {sorted(actual.keys() ^ expected.keys())}.")
    errors = {name: relative_error(actual[name], expected[name]) for name in expected}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
