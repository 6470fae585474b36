"""LoRA files that a model is run with: which, and how strongly."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

from kaleido_jax.errors import UsageError, printable


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A LoRA file, or PEFT's folder of one, and how strongly it is added to the transformer's weights."""

    path: Path
    strength: float = 1.0

    @classmethod
    def of(cls, given: "str | Path | LoraFile") -> "LoraFile":
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
        return cls(path=path, strength=strength)

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read of it: the weights, and PEFT's configuration beside them."""
        from kaleido_jax.porting.lora import files

        return files(self.path)

    def request(self) -> dict[str, Any]:
        """What of it determines the pixels."""
        from kaleido_jax.pipeline.record import file_sha256

        return {"sha256": [file_sha256(file) for file in self.files], "strength": self.strength}
