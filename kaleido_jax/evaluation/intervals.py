"""Counts of right answers with what they say of the true rate."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """`right` of `total` answers."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the true rate (E. B. Wilson, 1927); (0, 1) when there is no answer."""
        if not self.total:
            return 0.0, 1.0
        z = 1.959964  # the normal distribution's 97.5 % quantile
        spread = z * math.sqrt(self.value * (1 - self.value) / self.total + (z / self.total / 2) ** 2)
        middle, whole = self.value + z * z / 2 / self.total, 1 + z * z / self.total
        return max((middle - spread) / whole, 0.0), min((middle + spread) / whole, 1.0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:5.1f} % ({100 * low:.1f} to {100 * high:.1f}; {self.right} of {self.total})"
