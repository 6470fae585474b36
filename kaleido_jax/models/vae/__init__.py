"""Causal video VAEs of the Wan family, on one device, in tiles, and divided over a mesh."""

from kaleido_jax.models.vae.config import VAEConfig
from kaleido_jax.models.vae.mesh import decode_on_mesh, encode_on_mesh
from kaleido_jax.models.vae.modeling import WanVAE
from kaleido_jax.models.vae.tiling import decode_tiled, encode_tiled

__all__ = ["VAEConfig", "WanVAE", "decode_on_mesh", "decode_tiled", "encode_on_mesh", "encode_tiled"]
