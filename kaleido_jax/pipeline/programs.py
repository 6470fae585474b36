"""What is compiled: pure functions of (weights, arrays); the networks' graphs and the bucket are static."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from kaleido_jax.bundle import merge
from kaleido_jax.diffusion import guidance, samplers
from kaleido_jax.layout import Grid, TokenLayout
from kaleido_jax.methods import cache, contextanyone, lct
from kaleido_jax.methods.method import Condition, Method, velocity
from kaleido_jax.models.vae import decode_on_mesh, decode_tiled
from kaleido_jax.models.vision import wan_image_tokens
from kaleido_jax.parallel import divided
from kaleido_jax.typing import Array, Bool, Float, Int, Params, UInt8

Graphs = Mapping[str, nnx.GraphDef]
Weights = Mapping[str, Params]


def encode_text(
    weights: Weights, ids: Int[Array, "b m"], lengths: Int[Array, "b"], *, graphs: Graphs
) -> Float[Array, "b m d"]:
    """The text encoder's output for padded token ids, zero past each length, which Wan's own models read too."""
    words = merge(graphs["text"], weights["text"])(ids, lengths)
    there = jnp.arange(ids.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
    return jnp.where(there[..., None], words, 0.0)


def encode_pixels(weights: Weights, pixels: Float[Array, "b f h w 3"], *, graphs: Graphs) -> Float[Array, "b _ _ _ z"]:
    """Normalised latents of clips in [-1, 1], each coded alone."""
    return merge(graphs["vae"], weights["vae"]).encode(pixels)


def encode_image(
    weights: Weights, pictures: Float[Array, "r h w 3"], there: Bool[Array, "r"], *, graphs: Graphs
) -> Float[Array, "r n e"]:
    """The image encoder's tokens of pictures in [-1, 1]; zero for those that are not there."""
    tokens = wan_image_tokens(merge(graphs["vision"], weights["vision"]), pictures)
    return jnp.where(there[:, None, None], tokens, 0.0)


def decode_latents(
    weights: Weights, latents: Float[Array, "b f h w z"], *, graphs: Graphs
) -> UInt8[Array, "b _ _ _ 3"]:
    """Frames as bytes, coded chunk by chunk in time, so that memory does not grow with the length."""
    return _as_bytes(merge(graphs["vae"], weights["vae"]).decode(latents))


def decode_in_tiles(
    weights: Weights, latents: Float[Array, "b f h w z"], *, graphs: Graphs
) -> UInt8[Array, "b _ _ _ 3"]:
    """As `decode_latents`, in tiles of the pictures too, so that memory hardly grows with their size."""
    return _as_bytes(decode_tiled(merge(graphs["vae"], weights["vae"]), latents))


def decode_divided(
    weights: Weights, latents: Float[Array, "b f h w z"], *, graphs: Graphs, mesh: Mesh, axis: str
) -> UInt8[Array, "b _ _ _ 3"]:
    """As `decode_latents`, each device of a mesh axis a part of every frame."""
    return _as_bytes(decode_on_mesh(merge(graphs["vae"], weights["vae"]), latents, mesh, axis))


def _as_bytes(video: Float[Array, "b f h w 3"]) -> UInt8[Array, "b f h w 3"]:
    return jnp.round((video + 1.0) * 127.5).astype(jnp.uint8)


def keep_references(
    weights: Weights,
    condition: Condition,
    *,
    graphs: Graphs,
    method: Method,
    layout: TokenLayout,
    patch: Grid,
    int8: bool = False,
    shared: bool = False,
) -> cache.Kept:
    """What of the references is the same at every step, in bytes if `int8`; of the first row alone if `shared`."""
    if shared:
        condition = jax.tree.map(lambda x: x[:1], condition)
    transformer = merge(graphs["transformer"], weights["transformer"])
    kept = cache.keep_references(method, transformer, condition, layout=layout, patch=patch)
    return cache.Int8KeyValues.of(kept) if int8 else kept


