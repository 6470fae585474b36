"""Categories and their words, and finding them in captions."""

import pytest

from kaleido_jax.curation.taxonomy import default_taxonomy, parse
from kaleido_jax.errors import InputError

TAXONOMY = default_taxonomy()


def found(caption: str) -> list[tuple[str, str]]:
    return [(mention.category, mention.phrase) for mention in TAXONOMY.mentions(caption)]


def test_it_is_as_large_as_it_says():
    categories = len(TAXONOMY.categories)
    assert categories >= 100 and len(TAXONOMY.names) - categories >= 800
    assert set(TAXONOMY.groups.values()) == {"person", "cartoon", "animal", "vehicle", "thing", "food", "plant"}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A golden retriever puppy sleeps.", [("dog", "golden retriever puppy")]),  # names side by side
        ("An orange cat on a beach", [("cat", "orange cat")]),
        ("two mice and three foxes", [("mouse", "mice"), ("fox", "foxes")]),  # word forms
        ("the woman's bags", [("woman", "woman's"), ("bag", "bags")]),
        ("People ride bicycles", [("person", "People"), ("bicycle", "bicycles")]),
        ("a hot air balloon over a fire truck", [("balloon", "hot air balloon"), ("truck", "fire truck")]),
        ("the car door opens", []),  # it only says which door
        ("a long way to go", []),
        ("", []),
    ],
)
def test_mentions(caption, expected):
    assert found(caption) == expected


def test_phrases_are_cut_from_the_caption():
    caption = "The first Kitten chases a Soccer Ball"
    for mention in TAXONOMY.mentions(caption):
        assert caption[mention.start : mention.stop] == mention.phrase


def test_every_name_and_its_plural_is_found():
    for name, category in TAXONOMY.names.items():
        assert TAXONOMY.category(" ".join(name)) == category, name
        assert TAXONOMY.category("some " + " ".join(name)) == category, name
        plural = [*name[:-1], name[-1] + ("es" if name[-1].endswith(("s", "x", "ch", "sh")) else "s")]
        assert TAXONOMY.category(" ".join(plural)) == category, plural


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["dog: puppy"], "line 1"),
        (["[animal]", "dog"], "line 2"),
        (["[animal]", "dog: pup", "seal: pup"], "is a dog already"),
        (["[animal]", "dog: a", "dog: b"], "a second time"),
        (["[animal]", "dog: 7"], "holds no word"),
        ([], "is empty"),
    ],
)
def test_wrong_lines(lines, reason):
    with pytest.raises(InputError, match=reason):
        parse(lines)
