"""What is compiled: pure functions of (weights, arrays); the networks' graphs and the bucket are static."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import nnx

from kaleido_jax.bundle import merge
from kaleido_jax.diffusion import guidance, samplers
from kaleido_jax.layout import Grid, TokenLayout, unpatchify
from kaleido_jax.methods import kaleido
from kaleido_jax.tree import pytree
from kaleido_jax.typing import Array, Float, Int, Params, UInt8

Graphs = Mapping[str, nnx.GraphDef]
Weights = Mapping[str, Params]


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """What the velocity depends on beside x and t: one row for each branch of the guidance.

    text: the text encoder's output, text_lengths its real tokens. references: clean latents of each slot; the first
    `counts` of them are there and show `subjects`. weights: of the branches, in the sum that is followed.
    """

    text: Float[Array, "b m d"]
    text_lengths: Int[Array, "b"]
    references: list[Float[Array, "b _ _ _ z"]]
    counts: Int[Array, "b"]
    subjects: Int[Array, "b r"]
    weights: Float[Array, "b"]


def encode_text(
    weights: Weights, ids: Int[Array, "b m"], lengths: Int[Array, "b"], *, graphs: Graphs
) -> Float[Array, "b m d"]:
    """The text encoder's output for padded token ids."""
    return merge(graphs["text"], weights["text"])(ids, lengths)


def encode_pixels(weights: Weights, pixels: Float[Array, "b f h w 3"], *, graphs: Graphs) -> Float[Array, "b _ _ _ z"]:
    """Normalised latents of clips in [-1, 1], each coded alone."""
    return merge(graphs["vae"], weights["vae"]).encode(pixels)


def decode_latents(
    weights: Weights, latents: Float[Array, "b f h w z"], *, graphs: Graphs
) -> UInt8[Array, "b _ _ _ 3"]:
    """Frames as bytes, coded chunk by chunk in time, so that memory does not grow with the length."""
    video = merge(graphs["vae"], weights["vae"]).decode(latents)
    return jnp.round((video + 1.0) * 127.5).astype(jnp.uint8)


def sampler_step(
    weights: Weights,
    state: samplers.State,
    row: samplers.Steps,
    condition: Condition,
    *,
    graphs: Graphs,
    branches: Sequence[guidance.Branch],
    layout: TokenLayout,
    scheme: str,
    patch: Grid,
) -> samplers.State:
    """One step of a sampler over latents [1, f, h, w, z], all branches of the guidance in one batch."""
    transformer = merge(graphs["transformer"], weights["transformer"])
    grid = next(segment.grid for segment in layout.segments if segment.target)
    rows = condition.counts.shape[0]
    table = kaleido.table(
        layout,
        times=jnp.broadcast_to(row.time, (rows,)),
        reference_counts=condition.counts,
        subjects=condition.subjects,
        text_lengths=condition.text_lengths,
        scheme=scheme,
    )
    video = jnp.broadcast_to(state.x, (rows, *state.x.shape[1:]))
    tokens = kaleido.tokens(video, condition.references, patch)
    velocity = unpatchify(transformer(tokens, table, condition.text, layout=layout), grid, patch)
    # The weights are data, so that another guidance scale is no other program.
    rule = guidance.Guidance(tuple(branches), tuple(jnp.unstack(condition.weights)))
    return samplers.advance(state, rule.combine(jnp.split(velocity, rows)), row)
