"""Point tracking on Wan's references: CharaConsist's idea tried where references are tokens of the video's sequence.

A variant of ours, without training, of sampling alone. In each layer a video token has a point: the reference's token
whose attention outputs were most like its own, averaged over the layers gone through so far in the same pass. From the
middle layer on, the video reads the points' keys and values once more, the keys turned to where the video's own tokens
stand (`methods.characonsist_attention` does so for pictures). No step keeps anything for the next.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax import attention
from kaleido_jax.layout import TokenLayout
from kaleido_jax.masks import MOST_BITS, TokenMask
from kaleido_jax.methods.characonsist_matching import cosines, matches
from kaleido_jax.rope import apply_rotary
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceTracking:
    """The hook `attend` of one pass of a WanTransformer; make it anew for each, with `start`.

    layout: with video and reference segments. threshold: a point counts above this cosine. first: the layer, from 0,
    from which points are read. layer, similarity: references to what the pass has seen: layers, and the sum of cosines
    over them, float32 [b, tokens of the video, tokens of references].
    """

    layout: TokenLayout
    threshold: float
    first: int
    layer: Any
    similarity: Any

    @classmethod
    def start(cls, layout: TokenLayout, threshold: float, layers: int, batch: int) -> "ReferenceTracking":
        """For a pass of a network of so many layers."""
        video, references = (len(_places(layout, kind)) for kind in ("video", "reference"))
        return cls(
            layout=layout,
            threshold=threshold,
            first=layers // 2,
            layer=jax.new_ref(jnp.zeros((), jnp.int32)),
            similarity=jax.new_ref(jnp.zeros((batch, video, references), jnp.float32)),
        )

    def __call__(
        self,
        q: Float[Array, "b n h d"],
        k: Float[Array, "b n h d"],
        v: Float[Array, "b n h d"],
        table: TokenTable,
        rope: Float[Array, "_ n half"],
        state: Any,
    ) -> tuple[Float[Array, "b n h d"], Any]:
        video, references = (_places(self.layout, kind) for kind in ("video", "reference"))
        gone = self.layer[...]
        match, similarity = self._points(table, gone)
        pair = (similarity > self.threshold) & (gone >= self.first)
        take = jax.vmap(lambda x, at: x[at])
        points_k = apply_rotary(take(k[:, references], match), rope[:, video])
        points_v = take(v[:, references], match)
        keys = jnp.concatenate([apply_rotary(k, rope), points_k], axis=1)
        values = jnp.concatenate([v, points_v], axis=1)
        out = attention.attention(apply_rotary(q, rope), keys, values, _with_points(table, video, pair, q.shape))
        joined = lambda x: x.reshape(*x.shape[:-2], -1)
        self.similarity[...] += jax.vmap(lambda a, b: cosines(a[None], b)[0])(
            joined(out[:, video]), joined(out[:, references])
        )
        self.layer[...] = gone + 1
        return out, state

    def _points(self, table: TokenTable, gone: Int[Array, ""]) -> tuple[Int[Array, "b v"], Float[Array, "b v"]]:
        """Of each video token the reference token that is most like it, and how much; absent ones are like nothing."""
        there = []
        for i, segment in enumerate(self.layout.segments):
            if segment.kind == "reference":
                there.append(jnp.arange(segment.tokens, dtype=jnp.int32)[None] < table.lengths[:, i, None])
        mean = self.similarity[...] / jnp.maximum(gone, 1).astype(jnp.float32)
        return matches(jnp.where(jnp.concatenate(there, axis=1)[:, None], mean, -2.0))


def _places(layout: TokenLayout, kind: str) -> np.ndarray:
    """The numbers, among the visual tokens, of those of one kind of segment."""
    chosen = [piece for s, piece in zip(layout.select("visual"), layout.slices("visual")) if s.kind == kind]
    return np.concatenate([np.arange(piece.start, piece.stop) for piece in chosen])


def _with_points(table: TokenTable, video: np.ndarray, pair: Bool[Array, "b v"], shape: tuple[int, ...]) -> TokenMask:
    """The table's mask, with a key more for each video token, its point: the video reads those that count."""
    mask = table.self_mask
    batch, tokens = shape[:2]
    if mask is None:
        every = jnp.ones((tokens,), jnp.uint32)
        mask = TokenMask(every, every, width=1)
    if mask.width >= MOST_BITS:
        raise ValueError(
            f"the mask of the table has {mask.width} bits; tracking needs one more, and {MOST_BITS} are all"
        )
    rows = lambda x: jnp.broadcast_to(x, (batch, tokens))
    bit = jnp.uint32(1 << mask.width)
    is_video = np.zeros(tokens, bool)
    is_video[video] = True
    own = None if mask.k_sample is None else rows(mask.k_sample)
    return TokenMask(
        rows(mask.reads) | jnp.where(is_video, bit, jnp.uint32(0))[None],
        jnp.concatenate([rows(mask.groups), jnp.where(pair, bit, jnp.uint32(0))], axis=1),
        q_sample=None if mask.q_sample is None else rows(mask.q_sample),
        k_sample=None if own is None else jnp.concatenate([own, own[:, video]], axis=1),
        width=mask.width + 1,
    )
