"""Causal video VAEs of the Wan family."""

from kaleido_jax.models.vae.config import VAEConfig
from kaleido_jax.models.vae.modeling import WanVAE

__all__ = ["VAEConfig", "WanVAE"]
