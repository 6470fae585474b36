"""Wan's video transformer: sizes and maths."""

from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.models.wan.modeling import WanTransformer, default_attend

__all__ = ["WanConfig", "WanTransformer", "default_attend"]
