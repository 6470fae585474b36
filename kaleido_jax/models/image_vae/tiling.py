"""Decoding pictures in tiles that overlap, for the memory of one tile; see `models.vae.tiling`.

The core at the latents' resolution, with its attention, reads the whole picture. Above it every group norm takes its
statistics of a tile alone, so that brightness may change a little from tile to tile, which is faded out where they
overlap. (diffusers codes the core in tiles too.)
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kaleido_jax.models.image_vae.modeling import ImageVAE
from kaleido_jax.models.vae.tiling import check_tiles, in_tiles, sizes


def decode_tiled(
    vae: ImageVAE, latents: Float[Array, "b h w z"], *, tile: int = 64, overlap: int = 16
) -> Float[Array, "b y x 3"]:
    """`ImageVAE.decode` of pictures of any size.

    Args:
      latents: normalised. tile: latents of the side of a tile. overlap: latents that neighbours share at least.

    Raises:
      ValueError: if a tile is no larger than the overlap.
    """
    check_tiles(tile, overlap)
    features = vae.decoder.core(latents / vae.config.scale + vae.config.shift)[:, None]
    grow = lambda part: vae.decoder.grow(part[:, 0])[:, None]
    pixels = in_tiles(grow, features, 1, vae.config.spatial_factor, sizes(features, tile), overlap)
    return jnp.clip(pixels[:, 0], -1, 1).astype(latents.dtype)
