"""A prompt and one picture: the sequence that FLUX.1 was trained on, and that CharaConsist builds on."""

import jax.numpy as jnp

from kaleido_jax import rope
from kaleido_jax.layout import Grid, Segment, TokenLayout
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import AnyArray, Float


def layout(picture: Grid, *, text_tokens: int) -> TokenLayout:
    """The text, then the picture. picture: (1, height, width) in patches."""
    return TokenLayout((Segment(kind="text", grid=(text_tokens, 1, 1)), Segment(kind="video", grid=picture)))


def table(layout: TokenLayout, times: Float[AnyArray, "b"]) -> TokenTable:
    """All tokens at (0, row, column), the text at the origin; every token reads every other, padding included.

    times: of the flow, in [0, 1].
    """
    batch, segments = times.shape[0], layout.segments
    return TokenTable(
        positions=rope.positions(layout, rope.Flat(), stream=None),
        lengths=jnp.broadcast_to(jnp.asarray([[s.tokens for s in segments]], jnp.int32), (batch, len(segments))),
        subjects=jnp.zeros((batch, len(segments)), jnp.int32),
        timesteps=jnp.asarray(times, jnp.float32)[:, None],
        loss_weights=jnp.ones((batch, 1), jnp.float32),
    )
