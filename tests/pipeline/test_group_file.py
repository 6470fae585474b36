"""Files of groups: the released code's format, several characters, and every wrong line told in one sentence."""

import pytest

from kaleido_jax.errors import InputError
from kaleido_jax.pipeline.group_file import Group, Picture, read_groups

# As in the released examples: commas and spaces around the signs, an empty line between groups.
FILE = """in a gym, #a man, wearing a black top, #lifting dumbbells
in a gym, #a man, wearing a black top, #drinking

on a beach#a dog || a cat#they play
on a beach#a cat#it sleeps
"""


def words_of(text: str) -> int:
    return len(text.split())


@pytest.fixture
def groups(tmp_path):
    (tmp_path / "groups.txt").write_text(FILE)
    return read_groups(tmp_path / "groups.txt")


def test_groups_and_their_prompts(groups):
    gym, beach = groups
    assert gym.identity.prompt == "in a gym, a man, wearing a black top, lifting dumbbells"
    assert [frame.action for frame in gym.frames] == ["drinking"]
    assert beach.identity.characters == ("a dog", "a cat")
    assert beach.identity.prompt == "on a beach a dog and a cat they play"
    assert beach.frames[0].line == "on a beach#a cat#it sleeps"


def test_what_each_token_says(groups):
    gym, beach = groups
    assert gym.words(gym.identity, words_of, 14) == [0] * 3 + [1] * 6 + [2] * 2 + [-1] * 3
    # and: of all characters; the cat keeps the number that it has in the identity picture
    assert beach.words(beach.identity, words_of, 12) == [0, 0, 0, 1, 1, 3, 2, 2, 3, 3, -1, -1]
    assert beach.words(beach.frames[0], words_of, 9) == [0, 0, 0, 2, 2, 3, 3, -1, -1]
    # too long a text keeps what fits before its end; without anything that the characters do it is refused
    assert gym.words(gym.identity, words_of, 11) == [0] * 3 + [1] * 6 + [2, -1]
    with pytest.raises(InputError, match=r"has 11 tokens and 9 are read, which leaves out what the characters do"):
        gym.words(gym.identity, words_of, 10)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("\n \n", "holds no picture; write one a line, as background#character#what it does"),
        ("a#b#c", "the group of line 1: The group has one picture; give it a second one"),
        ("a#b#c\na#b", "line 2: has 1 signs #; write background#character#what it does, with exactly two"),
        ("a#b#c\n#b#c", "line 2: The background is empty; masks come from the words of every part"),
        ("a# #c\na#b#c", "line 1: The character is empty"),
        ("a#b#c\na#b#\t", "line 2: The part that says what it does is empty"),
        ("a#b||#c\na#b#c", "line 1: the characters are 'b||'; write each once"),
        ("a#b||b#c\na#b#c", "line 1: the characters are 'b||b'; write each once"),
        ("a#" + "||".join("abcdefghi") + "#c\na#b#c", "line 1: has 9 characters; at most 8 are told apart"),
        ("a#b||c#d\na#e#d", "Picture 2 shows 'e', and the identity picture does not"),
        ("a#b#d\na#b||c#d", "A picture shows several characters, and the identity picture only one"),
        ("a#b\x07#c\na#b#c", "line 1: The prompt holds the control character U+0007"),
    ],
)
def test_wrong_files(tmp_path, text, sentence):
    (tmp_path / "groups.txt").write_text(text)
    with pytest.raises(InputError) as error:
        read_groups(tmp_path / "groups.txt")
    assert sentence in str(error.value) and "groups.txt" in str(error.value)


def test_no_text_and_no_file(tmp_path):
    (tmp_path / "groups.txt").write_bytes(b"a#\xff#c")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_groups(tmp_path / "groups.txt")
    with pytest.raises(InputError):
        read_groups(tmp_path / "none.txt")


def test_a_group_from_python():
    picture = Picture(background="a beach", characters=("a dog",), action="runs")
    group = Group(identity=picture, frames=(picture, picture))
    assert len(group.pictures) == 3 and group.numbers(picture) == (1,)
