"""CharaConsist's two measurements: which tokens show a character, and which points of two pictures are the same.

Both are taken from the layers' attention and averaged over them (ICCV 2025, arXiv 2507.11533, section 3).
"""

import jax
import jax.numpy as jnp

from kaleido_jax.layout import Grid
from kaleido_jax.typing import Array, Bool, Float, Int

# What a text token says: of the background, of character 1, 2, ..., or nothing that counts (the end, padding). A number
# above that of the last character is what all characters do.
NOT_A_WORD = -1
BACKGROUND = 0
_SMALLEST = 1e-12


def word_scores(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], words: Int[Array, "b m"], characters: int
) -> Float[Array, "b n _"]:
    """How much each picture token reads of the background, of all the foreground, and of each character, float32.

    The scores are q k without the factor 1 / sqrt(d), their softmax is over the words alone, heads are summed, and the
    mean over the tokens of each kind is taken, as the released code does; a kind without a token has -1.

    Args:
      q, k: of picture and text, after rotation.
      words: what each text token says.
      characters: how many there are.

    Returns:
      [b, n, 2 + characters]
    """
    real = words != NOT_A_WORD
    kinds = [words == BACKGROUND, words > BACKGROUND, *(words == 1 + index for index in range(characters))]
    members = jnp.stack(kinds, axis=-1).astype(jnp.float32)

    def head(total: Float[Array, "b n _"], pair: tuple[Array, Array]) -> tuple[Float[Array, "b n _"], None]:
        q, k = (x.astype(jnp.float32) for x in pair)
        scores = jnp.einsum("bnd,bmd->bnm", q, k, precision=jax.lax.Precision.HIGHEST)
        read = jax.nn.softmax(jnp.where(real[:, None], scores, -jnp.inf), axis=-1)
        return total + jnp.einsum("bnm,bmg->bng", read, members, precision=jax.lax.Precision.HIGHEST), None

    # Head by head, so that no array is as large as all heads' scores (200 MB for one picture of 1024 x 1024).
    start = jnp.zeros((q.shape[0], q.shape[1], members.shape[2]), jnp.float32)
    total, _ = jax.lax.scan(head, start, (q.transpose(2, 0, 1, 3), k.transpose(2, 0, 1, 3)))
    count = members.sum(axis=1)[:, None]
    return jnp.where(count > 0, total / jnp.maximum(count, 1.0), -1.0)


def cosines(frames: Float[Array, "r n c"], identity: Float[Array, "k c"]) -> Float[Array, "r n k"]:
    """Cosine similarity of every token of the frames with every token of the identity picture, float32."""
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), _SMALLEST)
    frames, identity = unit(frames.astype(jnp.float32)), unit(identity.astype(jnp.float32))
    return jnp.einsum("rnc,kc->rnk", frames, identity, precision=jax.lax.Precision.HIGHEST)


def characters_shown(scores: Float[Array, "b n g"], grid: Grid, *, erode: int, dilate: int) -> Int[Array, "b n"]:
    """The number of the character that each token shows, 0 for the background.

    scores: of `word_scores`, averaged over the layers. A token is foreground where it reads that at least as much as
    the background; the mask is then made smaller and larger again by squares of these odd sides, against single points
    and holes (the picture's border does neither). Which character: the one that it reads most.
    """
    foreground = (scores[..., 1] >= scores[..., 0]).reshape(-1, *grid[1:])
    foreground = ~_dilated(~foreground, erode)
    foreground = _dilated(foreground, dilate).reshape(scores.shape[:2])
    return jnp.where(foreground, 1 + jnp.argmax(scores[..., 2:], axis=-1), 0).astype(jnp.int32)


def _dilated(mask: Bool[Array, "b h w"], side: int) -> Bool[Array, "b h w"]:
    window = (1, side, side)
    return jax.lax.reduce_window(mask.astype(jnp.int32), 0, jax.lax.max, window, (1, 1, 1), "SAME") > 0


def matches(similarity: Float[Array, "r n k"]) -> tuple[Int[Array, "r n"], Float[Array, "r n"]]:
    """For every token of a frame, its point in the identity picture (the first of equals), and how similar that is."""
    return jnp.argmax(similarity, axis=-1).astype(jnp.int32), similarity.max(axis=-1)


def tracked_characters(
    match: Int[Array, "r n"],
    similarity: Float[Array, "r n"],
    shown: Int[Array, "r n"],
    identity: Int[Array, "n"],
    threshold: float,
) -> Int[Array, "r n"]:
    """The character of each token whose point shows the same one and is more similar than the threshold, or 0."""
    same = (shown == identity[match]) & (similarity > threshold)
    return jnp.where(same, shown, 0)
