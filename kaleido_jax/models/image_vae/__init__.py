"""The VAE of pictures that FLUX.1 works in (the AutoencoderKL of latent diffusion models)."""

from kaleido_jax.models.image_vae.config import ImageVAEConfig
from kaleido_jax.models.image_vae.modeling import ImageVAE
from kaleido_jax.models.image_vae.tiling import decode_tiled

__all__ = ["ImageVAE", "ImageVAEConfig", "decode_tiled"]