def reconstruct(
    weights: Weights, condition: Condition, *, graphs: Graphs, method: Method, layout: TokenLayout, patch: Grid
) -> list[Float[Array, "b _ _ _ z"]]:
    """Latents of the references as the network paints them again."""
    transformer = merge(graphs["transformer"], weights["transformer"])
    return contextanyone.reconstruct(method, transformer, condition, layout=layout, patch=patch)


def shot_by_shot(
    weights: Weights,
    noise: Float[Array, "one f h w z"],
    steps: samplers.Steps,
    condition: Condition,
    scales: Float[Array, "b"],
    *,
    graphs: Graphs,
    branches: Sequence[guidance.Branch],
    method: lct.LCT,
    layout: TokenLayout,
    patch: Grid,
) -> Float[Array, "one f h w z"]:
    """The latents of a scene whose shots are made one after the other. condition, scales: as in `sampler_step`."""
    transformer = merge(graphs["transformer"], weights["transformer"])
    rule = guidance.Guidance(tuple(branches), tuple(jnp.unstack(scales)))
    return lct.autoregress(method, transformer, noise, condition, rule=rule, steps=steps, layout=layout, patch=patch)


def scene_step(
    weights: Weights,
    state: samplers.State,
    row: samplers.Steps,
    condition: Condition,
    scales: Float[Array, "b"],
    held: lct.Held,
    *,
    graphs: Graphs,
    branches: Sequence[guidance.Branch],
    method: lct.LCT,
    layout: TokenLayout,
    patch: Grid,
    ulysses: int | None = None,
) -> samplers.State:
    """One step of a sampler over a scene of which some shots may be given. The others are as in `sampler_step`."""
    rows = scales.shape[0]
    scene, times = lct.hold(state.x, row.time, held.given, held.noise, held.is_given)
    repeat = lambda x: jnp.broadcast_to(x, (rows, *x.shape[1:]))
    transformer = divided(functools.partial(merge, graphs["transformer"]), weights["transformer"], ulysses=ulysses)
    answers = velocity(method, transformer, repeat(scene), repeat(times), condition, layout=layout, patch=patch)
    rule = guidance.Guidance(tuple(branches), tuple(jnp.unstack(scales)))
    return samplers.advance(state, held.follow(rule.combine(jnp.split(answers, rows))), row)


def sampler_step(
    weights: Weights,
    state: samplers.State,
    row: samplers.Steps,
    condition: Condition,
    scales: Float[Array, "b"],
    kept: cache.Kept | None = None,
    *,
    graphs: Graphs,
    branches: Sequence[guidance.Branch],
    method: Method,
    layout: TokenLayout,
    patch: Grid,
    ulysses: int | None = None,
) -> samplers.State:
    """One step of a sampler over latents [1, f, h, w, z], all branches of the guidance in one batch.

    condition: one row for each branch. scales: the branches' weights in the sum that is followed. kept: the references'
    keys and values, where the method lets them be kept. ulysses: of the mesh that is set, if one is.
    """
    rows = scales.shape[0]
    video = jnp.broadcast_to(state.x, (rows, *state.x.shape[1:]))
    times = jnp.broadcast_to(row.time, (rows, method.draws(layout)))
    build = functools.partial(merge, graphs["transformer"])
    if kept is None:
        transformer = divided(build, weights["transformer"], ulysses=ulysses)
        answers = velocity(method, transformer, video, times, condition, layout=layout, patch=patch)
    else:
        transformer = build(weights["transformer"])
        answers = cache.velocity(method, transformer, video, times, condition, kept, layout=layout, patch=patch)
    # The weights are data, so that another guidance scale is no other program.
    rule = guidance.Guidance(tuple(branches), tuple(jnp.unstack(scales)))
    state = samplers.advance(state, rule.combine(jnp.split(answers, rows)), row)
    return state._replace(x=method.given(state.x, condition))
