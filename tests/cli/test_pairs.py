"""`kaleido pairs` without a model: selecting, and what each action needs."""

import json

import numpy as np
import pytest

from kaleido_jax.preference.files import PAIRS, VOTES, Pair, Vote, append


@pytest.fixture
def pairs(folder):
    files = {"references": ("cat.png",), "group": ("cat.png",), "a": "cat.png", "b": "dog.jpg"}
    append(folder, PAIRS, Pair(id="0", prompt="it runs", latents="0.npz", seeds=(0, 1), **files))
    np.savez(folder / "0.npz", a=np.zeros(1))
    return folder


def test_selecting(kaleido, pairs):
    code, _, err = kaleido("pairs", "select", pairs)
    assert code == 65 and "Of 1 pairs none has a clip that is better along both tracks" in err
    for track in ("identity", "control"):
        append(pairs, VOTES, Vote(pair="0", track=track, choice="b", by="anna"))
    code, out, err = kaleido("pairs", "select", pairs)
    assert code == 0 and out == f"{pairs / 'preferences.jsonl'}\n" and "1 of 1 pairs" in err
    assert "(the paper trains on 1000)" in err
    assert json.loads((pairs / "preferences.jsonl").read_text())["chosen"] == "b"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("annotate",), 2, "give yours with --name"),
        (("annotate", "--name", "anna", "--track", "contrl"), 2, "did you mean 'control'"),
        (("judge", "--judge", "model"), 2, "name it with --describer"),
        (("judge", "--judge", "wrld"), 2, "did you mean 'world'"),
        (("judge",), 65, "The pair 0 is not of the procedural world"),
        (("sample",), 2, "either with --prompts FILE or"),
        (("selct",), 2, "selct"),
    ],
)
def test_what_an_action_needs(kaleido, pairs, words, code, sentence):
    action, *options = words
    found, _, err = kaleido("pairs", action, pairs, *options)
    assert found == code and sentence in err
