"""Other identities that are hard to tell from a target: what an evaluator must not mistake it for."""

from dataclasses import replace

import numpy as np

from kaleido_jax.data.drawing import COLOUR_WORDS, Colour, colour_indices, generator
from kaleido_jax.data.sprites import Identity, Painter, Pose
from kaleido_jax.data.textures import repainted
from kaleido_jax.data.world import World

_TRIES = 200


def distractors(
    world: World, target: Identity, seed: int, *, count: int = 15, same_colour: int = 5, same_silhouette: int = 5
) -> tuple[Identity, ...]:
    """`count` identities of the target's split: the first share its dominant colour, the next its silhouette, the rest
    are any.

    A look-alike in colour has another silhouette and another pattern; one in silhouette has other textures and, nearly
    always, another colour. Deterministic in (target, seed).
    """
    if same_colour + same_silhouette > count:
        raise ValueError(
            f"same_colour + same_silhouette is {same_colour + same_silhouette}; it must be at most count, {count}."
        )
    rng = generator(0xD15, seed, target.number)
    parity = target.number % 2
    colour = world.looks(target).colour
    paint = _main_colour(world.painter_of(target), target, colour)
    found: list[Identity] = []
    for _ in range(_TRIES):
        if len(found) == same_colour:
            break
        other = world.identity(2 * int(rng.random() * 2**52) + parity)
        candidate = replace(other, body=repainted(rng, target.body, paint))
        if world.looks(candidate).colour == colour:
            found.append(candidate)
    if len(found) < same_colour:
        raise RuntimeError(
            f"only {len(found)} of {same_colour} identities that look {colour} were found in {_TRIES} tries."
        )
    for i in range(count - same_colour):
        other = world.identity(2 * int(rng.random() * 2**52) + parity)
        found.append(replace(other, silhouette=target.silhouette) if i < same_silhouette else other)
    return tuple(found)


def _main_colour(painter: Painter, target: Identity, word: str) -> Colour:
    """The mean of the target's pixels that go by `word`."""
    sprite = painter.sprite(target, Pose(), fine=False)
    pixels = np.asarray(sprite.picture)[np.asarray(sprite.alpha) > 127]
    chosen = pixels[colour_indices(pixels) == COLOUR_WORDS.index(word)]
    r, g, b = (round(float(channel)) for channel in (chosen if len(chosen) else pixels).mean(0))
    return r, g, b
