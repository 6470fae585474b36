"""Pairs, votes and preferences as files: what dominates, what contradicts, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.preference.files import (
    PAIRS,
    VOTES,
    Pair,
    Vote,
    append,
    dominating,
    read_pairs,
    read_preferences,
    read_votes,
    select,
)


def pair(name):
    files = {"references": ("r.png",), "group": ("r.png", "g.mp4"), "a": "a.mp4", "b": "b.mp4"}
    return Pair(id=name, prompt=f"it runs {name}", latents=f"{name}.npz", seeds=(1, 2), **files)


def votes(*rows):
    return [Vote(pair=name, track=track, choice=choice, by=by) for name, track, choice, by in rows]


@pytest.fixture
def folder(tmp_path):
    for name in ("0", "1", "2"):
        append(tmp_path, PAIRS, pair(name))
        np.savez(tmp_path / f"{name}.npz", a=np.zeros(1))
    return tmp_path


def test_only_what_is_better_along_both_tracks_dominates():
    pairs = {name: pair(name) for name in "abcdef"}
    found = dominating(
        pairs,
        votes(
            ("a", "identity", "a", "x"), ("a", "control", "a", "x"),
            ("b", "identity", "a", "x"), ("b", "control", "b", "x"),
            ("c", "identity", "b", "x"), ("c", "control", "same", "x"),
            ("d", "identity", "b", "x"),
            ("e", "identity", "b", "x"), ("e", "identity", "a", "y"), ("e", "control", "b", "x"),
            ("f", "identity", "b", "x"), ("f", "identity", "b", "y"), ("f", "identity", "a", "z"),
            ("f", "control", "b", "x"), ("f", "control", "b", "x"),
        ),
    )  # fmt: skip
    assert found == {"a": "a", "f": "b"}


def test_somebody_who_contradicts_themselves():
    with pytest.raises(InputError, match="x judged the control of pair a twice, once 'a' and once 'b'"):
        dominating({"a": pair("a")}, votes(("a", "control", "a", "x"), ("a", "control", "b", "x")))


def test_from_votes_to_preferences(folder):
    for vote in votes(("1", "identity", "b", "x"), ("1", "control", "b", "y"), ("2", "identity", "a", "x")):
        append(folder, VOTES, vote)
    pairs = read_pairs(folder)
    assert pairs == {name: pair(name) for name in "012"} and len(read_votes(folder, pairs)) == 3
    assert select(folder, folder / "p.jsonl") == (1, 3)
    (found,) = read_preferences(folder / "p.jsonl")
    assert (found.pair, found.chosen, found.rejected) == ("1", "b", "a") and found.prompt == "it runs 1"
    assert found.latents == str(folder / "1.npz")
    with pytest.raises(UsageError, match="must be in"):
        select(folder, folder.parent / "p.jsonl")


def test_pairs_that_contradict(folder):
    line = {"pair": "1", "prompt": "x", "latents": "1.npz", "chosen": "a", "rejected": "b"}
    other = line | {"chosen": "b", "rejected": "a"}
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (line, line, other)))
    with pytest.raises(InputError, match="line 3: prefers clip b of pair 1, and line 1 prefers clip a"):
        read_preferences(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chosen": "c"}, "line 1: chosen is 'c' and rejected 'b'; one is a, the other b"),
        ({"latents": "../1.npz"}, "line 1: there are no latents"),
        ({"latents": "9.npz"}, "line 1: there are no latents '9.npz'"),
        ({"prompt": 3}, "line 1: prompt is 3; it must be a text"),
        ({"wrong": 3}, "line 1 has no field wrong"),
    ],
)
def test_preference_files_that_are_wrong(folder, change, words):
    line = {"pair": "1", "prompt": "x", "latents": "1.npz", "chosen": "a", "rejected": "b"}
    (folder / "p.jsonl").write_text(json.dumps(line | change))
    with pytest.raises(InputError, match=words):
        read_preferences(folder / "p.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (PAIRS, "{", "line 4: is not valid JSON"),
        (PAIRS, "[]", "line 4: is no JSON object"),
        (PAIRS, json.dumps(dataclasses.asdict(pair("0"))), "line 4: the pair '0' is there already"),
        (PAIRS, json.dumps(dataclasses.asdict(pair("3")) | {"a": "/etc/passwd"}), "line 4: '/etc/passwd' leads out"),
        (VOTES, '{"pair": "7", "track": "control", "choice": "a", "by": "x"}', "line 1: There is no pair '7'"),
        (VOTES, '{"pair": "0", "track": "contol", "choice": "a", "by": "x"}', "did you mean 'control'"),
        (VOTES, '{"pair": "0", "track": "control", "choice": 1, "by": "x"}', "choice is 1; it must be a text"),
    ],
)
def test_lines_that_are_wrong(folder, name, text, words):
    with open(folder / name, "a") as file:
        file.write(text + "\n")
    with pytest.raises(InputError, match=words):
        read_votes(folder, read_pairs(folder))


def test_nothing_to_select_and_nothing_there(folder, tmp_path):
    with pytest.raises(InputError, match="Of 3 pairs none has a clip that is better along both tracks"):
        select(folder, folder / "p.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "nothing")
