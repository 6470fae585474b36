"""CharaConsist's attention: frames read the identity picture's points where they themselves have them.

Identity picture and frames are rows of one batch, the identity picture first. So a layer's keys, values and attention
output of the identity picture are at hand when the frames need them, and nothing is kept for later layers or steps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kaleido_jax import attention
from kaleido_jax.masks import TokenMask
from kaleido_jax.methods.characonsist_matching import cosines, word_scores
from kaleido_jax.models.hook import default_attend
from kaleido_jax.rope import apply_rotary
from kaleido_jax.table import TokenTable
from kaleido_jax.tree import pytree
from kaleido_jax.typing import AnyArray, Array, Bool, Float, Int


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracking:
    """What is known of the pictures of a group; r frames, n tokens of a picture.

    match: for each token of a frame its point, a token of the identity picture. similarity: of the two.
    tracked: the character that both show, 0 where they are no pair. shown: the character that a frame's token shows
    by the newest mask, 0 for the background; identity: the same of the identity picture.
    """

    match: Int[Array, "r n"]
    similarity: Float[Array, "r n"]
    tracked: Int[Array, "r n"]
    shown: Int[Array, "r n"]
    identity: Int[Array, "n"]


_OF_FRAMES = ("match", "similarity", "tracked", "shown")  # what `Tracking` holds a row of for each frame


def nothing_tracked(frames: int, tokens: int) -> Tracking:
    """Before the first measurement: all is background and nothing is a pair."""
    zeros = jnp.zeros((frames, tokens), jnp.int32)
    return Tracking(
        match=zeros,
        similarity=jnp.zeros((frames, tokens), jnp.float32),
        tracked=zeros,
        shown=zeros,
        identity=jnp.zeros((tokens,), jnp.int32),
    )


def slots_mask(
    tracking: Tracking, text_tokens: int, characters: int, *, foreground: bool, background: bool
) -> TokenMask:
    """Which token of a frame reads which key: its own tokens, then the identity picture's foreground, background.

    The identity picture's foreground has a key for each token of the frame (its point), and so its background (the
    token at the same place). Texts read no such key, a character reads its own points, the background its own.
    """
    frames, tokens = tracking.match.shape
    one, two = jnp.uint32(1), jnp.uint32(2)
    own = jnp.ones((frames, text_tokens + tokens), jnp.uint32)
    bit = lambda kind: two << kind.astype(jnp.uint32)  # 2 for the background, 4, 8, ... for characters
    reads = own.at[:, text_tokens:].set(one | bit(tracking.shown))
    groups = [own]
    if foreground:
        groups.append(jnp.where(tracking.tracked > 0, bit(tracking.tracked), jnp.uint32(0)))
    if background:
        both = (tracking.shown == 0) & (tracking.identity == 0)[None]
        groups.append(jnp.where(both, two, jnp.uint32(0)))
    return TokenMask(reads, jnp.concatenate(groups, axis=1), width=2 + characters)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointTracking:
    """The hook of one pass: attention with tracked points, and the measurements for the next.

    A layer's state says what its frames share, as an index into `kinds`, pairs (foreground, background); where a layer
    has no state, nothing is shared or measured. Sums over layers are added up in place.

    Args:
      tracking: what is shared by. merge: how strongly outputs at pairs are replaced, times their similarity; None
        leaves this out. words: what each text token says.
      measure_words, measure_points: whether `scores` and `similarity` get this pass's sums.
    """

    kinds: tuple[tuple[bool, bool], ...]
    characters: int
    tracking: Tracking
    merge: Float[AnyArray, ""] | None
    words: Int[AnyArray, "b m"]
    measure_words: Bool[AnyArray, ""]
    measure_points: Bool[AnyArray, ""]
    scores: Any  # references to arrays: float32 [b, n, 2 + characters]
    similarity: Any  # float32 [r, n, n]

    def __call__(
        self,
        q: Float[Array, "b t h d"],
        k: Float[Array, "b t h d"],
        v: Float[Array, "b t h d"],
        table: TokenTable,
        rope: Float[Array, "one t half"],
        state: Any,
    ) -> tuple[Float[Array, "b t h d"], Any]:
        if state is None:
            return default_attend(q, k, v, table, rope, state)
        text = self.words.shape[1]
        turned_q, turned_k = apply_rotary(q, rope), apply_rotary(k, rope)
        identity = attention.attention(turned_q[:1], turned_k[:1], v[:1])
        out = identity
        if q.shape[0] > 1:
            plain = lambda: attention.attention(turned_q[1:], turned_k[1:], v[1:])

            def shared(foreground: bool, background: bool) -> Array:
                if not (foreground or background):
                    return plain()

                def frame(row: tuple[Array, Array, Array, tuple[Array, ...]]) -> Array:
                    """One frame's attention. [t h d]"""
                    tracking = dataclasses.replace(
                        self.tracking, **dict(zip(_OF_FRAMES, (value[None] for value in row[3]), strict=True))
                    )
                    keys, values = [row[1]], [row[2]]
                    if foreground:  # points, turned to where the frame has them
                        points = k[:1, text:][:, tracking.match[0]]
                        keys.append(apply_rotary(points, rope[:, text:])[0])
                        values.append(v[0, text:][tracking.match[0]])
                    if background:
                        keys.append(turned_k[0, text:])
                        values.append(v[0, text:])
                    mask = slots_mask(tracking, text, self.characters, foreground=foreground, background=background)
                    joined = (jnp.concatenate(parts)[None] for parts in (keys, values))
                    return attention.attention(row[0][None], *joined, mask)[0]

                # One after the other: keys and values of all frames at once would be what takes the most memory.
                known = tuple(getattr(self.tracking, name) for name in _OF_FRAMES)
                return jax.lax.map(frame, (turned_q[1:], turned_k[1:], v[1:], known))

            frames = jax.lax.switch(state, [lambda kind=kind: shared(*kind) for kind in self.kinds])
            self._measure_points(frames[:, text:], identity[0, text:])
            out = jnp.concatenate([identity, self._merged(frames, identity, text, state)])
        self._measure_words(turned_q[:, text:], turned_k[:, :text])
        return out, state

    def _merged(
        self, frames: Float[Array, "r t h d"], identity: Float[Array, "one t h d"], text: int, state: Int[Array, ""]
    ) -> Float[Array, "r t h d"]:
        """Adaptive token merge: outputs at pairs move towards those of their points, in layers that share them."""
        if self.merge is None:
            return frames
        shares = jnp.asarray([foreground for foreground, _ in self.kinds])[state]
        weight = jnp.where(shares & (self.tracking.tracked > 0), self.merge * self.tracking.similarity, 0.0)
        weight = weight[:, :, None, None]
        mine = frames[:, text:].astype(jnp.float32)
        theirs = identity[0, text:][self.tracking.match].astype(jnp.float32)
        merged = ((1.0 - weight) * mine + weight * theirs).astype(frames.dtype)
        return jnp.concatenate([frames[:, :text], merged], axis=1)

    def _measure_words(self, q: Float[Array, "b n h d"], k: Float[Array, "b m h d"]) -> None:
        def measure() -> None:
            self.scores[...] += word_scores(q, k, self.words, self.characters)

        jax.lax.cond(self.measure_words, measure, lambda: None)

    def _measure_points(self, frames: Float[Array, "r n h d"], identity: Float[Array, "n h d"]) -> None:
        def measure() -> None:
            joined = lambda x: x.reshape(*x.shape[:-2], -1)
            self.similarity[...] += cosines(joined(frames), joined(identity))

        jax.lax.cond(self.measure_points, measure, lambda: None)
