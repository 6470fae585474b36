"""The one hook of every transformer's attention: attend(q, k, v, table, rope, state) -> (out, state).

q and k come before rotation, `rope` are the angles of `rope.rotary_angles`, and `state` is what the hook keeps of one
layer: a pytree that the transformer scans in and out beside the parameters. Caches, shared keys and probes are such
functions; the models know none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

from kaleido_jax.attention import attention
from kaleido_jax.rope import apply_rotary
from kaleido_jax.table import TokenTable

Attend = Callable[[Array, Array, Array, TokenTable, Array, Any], tuple[Array, Any]]


def default_attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    table: TokenTable,
    rope: Float[Array, "_ n half"],
    state: Any,
) -> tuple[Float[Array, "b n h d"], Any]:
    """Self-attention as in the paper: rotate queries and keys, then attend where the table's self_mask allows."""
    return attention(apply_rotary(q, rope), apply_rotary(k, rope), v, table.self_mask), state
