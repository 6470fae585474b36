"""What measured numbers say of the true ones: intervals of rates and of means."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 2000


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


def mean_interval(
    values: Float[np.ndarray, "n"], weights: Float[np.ndarray, "n"] | None = None
) -> tuple[float, float, float]:
    """(mean, low, high): the percentile bootstrap's 95 % interval of the mean of independent values (B. Efron, 1979).

    Resampled `RESAMPLES` times, the same way every time. weights: of the mean. NaN of no values; one value has no
    spread to tell, and its interval is itself.
    """
    if not len(values):
        return math.nan, math.nan, math.nan
    weights = np.ones(len(values)) if weights is None else weights
    rng = np.random.Generator(np.random.PCG64(0xB007))
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 100):  # 100 at a time: memory stays small for many videos
        chosen = rng.integers(0, len(values), (100, len(values)))
        means[start : start + 100] = (values * weights)[chosen].sum(1) / weights[chosen].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.average(values, weights=weights)), float(low), float(high)


def auc(higher: Float[np.ndarray, "n"], lower: Float[np.ndarray, "m"]) -> float:
    """The area under the ROC curve: how often a value of `higher` is above one of `lower`; ties count half."""
    difference = higher[:, None] - lower[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def auc_interval(higher: Float[np.ndarray, "n"], lower: Float[np.ndarray, "m"]) -> tuple[float, float, float]:
    """(area, low, high): with the percentile bootstrap's 95 % interval, both sides resampled."""
    rng = np.random.Generator(np.random.PCG64(0xA0C))
    draw = lambda values: values[rng.integers(0, len(values), len(values))]
    low, high = np.percentile([auc(draw(higher), draw(lower)) for _ in range(RESAMPLES // 4)], [2.5, 97.5])
    return auc(higher, lower), float(low), float(high)
