"""Tokenizers: against transformers' padding and truncation, sentencepiece's own ids, and Wan's cleaning."""

import io
import warnings

import numpy as np
import pytest
import sentencepiece
import transformers

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.models.text import Tokenizer, TruncatedText, UnknownWords
from kaleido_jax.models.text.tokenizer import clean

WORDS = ["a", "red", "fox", "jumps", "over", "the", "forest", "T-shirt", "Red Fox"]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.from_words(WORDS)


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A small unigram model, trained here, with the special ids of the T5 family."""
    text = ["a red fox jumps over the forest", "the blue bird sings in the morning", "two cats sleep on a warm roof"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text * 20), model_writer=model, vocab_size=45, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        pad_piece="<pad>", eos_piece="</s>", unk_piece="<unk>", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("spiece") / "spiece.model"
    path.write_bytes(model.getvalue())
    return path


def test_words_ids_and_padding(words):
    ids, lengths = words.encode(["The RED fox's forest, a t-shirt!", "", "«fox»…fox"], 9)
    known = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "jumps", "over", "the", "forest", "t", "shirt"]
    expected = [["the", "red", "fox", "forest", "a", "t", "shirt", "</s>"], ["</s>"], ["fox", "fox", "</s>"]]
    assert words.vocab_size == len(known)
    assert ids.dtype == lengths.dtype == np.int32
    assert lengths.tolist() == [len(row) for row in expected]
    assert [[known[i] for i in row] for row in ids] == [row + ["<pad>"] * (9 - len(row)) for row in expected]


def test_words_that_are_not_known_are_named(words):
    with pytest.warns(UnknownWords) as caught:
        ids, lengths = words.encode(["the Forrest and the Forrest, a 狐"], 12)
    assert caught[0].message.nearest == {"Forrest": "forest", "and": "a", "狐": None}
    assert 'does not know "Forrest" (did you mean "forest"?)' in str(caught[0].message)
    assert ids[0, : lengths[0]].tolist().count(2) == 4  # they keep their places


@pytest.mark.parametrize("length", [1, 2, 5])
def test_text_that_does_not_fit_is_reported(words, length):
    with pytest.warns(TruncatedText) as caught:
        ids, lengths = words.encode(["a red fox jumps over the forest"], length)
    message = caught[0].message
    assert (message.kept, message.total) == (length, 8) and lengths.tolist() == [length]
    assert message.kept_text == " ".join(["a", "red", "fox", "jumps"][: length - 1])
    assert ids[0].tolist() == [3, 4, 5, 6][: length - 1] + [1]
    assert f"has 8 tokens, of which the first {length} are kept" in str(message)


def test_text_that_just_fits_is_silent(words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert words.encode(["a red fox"], 4)[1].tolist() == [4]


def test_json_round_trip_and_transformers_agree(words, tmp_path):
    words.save(tmp_path / "tokenizer.json")
    texts = ["the fox jumps", "", "a red red red fox over the forest"]
    again = Tokenizer.load(tmp_path)
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    # The file has no rule that appends the end token: that is done in code, for every kind of tokenizer alike.
    theirs = peer(texts, padding="max_length", max_length=10)
    for row, text in enumerate(texts):
        body = [i for i, real in zip(theirs["input_ids"][row], theirs["attention_mask"][row]) if real]
        ids, lengths = again.encode([text], 10)
        np.testing.assert_array_equal(ids, words.encode([text], 10)[0])
        assert ids[0].tolist() == (body + [1]) + [0] * (9 - len(body)) and lengths[0] == len(body) + 1


def test_sentencepiece_ids(spiece):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spiece))
    texts = ["a red fox sleeps", "the  bird\n sings &amp;amp; jumps", ""]
    tokenizer = Tokenizer.load(spiece.parent)
    with pytest.warns(UnknownWords) as caught:  # the ampersand
        ids, lengths = tokenizer.encode(texts, 40)
    assert caught[0].message.nearest == {"&": None}
    for row, text in enumerate(["a red fox sleeps", "the bird sings & jumps", ""]):
        expected = [*processor.encode(text), 1]
        assert ids[row, : lengths[row]].tolist() == expected and not ids[row, lengths[row] :].any()
    with pytest.warns(TruncatedText) as caught:
        assert tokenizer.encode(texts[:1], 4)[0][0].tolist() == [*processor.encode(texts[0])[:3], 1]
    assert texts[0].startswith(caught[0].message.kept_text)
    assert tokenizer.vocab_size == processor.get_piece_size()


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("  two\t\n  spaces ", "two spaces"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("&lt;b&gt;", "<b>"),
        ("l’humanitÃ©", "l'humanité"),
        ("ﬂuﬃest", "fluffiest"),
        ("a\u00a0b\u3000c", "a b c"),
        ("", ""),
    ],
)
def test_cleaning(dirty, expected):
    assert clean(dirty) == expected


def test_bad_files_and_arguments_are_one_sentence(words, spiece, tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json or spiece\.model at .*nowhere"):
        Tokenizer.load(tmp_path / "nowhere")
    for name in ("tokenizer.json", "spiece.model"):
        (tmp_path / name).write_bytes(b"{ not a tokenizer")
        with pytest.raises(InputError, match=f"{name} is not a"):
            Tokenizer.load(tmp_path / name)
    with pytest.raises(UsageError, match="has 0 words"):
        Tokenizer.from_words(["!?"])
    with pytest.raises(UsageError, match="has 5 words; a tokenizer takes 1 to 4"):
        Tokenizer.from_words(["a b c d e"], limit=7)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        words.encode(["a"], 0)
    with pytest.raises(UsageError, match=r"spiece\.model"):
        Tokenizer.load(spiece).save(tmp_path / "out.json")
