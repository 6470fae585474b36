"""Coding pictures of any size in tiles that overlap, for the memory of one tile.

What lies between pixels and the latents' resolution is coded tile by tile, and neighbours are faded into each other
where they overlap. The core at the latents' resolution reads whole frames, so its attention sees the same as without
tiles: nothing changes its brightness or colour from tile to tile, and the only difference to coding at once is that of
zeros beyond a tile's border, which dies out within a few latents and is faded out with it. (diffusers codes the core in
tiles too, and begins its last tile wherever the stride leads, however little is left; here all tiles are of one size.)

Memory: the core's features for all latent frames (4 base_dim channels at a 64th of the pixels or less), one tile, and
the clip itself.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kaleido_jax.models.vae.modeling import Latents, Pixels, WanVAE, in_chunks


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that they cover the length evenly, each overlapping the next by at least `overlap`."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def fades(begin: list[int], tile: int, length: int) -> Float[np.ndarray, "tiles tile"]:
    """How much each tile counts along one dimension: it rises and falls in a line where it meets its neighbours.

    Over all tiles the weights of a place sum to 1.
    """
    weights = np.ones((len(begin), tile))
    ramp = np.arange(tile) + 0.5
    for left, right in zip(range(len(begin)), range(1, len(begin))):
        overlap = max(begin[left] + tile - begin[right], 0.5)  # tiles that only touch count in full
        weights[left] = np.minimum(weights[left], ramp[::-1] / overlap)
        weights[right] = np.minimum(weights[right], ramp / overlap)
    total = np.zeros(length)
    for start, row in zip(begin, weights):
        total[start : start + tile] += row
    return np.stack([row / total[start : start + tile] for start, row in zip(begin, weights)]).astype(np.float32)


def decode_tiled(
    vae: WanVAE, latents: Latents, *, tile: int = 32, overlap: int = 8, chunk: int | None = 1
) -> Float[Array, "b f h w 3"]:
    """`WanVAE.decode` of pictures of any size, for the memory of tiles.

    Args:
      latents: normalised, [b, n + 1, h, w, z_dim].
      tile: latents of the side of a tile. overlap: latents that neighbours share at least.
      chunk: latent frames decoded at a time, as in `decode`.

    Raises:
      ValueError: if a tile is no larger than the overlap, or as `decode` does.
    """
    vae.check_latents(latents)
    check_tiles(tile, overlap)
    features = in_chunks(vae.decoder.core, vae.post_quant_conv.apply(vae.unnormalise(latents)), chunk)
    grow = lambda part: vae.unshuffle(in_chunks(vae.decoder.grow, part, chunk))
    video = in_tiles(grow, features, 1, vae.config.spatial_factor, sizes(latents, tile), overlap)
    return jnp.clip(video, -1, 1).astype(latents.dtype)


def encode_tiled(
    vae: WanVAE, video: Pixels, *, tile: int = 32, overlap: int = 8, chunk: int | None = 1
) -> Float[Array, "b g y x z"]:
    """`WanVAE.encode` of pictures of any size, for the memory of tiles; arguments as those of `decode_tiled`."""
    vae.check_video(video)
    check_tiles(tile, overlap)
    frames = None if chunk is None else chunk * vae.config.temporal_factor
    shrink = lambda part: in_chunks(vae.encoder.shrink, vae.shuffle(part), frames)
    factor = vae.config.spatial_factor
    features = in_tiles(shrink, video, factor, 1, sizes(video[:, :, ::factor, ::factor], tile), overlap)
    mean, _ = vae.posterior(in_chunks(vae.encoder.core, features.astype(video.dtype), chunk))
    return vae.normalise(mean)


def check_tiles(tile: int, overlap: int) -> None:
    """Raises ValueError for tiles that are no larger than their overlap."""
    if tile < 1:
        raise ValueError(f"tile is {tile}; expected a positive number of latents.")
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}; expected 0 to {tile - 1}, for tiles of {tile} latents.")


def sizes(latents: Array, tile: int) -> list[tuple[int, int]]:
    """(length, tile) of height and width in latents."""
    return [(length, min(tile, length)) for length in latents.shape[2:4]]


def in_tiles(
    code: Callable[[Array], Array],
    x: Array,
    factor_in: int,
    factor_out: int,
    lengths: list[tuple[int, int]],
    overlap: int,
) -> Float[Array, "b g y x o"]:
    """`code` applied to tiles of x, and their results faded into each other, in float32.

    factor_in, factor_out: pixels of x, and of the result, for each latent. lengths: as `sizes` gives them. All tiles
    run in one compiled loop.
    """
    begin = [starts(length, tile, overlap) for length, tile in lengths]
    weights = [
        fades([start * factor_out for start in some], tile * factor_out, length * factor_out)
        for some, (length, tile) in zip(begin, lengths)
    ]
    rows, columns = (index.ravel() for index in np.indices([len(some) for some in begin]))
    tile_in = (*x.shape[:2], *(tile * factor_in for _, tile in lengths), x.shape[4])
    out = jax.eval_shape(code, jax.ShapeDtypeStruct(tile_in, x.dtype))
    whole = jnp.zeros((*out.shape[:2], *(length * factor_out for length, _ in lengths), out.shape[4]), jnp.float32)

    def step(whole: Array, tile: tuple[Array, ...]) -> tuple[Array, None]:
        row, column, row_weights, column_weights = tile
        at = lambda factor: (0, 0, row * factor, column * factor, 0)
        y = code(jax.lax.dynamic_slice(x, at(factor_in), tile_in)).astype(jnp.float32)
        y = y * row_weights[None, None, :, None, None] * column_weights[None, None, None, :, None]
        before = jax.lax.dynamic_slice(whole, at(factor_out), y.shape)
        return jax.lax.dynamic_update_slice(whole, before + y, at(factor_out)), None

    where = [np.array(some, np.int32)[index] for some, index in zip(begin, (rows, columns))]
    return jax.lax.scan(step, whole, (*where, weights[0][rows], weights[1][columns]))[0]
