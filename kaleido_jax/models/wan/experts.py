"""Wan 2.2's A14B models: two Wan transformers of one size, one for high noise and one for low."""

import dataclasses
import os
from pathlib import Path

from kaleido_jax.errors import InputError, printable
from kaleido_jax.models.wan.config import WanConfig

# Folders of a release: (for high noise, for low noise), in diffusers' layout and in the original one.
FOLDERS = (("transformer", "transformer_2"), ("high_noise_model", "low_noise_model"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanExperts:
    """A pair of experts.

    transformer: the sizes of each. boundary: the time in [0, 1] from which on the one for high noise is asked.
    guidance: the released scales of text guidance, (for high noise, for low noise). steps, shift: of the sampler.
    """

    transformer: WanConfig
    boundary: float
    guidance: tuple[float, float]
    steps: int = 40
    shift: float

    def __post_init__(self):
        if not 0.0 < self.boundary < 1.0:
            raise ValueError(f"WanExperts.boundary is {self.boundary}; expected a time between 0 and 1.")

    @classmethod
    def t2v_a14b(cls) -> "WanExperts":
        """Wan2.2-T2V-A14B."""
        return cls(transformer=WanConfig.t2v_14b(), boundary=0.875, guidance=(4.0, 3.0), shift=12.0)

    @classmethod
    def i2v_a14b(cls) -> "WanExperts":
        """Wan2.2-I2V-A14B."""
        return cls(transformer=WanConfig.i2v_a14b(), boundary=0.9, guidance=(3.5, 3.5), shift=5.0)


def expert_folders(release: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The folders of a release's experts, (for high noise, for low noise), each a checkpoint of its own.

    Raises:
      InputError: it has not both of them.
    """
    release = Path(release)
    for names in FOLDERS:
        high, low = (release / name for name in names)
        if high.is_dir() and low.is_dir():
            return high, low
    pairs = " or ".join(f"{high}/ and {low}/" for high, low in FOLDERS)
    raise InputError(f"{printable(str(release))} holds no pair of experts; expected the folders {pairs}.")
