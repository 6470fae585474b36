"""CLIP's tokenizer against transformers' CLIPTokenizer on a small vocabulary of bytes and pairs."""

import json

import numpy as np
import pytest
import transformers
from tokenizers import pre_tokenizers

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.models.text.clip.tokenizer import END, START, CLIPTokenizer

MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>"), ("1", "2</w>")]
TEXTS = (
    "The red  cat's\thair", "", "12 cats, 3 dogs!!", "RED é naïve 漢字 🐈", f"a {END} b", "the " * 30, "I'll  they've\n"
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in MERGES), START, END]
    (path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(dict.fromkeys(tokens))}))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in MERGES) + "\n")
    return path


@pytest.fixture(scope="module")
def peer(folder):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=MERGES, model_max_length=16)


def test_ids_equal_transformers(folder, peer):
    ours = CLIPTokenizer.load(folder)
    expected = peer(list(TEXTS), padding="max_length", max_length=16, truncation=True).input_ids
    np.testing.assert_array_equal(ours.encode(TEXTS, 16), expected)
    assert (ours.start_id, ours.end_id) == (peer.bos_token_id, peer.eos_token_id)


def test_a_tokenizer_json_is_read_too(folder, peer, tmp_path):
    peer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = CLIPTokenizer.load(tmp_path)
    np.testing.assert_array_equal(loaded.encode(TEXTS, 16), CLIPTokenizer.load(folder).encode(TEXTS, 16))


def test_bad_input_is_an_error_that_names_it(folder, tmp_path):
    with pytest.raises(InputError, match=r"There is no tokenizer\.json"):
        CLIPTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        CLIPTokenizer.load(tmp_path)
    with pytest.raises(UsageError, match="at least 2, got 1"):
        CLIPTokenizer.load(folder).encode(["a"], 1)
