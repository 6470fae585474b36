"""Chips as data: what they can do at most, and what programs were seen to reach on them.

Peaks are dense bfloat16 rates of one jax device, from the makers' pages: cloud.google.com/tpu/docs/v5e, /v5p, /v6e and
/tpu7x (a chip of two cores is two devices), and nvidia.com/en-us/data-center/h100 (SXM).
"""

import dataclasses

from kaleido_jax.errors import UsageError
from kaleido_jax.names import lookup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of device.

    peak: FLOP/s in bfloat16. memory: bytes that programs can have. bandwidth: bytes/s of that memory.
    link: bytes/s into one device from its neighbours (ICI, NVLink), node: how many devices such links join (0: all of a
    slice). network: bytes/s into one device from outside. host: bytes/s between a device and its host's memory.
    product, attention: the share of the peak that the best kernels reach in matrix products and in attention's, forward
    and backward together. reached: the share that whole published training programs reach, waiting for their network
    and memory included, counting what they compute twice.
    extra: of this package, with the compiler. platform: as jax names it.
    """

    peak: float
    memory: float
    bandwidth: float
    link: float
    network: float
    host: float = 24e9
    node: int = 0
    product: float = 0.85
    attention: float = 0.6
    reached: float
    extra: str = "tpu"
    platform: str = "tpu"


# Kernels: splash attention is published at 89 % of v5p's peak and 36 % of v6e's (JetStream and MaxDiffusion), cuDNN's
# attention at 690 TFLOP/s forward and tokamax's backward at 480 on an H100, which is 55 % for both; other attention
# rates, and products at 85 %, are assumed. Whole programs: MaxDiffusion trains Wan 14B at 1280 x 720 x 81 in 36.0 s a
# step on v5p and 13.57 s on tpu7x, 43 % and 40 % of the peak by what they compute (`calibration`). NVIDIA NeMo reaches
# up to 48.2 % MFU on H100s (arXiv:2503.12964) in training video transformers, about 55 % by what is computed. The rate
# to the host is three quarters of its bus's: PCI Express 4, and 5 on H100s.
GIB = 2.0**30
CHIPS = {
    "v5e": Chip(peak=197e12, memory=15.75 * GIB, bandwidth=819e9, link=200e9, network=3e9, reached=0.45),
    "v5p": Chip(
        peak=459e12, memory=95.7 * GIB, bandwidth=2765e9, link=600e9, network=6e9, attention=0.89, reached=0.45
    ),
    "v6e": Chip(
        peak=918e12, memory=31.25 * GIB, bandwidth=1640e9, link=448e9, network=6e9, attention=0.36, reached=0.4
    ),
    "tpu7x": Chip(peak=1153.5e12, memory=94.7 * GIB, bandwidth=3690e9, link=600e9, network=6e9, reached=0.4),
    "h100": Chip(
        peak=989e12,
        memory=79 * GIB,
        bandwidth=3350e9,
        link=450e9,
        network=50e9,
        host=50e9,
        node=8,
        attention=0.55,
        reached=0.5,
        extra="cuda",
        platform="cuda",
    ),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Chips that need not be there: `v5p:4x4x4`, `h100:8x8` (nodes x GPUs)."""

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Target":
        """The target of a command line. UsageError if there is no such chip, or no shape of whole numbers."""
        kind, _, shape = text.partition(":")
        lookup(CHIPS, kind, "chip")
        sizes = shape.split("x")
        if not all(size.isdigit() and int(size) for size in sizes):
            raise UsageError(f"The target {text!r} has no shape; write for example v5p:4x4x4, v5e:16x16 or h100:8x8.")
        return cls(kind, tuple(int(size) for size in sizes))

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]
