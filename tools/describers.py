"""How well describers find known changes: one call that sees both clips, against two stages and a comparer.

    python tools/describers.py
    python tools/describers.py --pairs 40 --describer models/llava
    python tools/describers.py --pairs 40 --describer http://localhost:8000/v1 --describer-model qwen

The changes are the procedural world's, all pairs of its motions and of its places: in each pair one element differs or
none does. Found: the changes that are said. Made up: elements said that do not differ, a pair. Without `--describer`
the one who looks is the world's own truth, which shows what the comparer alone does; with it, clips are rendered for a
random part of the pairs and shown to the model, which also compares in its own words.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from kaleido_jax.data.captions import SCENE_PHRASES
from kaleido_jax.data.groups import Shown, TruthDescriber
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.world import World
from kaleido_jax.errors import InputError, KaleidoError
from kaleido_jax.methods import differential

GAMMAS = (0.25, 0.5, differential.GAMMA, 0.9)
Pair = tuple[Shown, Shown]
Finder = Callable[[Pair], Mapping[str, str]]


def known_pairs() -> list[Pair]:
    """All pairs of motions at one place, and of places with one motion."""
    motions = itertools.product(MOTIONS, repeat=2)
    places = itertools.product(tuple(SCENE_PHRASES), repeat=2)
    return [
        *((Shown(motion=a, scene="plain"), Shown(motion=b, scene="plain")) for a, b in motions),
        *((Shown(motion="up", scene=a), Shown(motion="up", scene=b)) for a, b in places),
    ]


def changed(pair: Pair) -> set[str]:
    """The elements that differ."""
    one, other = pair
    differs = {"action": one.motion != other.motion, "background": one.scene != other.scene}
    return {name for name, is_other in differs.items() if is_other}


def score(find: Finder, pairs: Iterable[Pair]) -> tuple[int, int, int, int, int]:
    """(changes found, changes, elements made up, answers that were refused, pairs)."""
    found = changes = made_up = refused = count = 0
    for pair in pairs:
        truth = changed(pair)
        count += 1
        changes += len(truth)
        try:
            said = set(find(pair))
        except InputError:
            refused += 1
            continue
        found += len(said & truth)
        made_up += len(said - truth)
    return found, changes, made_up, refused, count


def by_truth() -> dict[str, Finder]:
    """Ways to find changes with the world's truth as the one who looks."""
    truth, elements, words = TruthDescriber(), differential.load_elements("miniature"), differential.Words()
    ways: dict[str, Finder] = {"truth, one call": lambda pair: differential.differing(*pair, elements, truth)}
    for gamma in GAMMAS:
        ways[f"truth, two stages, common words, gamma {gamma:g}"] = lambda pair, gamma=gamma: differential.differing(
            *pair, elements, truth, words, gamma
        )
    return ways


def by_model(describer: object, world: World) -> dict[str, Finder]:
    """Ways with a model that looks at clips."""
    elements = differential.load_elements("miniature")
    clip = lambda shown: rendered(world, shown)
    return {
        "model, one call": lambda pair: differential.differing(*map(clip, pair), elements, describer),
        "model, two stages, its own comparison": lambda pair: differential.differing(
            *map(clip, pair), elements, describer, describer
        ),
        "model, two stages, common words": lambda pair: differential.differing(
            *map(clip, pair), elements, describer, differential.Words()
        ),
    }


def rendered(world: World, shown: Shown) -> np.ndarray:
    """A clip, uint8 [f, h, w, 3], of one subject doing what is said where it is said."""
    story = world.story(0, "heldout")
    alone = dataclasses.replace(
        story,
        identities=story.identities[:1],
        motions=(shown.motion,),
        scene=shown.scene,
        pictures=(0,),
        scene_given=False,
    )
    return world.render(alone).video


def table(ways: Mapping[str, Finder], pairs: list[Pair]) -> str:
    """A row for each way."""
    rows = ["| who looks, and how | changes found | made up | answers refused |", "| --- | --- | --- | --- |"]
    for name, find in ways.items():
        found, changes, made_up, refused, count = score(find, pairs)
        rows.append(f"| {name} | {found} of {changes} | {made_up} in {count} pairs | {refused} |")
    return "\n".join(rows)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="so many, drawn at random; by default all of them")
    parser.add_argument("--describer", help="folder of a vision-language model, or the address of an endpoint")
    parser.add_argument("--describer-model", default="", metavar="NAME", help="the endpoint's model")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="answers of an endpoint are kept here")
    arguments = parser.parse_args(words)
    pairs = known_pairs()
    if arguments.pairs is not None:
        chosen = np.random.default_rng(0).permutation(len(pairs))[: arguments.pairs]
        pairs = [pairs[i] for i in chosen]
    ways = by_truth()
    try:
        if arguments.describer:
            from kaleido_jax.describers import create

            describer = create(arguments.describer, arguments.describer_model, cache=arguments.cache)
            ways |= by_model(describer, World(96, 9))
        print(table(ways, pairs))
    except KaleidoError as error:
        print(f"describers: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
