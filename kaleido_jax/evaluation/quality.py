"""VBench's imaging quality: MUSIQ's rating of each frame, with weights from a path."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import InputError, printable
from kaleido_jax.evaluation.encoders import batch_sizes, digest, existing
from kaleido_jax.models import mapping
from kaleido_jax.models.musiq import Musiq, params
from kaleido_jax.models.vision import resampling
from kaleido_jax.porting.weights import open_weights

LONGEST = 512  # pixels of a frame's longer side that VBench has rated at most
BATCH = 4  # frames rated at a time
Frames = UInt8[np.ndarray, "f h w 3"]


class ImagingQuality:
    """MUSIQ with its weights; `name` says which."""

    def __init__(self, path: str | Path):
        """From the network for SPAQ that VBench reads (musiq_spaq_ckpt-358bb6af.pth), or another of pyiqa's that gives
        one rating.

        Raises:
          InputError, UsageError: there are no such weights, or they are damaged.
        """
        source = Path(existing(path))
        weights = open_weights(source)
        try:
            try:
                config = params.config_from({name: tuple(x.shape) for name, x in weights.tensors.items()})
            except ValueError as error:
                raise InputError(f"{printable(str(path))}: {error}") from None
            read = {name: weights.read(name) for name in weights.tensors}
        finally:
            weights.close()
        make = lambda: Musiq(config, nnx.Rngs(0))
        found = mapping.from_torch(
            read, params.mapping(config), mapping.abstract_parameters(make), "the weights of MUSIQ"
        )
        self._parameters = jax.device_put({name: np.asarray(x, np.float32) for name, x in found.items()})
        graph, _ = abstract(make)
        self._rate = jax.jit(lambda parameters, x: merge(graph, parameters)(x))
        self.name = f"MUSIQ {config.layers}x{config.dim}; {source.name} sha256 {digest(read)}"

    def ratings(self, video: Frames) -> Float[np.ndarray, "f"]:
        """The rating of every frame, about 0 to 100."""
        found, start = [], 0
        for size in batch_sizes(len(video), BATCH):
            part = shortened(video[start : start + size])
            start += size
            whole = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            pixels = (whole.astype(np.float32) / np.float32(255) - np.float32(0.5)) * np.float32(2)
            found.append(np.asarray(self._rate(self._parameters, jnp.asarray(pixels)))[: len(part)])
        return np.concatenate(found)

    def __call__(self, video: Frames) -> float:
        """The mean rating over frames, / 100."""
        return float(self.ratings(video).astype(np.float64).mean() / 100)


def shortened(video: Frames) -> UInt8[np.ndarray, "f y x 3"]:
    """Frames whose longer side is at most LONGEST pixels: bilinear, without antialiasing, in 8 bits again."""
    height, width = video.shape[1:3]
    longer = max(height, width)
    if longer <= LONGEST:
        return video
    scale = LONGEST / longer
    rows, columns = (resampling.weights(size, int(scale * size), method="bilinear") for size in (height, width))
    pixels = np.einsum("hy,fyxc,wx->fhwc", rows, video.astype(np.float32), columns, optimize=True)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)
