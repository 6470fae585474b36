"""VBench's motion smoothness: every second frame against what AMT-S tells of it, with weights from a path."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.evaluation.encoders import digest, existing
from kaleido_jax.evaluation.metrics import temporal
from kaleido_jax.models import mapping
from kaleido_jax.models.amt import AMT, AMTConfig, params
from kaleido_jax.porting.weights import open_weights

Frame = UInt8[np.ndarray, "h w 3"]


class MotionSmoothness:
    """AMT-S with its weights; `name` says which."""

    def __init__(self, path: str | Path):
        """From the network that VBench reads (amt-s.pth).

        Raises:
          InputError, UsageError: there are no such weights, or they are damaged.
        """
        source = Path(existing(path))
        weights = open_weights(source)
        try:
            read = {name: weights.read(name) for name in weights.tensors}
        finally:
            weights.close()
        self.config = AMTConfig()
        make = lambda: AMT(self.config, nnx.Rngs(0))
        found = mapping.from_torch(
            read, params.mapping(self.config), mapping.abstract_parameters(make), "the weights of AMT-S"
        )
        self._parameters = jax.device_put({name: np.asarray(x, np.float32) for name, x in found.items()})
        graph, _ = abstract(make)
        self._between = jax.jit(lambda parameters, before, after: merge(graph, parameters)(before, after))
        self.name = f"AMT-S; {source.name} sha256 {digest(read)}"

    def too_small(self, height: int, width: int) -> str | None:
        """Why AMT-S cannot read frames of this size, or None if it can."""
        least = self.config.least - self.config.multiple + 1  # filled up to `least`
        if min(height, width) >= least:
            return None
        return f"the frames have {height} x {width} pixels; AMT-S reads sides of {least} or more"

    def between(self, before: Frame, after: Frame) -> Float[np.ndarray, "h w 3"]:
        """The frame in the middle of two frames, in [0, 1]; they are filled up with their edges to whole multiples."""
        height, width = before.shape[:2]
        missing = [-size % self.config.multiple for size in (height, width)]
        edges = [(n // 2, n - n // 2) for n in missing]
        pixels = (np.pad(x, (*edges, (0, 0)), mode="edge")[None] / np.float32(255) for x in (before, after))
        found = np.asarray(self._between(self._parameters, *map(jnp.asarray, pixels)))[0]
        top, left = edges[0][0], edges[1][0]
        return found[top : top + height, left : left + width]

    def __call__(self, video: UInt8[np.ndarray, "f h w 3"]) -> float:
        """(255 - mean absolute difference) / 255; 1 for less than three frames."""
        # Cut to whole numbers, not rounded, as VBench's.
        return temporal.motion_smoothness(video, lambda *pair: (self.between(*pair) * 255).astype(np.uint8))
