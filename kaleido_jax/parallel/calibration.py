"""Published training runs against what the planner says of them: how far its estimates can be trusted.

A run's operations follow from its published rate: three forward passes in its seconds. What it computes beside them
(its backward pass makes layers again) follows from its recipe, and the time from the rates of `chips`.
"""

import dataclasses

from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel.chips import CHIPS
from kaleido_jax.parallel.flops import forward_operations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One run of Wan's 14B model.

    rate: operations a second of a device, by three forward passes. rounds: how often a step computes the matrix
    products and attention of a forward pass.
    """

    source: str
    chip: str
    devices: int
    tokens: int
    seconds: float
    rate: float
    rounds: tuple[float, float]

    @property
    def share(self) -> float:
        """Of the peak in `chips`, by three forward passes."""
        return self.rate / CHIPS[self.chip].peak

    @property
    def computed(self) -> float:
        """Operations of a device in a step, what is made again among them."""
        wan = WanConfig.t2v_14b()
        attention = 4.0 * wan.layers * self.tokens**2 * wan.dim
        products = forward_operations(wan, self.tokens, 512) - attention
        again = self.rounds[0] * products + self.rounds[1] * attention
        return self.rate * self.seconds * again / (3 * (products + attention))

    @property
    def estimate(self) -> float:
        """Seconds of a step by the planner's rates."""
        return self.computed / (CHIPS[self.chip].peak * CHIPS[self.chip].reached)


# MaxDiffusion's, of 81 frames of 720 x 1280: its README, where the backward pass makes everything again, and its pull
# request 487, all but attention. The share that the latter claims, 40.2 %, is of a smaller peak than the maker's.
RUNS = (
    Published(
        source="MaxDiffusion, README",
        chip="v5p",
        devices=4,
        tokens=75_600,
        seconds=36.0,
        rate=135.9e12,
        rounds=(4.0, 4.5),
    ),
    Published(
        source="MaxDiffusion, pull request 487",
        chip="tpu7x",
        devices=64,
        tokens=75_600,
        seconds=13.57,
        rate=384.12e12,
        rounds=(4.0, 3.5),
    ),
)


def table() -> list[str]:
    """The comparison as a table in Markdown."""
    lines = [
        "| run | devices | published | share of the peak | estimate | off by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for run in RUNS:
        off = run.estimate / run.seconds - 1
        times = f"{run.seconds:.2f} s | {run.share:.1%} | {run.estimate:.2f} s | {off:+.0%}"
        lines.append(f"| {run.source} | {run.devices} x {run.chip} | {times} |")
    return lines
