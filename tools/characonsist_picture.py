"""Draws CharaConsist's attention for a frame whose character stands elsewhere than in the identity picture.

    python tools/characonsist_picture.py --out docs/pictures/characonsist.png

Text, the frame's tokens, then what it reads of the identity picture: the points of the character, turned to where they
are in the frame, and the background where it is background in both.
"""

import argparse
import pathlib

import jax.numpy as jnp
import numpy as np

from kaleido_jax import rope
from kaleido_jax.drawing import draw_layout
from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.masks import TokenMask
from kaleido_jax.methods.characonsist_attention import Tracking, slots_mask

GRID, TEXT = (1, 8, 12), 12


def character(column: int) -> np.ndarray:
    """Tokens that show a figure of 6 x 4 tokens whose left side is at a column."""
    mask = np.zeros(GRID[1:], bool)
    mask[2:, column : column + 4] = True
    mask[2, [column, column + 3]] = False  # a head
    return mask.ravel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="PNG")
    arguments = parser.parse_args()
    there, here = character(1), character(7)
    match = np.arange(there.size)
    match[here] = np.flatnonzero(there)
    shown = jnp.asarray(here[None], jnp.int32)
    tracking = Tracking(
        match=jnp.asarray(match[None], jnp.int32),
        similarity=jnp.ones(shown.shape, jnp.float32),
        tracked=shown,
        shown=shown,
        identity=jnp.asarray(there, jnp.int32),
    )
    mask = slots_mask(tracking, TEXT, 1, foreground=True, background=True)
    slots = mask.groups.shape[1] - mask.reads.shape[1]
    square = TokenMask(jnp.pad(mask.reads, ((0, 0), (0, slots))), mask.groups, width=mask.width)
    layout = TokenLayout((
        Segment(kind="text", grid=(TEXT, 1, 1)),
        Segment(kind="video", grid=GRID),
        Segment(kind="reference", grid=GRID, subject=0),
        Segment(kind="reference", grid=GRID, subject=1),
    ))  # fmt: skip
    picture = draw_layout(
        layout,
        np.asarray(rope.positions(layout, rope.Flat(), stream=None))[0],
        square,
        title="characonsist",
        subtitle="a frame (video) reads the identity picture's points of its character (subject 1) and background (2)",
        block=1,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(arguments.out)


if __name__ == "__main__":
    main()
