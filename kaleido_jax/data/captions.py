"""Captions: short sentences as a newcomer would write them, from a small vocabulary.

Looks are mentioned only sometimes, so that the references are needed, and the order of mention is the order of the
references. Captions are in lower case.
"""

import re
from dataclasses import dataclass

import numpy as np

from kaleido_jax.data.drawing import COLOUR_WORDS, chance, pick
from kaleido_jax.data.lexicon import (
    ANY_NOUNS,
    FAMILY_NOUNS,
    GENERIC,
    GIVEN_SCENE,
    MOTION_PHRASES,
    NOUN_SYNONYMS,
    SCENE_PHRASES,
    SIZES,
)
from kaleido_jax.data.objects import OBJECTS
from kaleido_jax.data.textures import WORDS as TEXTURE_WORDS


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What a caption may say of a subject: its silhouette's family and noun, a colour word, a texture word or ""."""

    family: str
    noun: str
    colour: str
    texture: str


def _noun(rng: np.random.Generator, looks: Looks) -> str:
    point = rng.random()
    if point < 0.2:
        return pick(rng, GENERIC)
    if point < 0.35:
        return pick(rng, FAMILY_NOUNS[looks.family])
    if point < 0.45 or looks.family == "cutout":
        return pick(rng, ANY_NOUNS)
    return pick(rng, NOUN_SYNONYMS.get(looks.noun, (looks.noun,)))


def _adjectives(rng: np.random.Generator, looks: Looks) -> list[str]:
    words = []
    if chance(rng, 0.08):
        words.append(pick(rng, SIZES))
    if chance(rng, 0.28):
        words.append(looks.colour)
    if looks.texture and chance(rng, 0.2):
        words.append(looks.texture)
    return words


def _with_article(rng: np.random.Generator, words: list[str], definite: bool) -> str:
    if definite or chance(rng, 0.5):
        return " ".join(["the", *words])
    return " ".join(["an" if words[0][0] in "aeiou" and words[0] != "unicorn" else "a", *words])


def _verb(rng: np.random.Generator, motion: str, form: int) -> str:
    forms, _, rest = pick(rng, MOTION_PHRASES[motion]).partition("|")
    return f"{forms.split()[form]} {rest}".strip()


def caption(
    rng: np.random.Generator, looks: tuple[Looks, ...], motions: tuple[str, ...], scene: str, given: bool
) -> str:
    """One sentence: one or two subjects, in order, doing `motions` in `scene`; `given`: a reference shows the scene."""
    where = pick(rng, GIVEN_SCENE) if given and chance(rng, 0.7) else pick(rng, SCENE_PHRASES[scene])
    if len(looks) == 1:
        subject = _with_article(rng, _adjectives(rng, looks[0]) + [_noun(rng, looks[0])], False)
        template = pick(
            rng,
            (
                "{s} {does} {where}",
                "{s} {does} {where}",
                "{where}, {s} {does}",
                "a video of {s} {doing} {where}",
                "{s} is {doing} {where}",
                "{s} {doing} {where}",
            ),
        )
        text = template.format(s=subject, does=_verb(rng, motions[0], 1), doing=_verb(rng, motions[0], 2), where=where)
    else:
        words = [_adjectives(rng, one) + [_noun(rng, one)] for one in looks]
        if words[0] == words[1] or chance(rng, 0.2):
            if chance(rng, 0.5):
                words = [one[-1:] for one in words]
            subjects = [f"the {order} {' '.join(one)}" for order, one in zip(("first", "second"), words)]
        else:
            subjects = [_with_article(rng, one, False) for one in words]
        if motions[0] == motions[1] and chance(rng, 0.7):
            template = pick(
                rng, ("{a} and {b} {do} {where}", "{a} and {b} both {do} {where}", "{where}, {a} and {b} {do}")
            )
        else:
            template = pick(
                rng,
                (
                    "{a} {does} and {b} {does2} {where}",
                    "{a} {does} while {b} {does2} {where}",
                    "{where}, {a} {does} and {b} {does2}",
                    "{a} is {doing} and {b} is {doing2} {where}",
                ),
            )
        text = template.format(
            a=subjects[0], b=subjects[1], where=where, do=_verb(rng, motions[0], 0), does=_verb(rng, motions[0], 1),
            does2=_verb(rng, motions[1], 1), doing=_verb(rng, motions[0], 2), doing2=_verb(rng, motions[1], 2),
        )  # fmt: skip
    return text + ("." if chance(rng, 0.5) else "")


def vocabulary() -> list[str]:
    """Every word that a caption may hold, with "," and ".", sorted."""
    words = {",", ".", "a", "an", "the", "and", "while", "both", "is", "video", "of", "first", "second"}
    words |= set(COLOUR_WORDS) | set(TEXTURE_WORDS.values()) | set(SIZES) | set(GENERIC) | set(ANY_NOUNS) | set(OBJECTS)
    words |= {"star", "heart", "ring", "moon", "arrow", "wheel", "letter"}
    for nouns in (*FAMILY_NOUNS.values(), *NOUN_SYNONYMS.values()):
        words |= set(nouns)
    phrases = [phrase for group in SCENE_PHRASES.values() for phrase in group] + list(GIVEN_SCENE)
    phrases += [phrase for group in MOTION_PHRASES.values() for phrase in group]
    for phrase in phrases:
        words |= set(re.findall(r"[a-z]+", phrase))
    return sorted(words)
