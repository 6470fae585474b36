"""Array types, and the legend of the dimension names that stand in signatures.

Shapes are written as jaxtyping strings, `Float[Array, "b n h d"]`, and checked at run time in tests only.

    b   batch                          f   frames (of a video, or of latents)
    n   tokens of a sequence           h   heads of attention; height where it stands beside w
    m   tokens of the text             w   width
    q   query tokens                   c   channels
    k   key tokens                     d   width of a head, or of a model
    s   segments of a layout           z   channels of the latents
    r   references                     p   values in one patch (= one token before its embedding)
    #b  1 where every sample of the batch has the same value, else b
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Float32, Int, Int8, Int32, PyTree, Shaped, UInt8, UInt32

# An array of the host or of the device, traced or not.
AnyArray: TypeAlias = Array | np.ndarray
# The parameters of a model: flat or nested, with dotted names.
Params: TypeAlias = Mapping[str, Any]

__all__ = [
    "AnyArray",
    "Array",
    "Bool",
    "Float",
    "Float32",
    "Int",
    "Int8",
    "Int32",
    "Params",
    "PyTree",
    "Shaped",
    "UInt8",
    "UInt32",
]
