"""Resizing by two matrices of weights: PyTorch's `interpolate`, and Pillow's `resize` but for its rounding."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Method = Literal["bilinear", "bicubic"]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel (1981) with the slope `a` at 1."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=64)
def weights(
    size: int, to: int, *, method: Method = "bicubic", antialias: bool = False, ratio: float | None = None
) -> Float[np.ndarray, "to size"]:
    """The matrix that resizes a line of `size` samples to `to`; its rows sum to 1. It is kept, and is read-only.

    Args:
      method: the kernel. The cubic one has the slope -0.75 and, with antialias, -0.5, as PyTorch's.
      antialias: whether the kernel is as wide as an output sample where the line shrinks (Pillow does this always).
        Without it samples beyond the ends are those at the ends; with it they do not count.
      ratio: output samples for each input sample; to / size if not given.
    """
    step = 1 / (to / size if ratio is None else ratio)
    reach = 1 if method == "bilinear" else 2
    kernel = _triangle if method == "bilinear" else lambda x: _cubic(x, -0.5 if antialias else -0.75)
    if antialias:
        centres = (np.arange(to) + 0.5) * step
        width = max(step, 1.0)
        values = kernel((np.arange(size)[None] + 0.5 - centres[:, None]) / width)
        return _kept(values / values.sum(1, keepdims=True))
    # In float32, as PyTorch has them: at a hard edge a hundredth of a thousandth of a sample is seen.
    places = np.float32(step) * (np.arange(to, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    if method == "bilinear":
        places = np.maximum(places, 0)
    taps = np.floor(places)[:, None].astype(int) + np.arange(1 - reach, reach + 1)
    matrix = np.zeros((to, size))
    np.add.at(matrix, (np.arange(to)[:, None], np.clip(taps, 0, size - 1)), kernel(taps - places[:, None]))
    return _kept(matrix)


def _kept(matrix: np.ndarray) -> Float[np.ndarray, "to size"]:
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)
    return matrix


def resize(
    x: Float[Array, "*b y x c"], rows: Float[np.ndarray, "h y"], columns: Float[np.ndarray, "w x"]
) -> Float[Array, "*b h w c"]:
    """Resizes height and width by matrices of `weights`, in x's dtype."""
    left, right = (jnp.asarray(matrix, x.dtype) for matrix in (rows, columns))
    return jnp.einsum("hy,...yxc,wx->...hwc", left, x, right, precision=jax.lax.Precision.HIGHEST)
