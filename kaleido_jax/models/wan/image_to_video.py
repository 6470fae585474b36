"""What Wan's image-to-video models read beside the noisy latents: the picture as channels of the same size.

Their input has 36 channels for each latent place: 16 noisy, then the 20 that `conditioning_channels` makes (4 of a
mask, 16 latents of a clip that begins with the picture and is grey after it). Wan 2.1 reads the picture once more, as
CLIP's image tokens; all branches of the guidance see both.
"""

import jax.numpy as jnp

from kaleido_jax.typing import Array, Float

MASK_CHANNELS = 4  # as many as frames of the video in one of its latents


def conditioning_clip(
    first: Float[Array, "b h w c"], frames: int, last: Float[Array, "b h w c"] | None = None
) -> Float[Array, "b f h w c"]:
    """The clip whose latents stand for the picture: `first` (and `last`) in [-1, 1], and zeros, mid grey, for the rest.

    Args:
      frames: of the video that is made. last: its last frame too, for models that join two pictures.
    """
    given = 1 if last is None else 2
    if frames < given:
        raise ValueError(f"frames is {frames}; expected at least {given}, one for each picture.")
    batch, *size = first.shape
    pieces = [first[:, None], jnp.zeros((batch, frames - given, *size), first.dtype)]
    return jnp.concatenate([*pieces, *(() if last is None else (last[:, None],))], axis=1)


def conditioning_channels(
    latents: Float[Array, "b f h w z"], *, last: bool = False
) -> Float[Array, "b f h w factor_and_z"]:
    """The mask's channels, then the latents: to be put behind the noisy latents on the last axis.

    The mask says of each frame of the video whether it is given: a latent frame has a channel for each of its four
    frames. The first latent frame stands for one frame alone, and has it in all of its channels.

    Args:
      latents: normalised, of the `conditioning_clip`. last: whether that clip ends with a picture too.
    """
    mask = jnp.zeros((*latents.shape[:-1], MASK_CHANNELS), latents.dtype).at[:, 0].set(1)
    if last:
        mask = mask.at[:, -1, ..., -1].set(1)
    return jnp.concatenate([mask, latents], axis=-1)
