"""Coding one clip on several devices, each of which has a part of every frame.

Before each convolution neighbours exchange a row or column (`Split`), so the result is that of one device, no pixel is
computed twice, and a device holds the activations of its own part only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from kaleido_jax.models.vae.modeling import Latents, Pixels, WanVAE
from kaleido_jax.models.vae.split import Split

Side = Literal["height", "width"]


def decode_on_mesh(
    vae: WanVAE, latents: Latents, mesh: Mesh, axis: str, *, side: Side | None = None, chunk: int | None = 1
) -> Float[Array, "b f h w 3"]:
    """`WanVAE.decode`, divided over the devices of a mesh axis.

    Args:
      latents: normalised, [b, n + 1, h, w, z_dim].
      axis: of the mesh; over its other axes everything is computed alike.
      side: which side of the pictures is divided; if not given, the longer one that the devices divide.
      chunk: latent frames decoded at a time, as in `decode`.

    Returns:
      The video, divided over the devices as it was computed.

    Raises:
      ValueError: if the side is no multiple of the devices in latents, or as `decode` does.
    """
    split = _split(latents.shape[2:4], mesh, axis, side)
    return _run(lambda vae, latents: vae.decode(latents, chunk=chunk, split=split), vae, latents, mesh, split)


def encode_on_mesh(
    vae: WanVAE, video: Pixels, mesh: Mesh, axis: str, *, side: Side | None = None, chunk: int | None = 1
) -> Float[Array, "b g y x z"]:
    """`WanVAE.encode`, divided over the devices of a mesh axis; arguments as those of `decode_on_mesh`."""
    vae.check_video(video)
    height, width = (size // vae.config.spatial_factor for size in video.shape[2:4])
    split = _split((height, width), mesh, axis, side)
    return _run(lambda vae, video: vae.encode(video, chunk=chunk, split=split), vae, video, mesh, split)


def _run(code: Callable[[WanVAE, Array], Array], vae: WanVAE, x: Array, mesh: Mesh, split: Split) -> Array:
    graphdef, parameters = nnx.split(vae)
    part = PartitionSpec(*[None] * split.dimension, split.axis)
    compute = jax.shard_map(
        lambda parameters, x: code(nnx.merge(graphdef, parameters), x),
        mesh=mesh,
        in_specs=(PartitionSpec(), part),
        out_specs=part,
        check_vma=False,  # attention begins its sums with zeros, which vary along no axis
    )
    return compute(parameters, x)


def _split(latents: tuple[int, ...], mesh: Mesh, axis: str, side: Side | None) -> Split:
    """latents: height and width."""
    if axis not in mesh.shape:
        raise ValueError(f"axis is {axis!r}; expected one of the mesh's, {', '.join(mesh.axis_names)}.")
    parts, lengths = mesh.shape[axis], dict(zip(("height", "width"), latents, strict=True))
    fitting = [name for name, length in lengths.items() if length % parts == 0]
    if not fitting or (side is not None and side not in fitting):
        asked = lengths if side is None else {side: lengths[side]}
        found = " and ".join(f"{name} is {length} latents" for name, length in asked.items())
        raise ValueError(f"{found}; expected a multiple of the {parts} devices of the mesh axis {axis!r}.")
    divided = side or max(fitting, key=lambda name: lengths[name])
    return Split(axis, parts, 2 if divided == "height" else 3)
