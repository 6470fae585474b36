"""The transformer of FLUX.1, text to image: sizes and maths."""

from kaleido_jax.models.flux.config import FluxConfig
from kaleido_jax.models.flux.modeling import FluxTransformer

__all__ = ["FluxConfig", "FluxTransformer"]
