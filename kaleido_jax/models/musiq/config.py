"""Sizes of MUSIQ."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class MusiqConfig:
    """Sizes of a network; the defaults are those of all releases.

    dim, ffn_dim, heads, layers: of the transformer. stem: channels of the first convolution, a multiple of 32; a patch
    has four times as many. grid: rows and columns of the table of places. sides: pixels of the longer side of each
    scale that a picture is brought to, beside its own size; patches are `patch` pixels wide and high, a multiple of 4.
    """

    dim: int = 384
    ffn_dim: int = 1152
    heads: int = 6
    layers: int = 14
    stem: int = 64
    grid: int = 10
    patch: int = 32
    sides: tuple[int, ...] = (224, 384)

    def __post_init__(self):
        if self.dim % self.heads or self.stem % 32 or self.patch % 4:
            raise ValueError(
                f"MusiqConfig has dim {self.dim} of {self.heads} heads, stem {self.stem} and patch {self.patch}; "
                "expected whole heads, a multiple of 32 and a multiple of 4."
            )
