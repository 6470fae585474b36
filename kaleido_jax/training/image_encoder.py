"""A frozen image encoder (CLIP) whose tokens of the references are read beside their latents (ContextAnyone)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax import porting
from kaleido_jax.bundle import abstract, load_bundle, merge, parameters
from kaleido_jax.errors import UsageError, printable
from kaleido_jax.models.vision import VisionConfig, VisionEncoder, wan_image_tokens
from kaleido_jax.training.frozen import is_model
from kaleido_jax.typing import Array, Float, UInt8


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """An image encoder, and its compiled programs by the shape of what they read."""

    module: VisionEncoder

    @classmethod
    def load(cls, source: str) -> "ImageEncoder":
        """From a model folder of ours that has one, or from a checkpoint that `kaleido port` reads.

        Raises:
          UsageError: it is none. InputError: it cannot be read.
        """
        if is_model(source):
            module = load_bundle(source).vision
            if module is None:
                raise UsageError(f"image_encoder is {printable(source)}, a model without one; name another")
            return cls(module)
        config, weights = porting.load(source)
        if not isinstance(config, VisionConfig):
            raise UsageError(f"image_encoder is {printable(source)}, which is a {type(config).__name__}; name a CLIP")
        return cls(merge(abstract(lambda: VisionEncoder(config, nnx.Rngs(0)))[0], weights))

    def tokens(self, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[Array, "n t d"]:
        """The tokens of each picture, as Wan's image-to-video models read them."""
        return self._program(jnp.asarray(pictures))

    @functools.cached_property
    def _program(self) -> Any:
        graph, weights = nnx.split(self.module)[0], parameters(self.module)

        def encode(weights: Any, pictures: Array) -> Array:
            return wan_image_tokens(merge(graph, weights), pictures.astype(jnp.float32) / 127.5 - 1.0)

        return functools.partial(jax.jit(encode), weights)
