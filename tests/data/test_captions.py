"""Captions: their vocabulary, their order, and what they say."""

import re

import numpy as np

from kaleido_jax.data.captions import Looks, caption, vocabulary
from kaleido_jax.data.drawing import COLOUR_WORDS, colour_word, generator
from kaleido_jax.data.lexicon import GIVEN_SCENE, MOTION_PHRASES, SCENE_PHRASES
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.objects import OBJECTS
from kaleido_jax.data.records import SCENE_NAMES
from kaleido_jax.data.world import World

RED = Looks(family="creature", noun="cat", colour="red", texture="striped")
BLUE = Looks(family="object", noun="car", colour="blue", texture="dotted")


def words(prompt: str) -> list[str]:
    return re.findall(r"[a-z]+|[^a-z\s]", prompt)


def test_captions_use_the_vocabulary_only():
    known = set(vocabulary())
    assert len(known) == len(vocabulary()) < 500
    rng = generator(1)
    for _ in range(3000):
        looks = tuple(
            Looks(family=family, noun=noun, colour=COLOUR_WORDS[int(rng.random() * len(COLOUR_WORDS))], texture="plaid")
            for family, noun in (("object", name) for name in list(OBJECTS)[int(rng.random() * 20) :][:2])
        )[: 1 + int(rng.random() * 2)]
        motions = tuple(MOTIONS[int(rng.random() * len(MOTIONS))] for _ in looks)
        text = caption(rng, looks, motions, SCENE_NAMES[int(rng.random() * len(SCENE_NAMES))], bool(rng.random() < 0.3))
        assert set(words(text)) <= known, text
    world = World(48, 1)
    for seed in range(150):
        prompt = world.story(seed, "heldout").prompt
        assert set(words(prompt)) <= known and prompt == prompt.lower(), prompt


def test_every_motion_and_scene_has_words():
    assert set(MOTION_PHRASES) == set(MOTIONS)
    assert set(SCENE_PHRASES) == set(SCENE_NAMES)
    every = [phrase for phrases in MOTION_PHRASES.values() for phrase in phrases]
    assert len(every) == len(set(every)), "two motions with one description cannot be told apart"
    scenes = [phrase for phrases in SCENE_PHRASES.values() for phrase in phrases] + list(GIVEN_SCENE)
    assert len(scenes) == len(set(scenes))


def test_subjects_are_mentioned_in_the_order_of_their_references():
    rng = generator(2)
    both = 0
    for _ in range(2000):
        text = words(caption(rng, (RED, BLUE), ("right", "hop"), "beach", False))
        if "red" in text and "blue" in text:
            both += 1
            assert text.index("red") < text.index("blue")
    assert both > 50


def test_looks_are_mentioned_only_sometimes():
    rng = generator(3)
    texts = [words(caption(rng, (RED,), ("spin",), "room", False)) for _ in range(1000)]
    share = np.mean(["red" in text or "striped" in text for text in texts])
    assert 0.2 < share < 0.6


def test_articles_fit():
    world = World(48, 1)
    for seed in range(300):
        text = world.story(seed).prompt
        assert not re.search(r"\ba [aeio]", text), text
        assert not re.search(r"\ban [^aeiou]", text), text


def test_colour_words_of_colours_everyone_agrees_on():
    expected = {
        (255, 0, 0): "red", (0, 0, 255): "blue", (0, 160, 0): "green", (255, 220, 0): "yellow",
        (255, 255, 255): "white", (0, 0, 0): "black", (128, 128, 128): "gray",
        (255, 140, 0): "orange", (130, 50, 180): "purple",
        (250, 130, 190): "pink", (120, 72, 32): "brown",
    }  # fmt: skip
    assert {colour: colour_word(colour) for colour in expected} == expected
