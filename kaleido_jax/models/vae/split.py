"""A picture divided over devices: what a layer needs of its neighbours.

Every layer of the VAE but its attention looks at most one pixel to the side. So a device that has some columns of all
activations needs one more on either side before a convolution (its halo), and for attention the keys of all devices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Split:
    """Inside shard_map: pictures [b, f, h, w, c] are divided evenly along one dimension over a mesh axis.

    axis: name of the mesh axis. parts: how many devices it has. dimension: 2 for height, 3 for width.
    """

    axis: str
    parts: int
    dimension: int

    def extended(self, x: Float[Array, "b f h w c"], before: int, after: int) -> Float[Array, "b f y x c"]:
        """x with that many of the neighbours' rows or columns around it; zeros beyond the picture's border."""
        size = x.shape[self.dimension]
        pieces = [x]
        if before:
            last = jax.lax.slice_in_dim(x, size - before, size, axis=self.dimension)
            pieces.insert(0, jax.lax.ppermute(last, self.axis, [(i, i + 1) for i in range(self.parts - 1)]))
        if after:
            first = jax.lax.slice_in_dim(x, 0, after, axis=self.dimension)
            pieces.append(jax.lax.ppermute(first, self.axis, [(i + 1, i) for i in range(self.parts - 1)]))
        return jnp.concatenate(pieces, axis=self.dimension)

    def padding(self, before: int, after: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What is left to pad with zeros of height and width, once x is extended."""
        rest = (before, after)
        return ((0, 0), rest) if self.dimension == 2 else (rest, (0, 0))

    def everywhere(self, tokens: Float[Array, "n k h d"]) -> Float[Array, "n keys h d"]:
        """The tokens of all devices."""
        return jax.lax.all_gather(tokens, self.axis, axis=1, tiled=True)
