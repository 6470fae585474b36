"""What the compiled step takes as data beside the tokens."""

import dataclasses

from kaleido_jax.masks import TokenMask
from kaleido_jax.tree import pytree
from kaleido_jax.typing import AnyArray, Float32, Int32


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenTable:
    """Everything about a batch's tokens that varies without a new program. s counts the segments of the layout.

    positions: where each visual token stands (time, row, column), see `rope.positions`.
    lengths: tokens present in each segment, 0 = absent. subjects: which subject each segment shows.
    timesteps: flow time in [0, 1] of each visual segment. loss_weights: weight of each visual segment's mean loss.
    self_mask: who reads whom among the visual tokens. text_mask: which visual token reads which text token. None:
    all do.
    """

    positions: Float32[AnyArray, "#b n 3"]
    lengths: Int32[AnyArray, "b s"]
    subjects: Int32[AnyArray, "b s"]
    timesteps: Float32[AnyArray, "b s_visual"]
    loss_weights: Float32[AnyArray, "b s_visual"]
    self_mask: TokenMask | None = None
    text_mask: TokenMask | None = None
