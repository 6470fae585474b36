"""Kaleido: references are tokens in front of the video, set apart by shifted rotary positions (Kaleido, section 3.3).

As released: every reference is encoded alone into one latent frame of the video's size and stays clean; it is given the
video's time and modulation, reads the text, takes part in full bidirectional attention, and is dropped before the head.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from kaleido_jax import masks, rope
from kaleido_jax.layout import Grid, Segment, TokenLayout, patchify
from kaleido_jax.names import lookup
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import AnyArray, Array, Float, Int

SCHEME = "shift-wh"  # the paper's equation 4


def layout(video: Grid, references: Sequence[Grid], *, text_tokens: int) -> TokenLayout:
    """References in their order, then the video, beside the text.

    Args:
      video: frames, height and width in patches.
      references: the same of each reference, as many as the bucket has room for; a picture is one frame.
      text_tokens: the longest prompt.
    """
    pictures = [Segment(kind="reference", grid=grid, subject=index) for index, grid in enumerate(references)]
    text = Segment(kind="text", grid=(text_tokens, 1, 1))
    return TokenLayout((*pictures, Segment(kind="video", grid=video), text))


def tokens(
    video: Float[Array, "b f h w z"], references: Sequence[Float[Array, "b _ _ _ z"]], patch: Grid
) -> Float[Array, "b n p"]:
    """Patches of the clean references and of the noisy video, in the layout's order."""
    return jnp.concatenate([patchify(piece, patch) for piece in (*references, video)], axis=1)


def table(
    layout: TokenLayout,
    *,
    times: Float[AnyArray, "b"],
    reference_counts: Int[AnyArray, "b"],
    text_lengths: Int[AnyArray, "b"],
    subjects: Int[AnyArray, "b r"] | None = None,
    scheme: str = SCHEME,
) -> TokenTable:
    """What distinguishes the samples of a batch, as data.

    Args:
      layout: of this method.
      times: flow time of each sample; its references get the same, as released.
      reference_counts: references that a sample really has, the first ones of its slots; others are never read.
      text_lengths: tokens that its prompt really has; padding is never read.
      subjects: which subject each reference shows, where a subject may have several pictures; None: one each.
      scheme: a name of `rope.SCHEMES`.
    """
    batch = times.shape[0]
    kinds = [segment.kind for segment in layout.segments]
    slots = kinds.count("reference")
    room = jnp.asarray([segment.tokens for segment in layout.segments], jnp.int32)[None]
    present = jnp.arange(slots, dtype=jnp.int32)[None] < jnp.asarray(reference_counts, jnp.int32)[:, None]
    lengths = jnp.concatenate(
        [
            jnp.where(present, room[:, :slots], 0),
            jnp.broadcast_to(room[:, slots : slots + 1], (batch, 1)),
            jnp.asarray(text_lengths, jnp.int32)[:, None],
        ],
        axis=1,
    )
    shown = None
    if subjects is not None:
        shown = jnp.pad(jnp.asarray(subjects, jnp.int32), ((0, 0), (0, len(kinds) - slots)))
    contents = layout.contents(lengths=lengths, subjects=shown)
    segments = layout.select("visual")
    weights = jnp.asarray([float(segment.target) for segment in segments], jnp.float32)
    shape = (batch, len(segments))
    return TokenTable(
        positions=rope.positions(layout, lookup(rope.SCHEMES, scheme, "position scheme"), contents),
        lengths=contents.lengths,
        subjects=contents.subjects,
        timesteps=jnp.broadcast_to(jnp.asarray(times, jnp.float32)[:, None], shape),
        loss_weights=jnp.broadcast_to(weights[None], shape),
        self_mask=masks.visibility(layout, masks.bidirectional, contents=contents),
        text_mask=masks.visibility(layout, contents=contents, queries="visual", keys="text"),
    )
