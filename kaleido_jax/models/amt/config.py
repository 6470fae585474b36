"""Sizes of AMT."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class AMTConfig:
    """Sizes of a network; the defaults are AMT-S's.

    channels: of the features that both frames are warped by, at 1/2, 1/4, 1/8 and 1/16 of the frame. side: of them,
    those which each decoder's block also looks at alone. matching: channels of the stages of the features that are
    correlated, each but the first half as large as the one before; matched: of those features. levels, radius: halvings
    of the correlation (and 1), and how many samples around a place are read of each. correlation, flow, joined, hidden:
    channels inside an update. flows: pairs of flows that each pixel is warped by.
    """

    channels: tuple[int, int, int, int] = (20, 32, 44, 56)
    side: int = 20
    matching: tuple[int, ...] = (32, 64, 96)
    matched: int = 84
    levels: int = 4
    radius: int = 3
    correlation: int = 64
    flow: int = 20
    joined: int = 68
    hidden: int = 76
    flows: int = 3

    @property
    def multiple(self) -> int:
        """What the sides of a frame are multiples of."""
        return 2 ** len(self.channels)

    @property
    def least(self) -> int:
        """Pixels of the smallest side with two samples in the last level of the correlation.

        With one, the place in it has no scale: the network that VBench runs gives no numbers there.
        """
        return 2 ** (self.levels + 3)
