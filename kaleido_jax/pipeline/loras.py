"""LoRA files that a model is run with: which, and how strongly."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

from kaleido_jax.errors import UsageError, printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA file, or PEFT's folder of one, and how strongly it is added to the transformer's weights.

    low_noise: it belongs to the second transformer, that for low noise, of a model that has two.
    """

    path: Path
    strength: float = 1.0
    low_noise: bool = False

    @classmethod
    def of(cls, given: "str | Path | LoraFile", *, low_noise: bool = False) -> "LoraFile":
        """From a path, or from a text "FILE" or "FILE:STRENGTH".

        Raises:
          UsageError: there is no such file, or the strength is no number.
        """
        if isinstance(given, LoraFile):
            return given
        path, strength = Path(given), 1.0
        if not path.exists() and ":" in str(given):
            name, _, text = str(given).rpartition(":")
            path, strength = Path(name), math.nan
            with contextlib.suppress(ValueError):
                strength = float(text)
            if path.exists() and not math.isfinite(strength):
                raise UsageError(f"the strength {printable(text)!r} of the LoRA {printable(name)!r} is no number.")
        if not path.exists():
            raise UsageError(f"There is no LoRA file {printable(str(path))!r}.")
        return cls(path=path, strength=strength, low_noise=low_noise)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read of it: the weights, and PEFT's configuration beside them."""
        from kaleido_jax.porting.lora import files

        return files(self.path)

    @property
    def network(self) -> str:
        """Which network of a model folder it changes."""
        return "transformer_2" if self.low_noise else "transformer"

    @property
    def option(self) -> str:
        """The option of `kaleido generate` that gives it."""
        return "--lora-low-noise" if self.low_noise else "--lora"

    def request(self) -> dict[str, Any]:
        """What of it determines the pixels."""
        from kaleido_jax.pipeline.record import file_sha256

        return {
            "network": self.network,
            "sha256": [file_sha256(file) for file in self.files],
            "strength": self.strength,
        }
