"""Captions: short sentences as a newcomer would write them, from a small vocabulary.

Looks are mentioned only sometimes, so that the references are needed, and the order of mention is the order of the references.
Captions are in lower case.
"""

import re
from dataclasses import dataclass

import numpy as np

from kaleido_jax.data.drawing import COLOUR_WORDS, chance, pick
from kaleido_jax.data.objects import OBJECTS
from kaleido_jax.data.textures import WORDS as TEXTURE_WORDS

# Every verb as (plain form, third person, participle), and what follows it.
MOTION_PHRASES: dict[str, tuple[tuple[tuple[str, str, str], str], ...]] = {
    "right": (
        (("move", "moves", "moving"), "to the right"), (("walk", "walks", "walking"), "to the right"),
        (("go", "goes", "going"), "right"), (("run", "runs", "running"), "to the right"),
        (("slide", "slides", "sliding"), "from left to right"), (("travel", "travels", "traveling"), "to the right"),
    ),
    "left": (
        (("move", "moves", "moving"), "to the left"), (("walk", "walks", "walking"), "to the left"),
        (("go", "goes", "going"), "left"), (("run", "runs", "running"), "to the left"),
        (("slide", "slides", "sliding"), "from right to left"), (("travel", "travels", "traveling"), "to the left"),
    ),
    "up": (
        (("rise", "rises", "rising"), ""), (("move", "moves", "moving"), "up"), (("fly", "flies", "flying"), "up"),
        (("float", "floats", "floating"), "upward"), (("go", "goes", "going"), "up"), (("climb", "climbs", "climbing"), "up"),
    ),
    "down": (
        (("fall", "falls", "falling"), ""), (("move", "moves", "moving"), "down"), (("sink", "sinks", "sinking"), ""),
        (("float", "floats", "floating"), "downward"), (("go", "goes", "going"), "down"), (("fall", "falls", "falling"), "down"),
    ),
    "hop": (
        (("hop", "hops", "hopping"), ""), (("jump", "jumps", "jumping"), ""), (("bounce", "bounces", "bouncing"), ""),
        (("jump", "jumps", "jumping"), "up and down"), (("hop", "hops", "hopping"), "up and down"),
    ),
    "spin": (
        (("spin", "spins", "spinning"), ""), (("spin", "spins", "spinning"), "around"), (("turn", "turns", "turning"), "around"),
        (("rotate", "rotates", "rotating"), ""), (("roll", "rolls", "rolling"), "over"),
    ),
    "grow": (
        (("grow", "grows", "growing"), ""), (("grow", "grows", "growing"), "bigger"), (("get", "gets", "getting"), "bigger"),
        (("become", "becomes", "becoming"), "larger"), (("come", "comes", "coming"), "closer"),
    ),
    "shrink": (
        (("shrink", "shrinks", "shrinking"), ""), (("get", "gets", "getting"), "smaller"),
        (("become", "becomes", "becoming"), "smaller"), (("move", "moves", "moving"), "away"),
    ),
    "still": (
        (("stand", "stands", "standing"), "still"), (("stay", "stays", "staying"), "still"), (("wait", "waits", "waiting"), ""),
        (("rest", "rests", "resting"), ""), (("stay", "stays", "staying"), "in place"),
    ),
    "circle": (
        (("move", "moves", "moving"), "in a circle"), (("fly", "flies", "flying"), "in circles"),
        (("circle", "circles", "circling"), "around"), (("go", "goes", "going"), "in circles"),
    ),
}  # fmt: skip
SCENE_PHRASES: dict[str, tuple[str, ...]] = {
    "beach": ("on a beach", "on the beach", "on a sandy beach", "by the ocean", "at the seaside"),
    "meadow": ("in a meadow", "on a green meadow", "in a grassy field", "on the grass", "in a field of flowers"),
    "snow": ("in the snow", "on a snowy field", "in a winter landscape", "on the ice and snow"),
    "night": ("at night", "under the moon", "on a dark night", "under the stars at night"),
    "city": ("in a city", "in the city", "on a city street", "in front of tall buildings", "in a town"),
    "desert": ("in a desert", "in the desert", "among sand dunes", "next to a cactus in the desert"),
    "forest": ("in a forest", "in the forest", "in the woods", "between the trees of a forest"),
    "sea": ("under water", "under the sea", "underwater", "in the deep blue sea"),
    "room": ("in a room", "inside a house", "in a living room", "at home"),
    "space": ("in space", "in outer space", "among planets and stars", "in the universe"),
    "clouds": ("in the sky", "among the clouds", "in a blue sky", "in a cloudy sky"),
    "road": ("on a road", "on the road", "on a country road", "on a highway"),
    "stage": ("on a stage", "on the stage", "in a theater", "in front of a curtain"),
    "mountains": ("in the mountains", "in front of mountains", "in a mountain valley", "near tall mountains"),
    "garden": ("in a garden", "in the garden", "in front of a fence", "in a yard"),
    "plain": ("on a plain background", "in front of a plain wall", "on an empty background"),
    "photo": ("in front of a photo", "in front of a picture", "on a photo background", "in a strange place"),
}
# For a scene that a reference shows; "last" because it is the last reference.
GIVEN_SCENE = (
    "in this place", "in the given scene", "in the place of the last picture", "in the scene of the last image",
    "on the given background", "in front of this background",
)  # fmt: skip
GENERIC = ("subject", "character", "thing", "object", "figure", "toy")
FAMILY_NOUNS = {
    "creature": ("creature", "animal", "monster", "pet", "cartoon"), "blob": ("blob", "shape", "creature", "slime"),
    "polygon": ("shape", "symbol"), "strokes": ("sign", "symbol", "logo"), "object": ("object", "thing"),
    "cutout": ("picture", "photo", "image", "sticker"),
}  # fmt: skip
NOUN_SYNONYMS = {
    "cat": ("cat", "kitten"), "dog": ("dog", "puppy"), "rabbit": ("rabbit", "bunny"), "bear": ("bear", "teddy"), "bug": ("bug", "insect", "alien"),
    "dragon": ("dragon", "dinosaur"), "monster": ("monster", "goat", "cow", "bull"), "icecream": ("icecream", "dessert"), "plane": ("plane", "airplane"),
    "boat": ("boat", "ship"), "person": ("person", "man", "woman", "boy", "girl", "child", "doll"), "car": ("car", "taxi"), "truck": ("truck", "bus", "van"),
    "cup": ("cup", "mug"), "ball": ("ball", "planet"), "gift": ("gift", "box", "present"), "shirt": ("shirt", "sweater"), "house": ("house", "building"),
    "tree": ("tree", "plant"), "fish": ("fish",), "bird": ("bird", "parrot", "duck", "chicken"),
}  # fmt: skip
# Names that say nothing about what is drawn here; whoever brings pictures of their own will use words like these.
ANY_NOUNS = (
    "backpack", "banana", "bag", "bed", "bicycle", "book", "boot", "bowl", "bread", "cake", "camera", "candle", "castle", "chair", "clock", "cookie",
    "crab", "deer", "donut", "dress", "drum", "eagle", "elephant", "face", "fox", "frog", "ghost", "giraffe", "glasses", "hamster", "hero", "horse",
    "jacket", "kite", "knight", "koala", "lady", "lemon", "lion", "lizard", "lollipop", "monkey", "motorcycle", "mouse", "octopus", "orange", "owl",
    "panda", "pear", "pen", "penguin", "phone", "piano", "pig", "pizza", "pot", "prince", "princess", "pumpkin", "queen", "king", "sandwich", "shark",
    "sheep", "shoe", "skateboard", "skull", "snail", "snake", "sofa", "spider", "squirrel", "statue", "strawberry", "sun", "sunflower", "table",
    "tiger", "tomato", "tractor", "train", "turtle", "unicorn", "vase", "violin", "watch", "watermelon", "whale", "witch", "wizard", "wolf", "zebra",
    "astronaut", "baby", "cap", "helmet", "spaceship", "submarine", "helicopter", "scooter", "bee", "guy", "guitarist", "dancer", "teapot",
)  # fmt: skip
_SIZES = ("small", "little", "big", "cute", "funny", "nice")


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What a caption may say of a subject: the family and noun of its silhouette, a colour word, a texture word or ""."""

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
        words.append(pick(rng, _SIZES))
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
    forms, rest = pick(rng, MOTION_PHRASES[motion])
    return f"{forms[form]} {rest}".strip()


def caption(
    rng: np.random.Generator, looks: tuple[Looks, ...], motions: tuple[str, ...], scene: str, given: bool
) -> str:
    """One sentence for one or two subjects, in order, doing `motions` in `scene`; `given`: a reference shows the scene."""
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
    words |= (
        set(COLOUR_WORDS) | set(TEXTURE_WORDS.values()) | set(_SIZES) | set(GENERIC) | set(ANY_NOUNS) | set(OBJECTS)
    )
    words |= {"star", "heart", "ring", "moon", "arrow", "wheel", "letter"}
    for nouns in (*FAMILY_NOUNS.values(), *NOUN_SYNONYMS.values()):
        words |= set(nouns)
    phrases = [phrase for group in SCENE_PHRASES.values() for phrase in group] + list(GIVEN_SCENE)
    for group in MOTION_PHRASES.values():
        for forms, rest in group:
            words |= set(forms)
            phrases.append(rest)
    for phrase in phrases:
        words |= set(re.findall(r"[a-z]+", phrase))
    return sorted(words)
