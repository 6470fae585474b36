"""Text to token ids: a released tokenizer (tokenizer.json or spiece.model), or the miniature's list of words.

Nothing is dropped in silence: text that does not fit, and words that a tokenizer does not know, are warned of.
"""

import html
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers

from kaleido_jax.errors import InputError, UsageError, nearest_name, printable

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
# What a word is to the miniature: letters and digits. Possessive endings and the rest of punctuation carry no meaning.
_POSSESSIVE, _WORD = r"['’]s\b", r"[\p{L}\p{N}]+"


class TruncatedText(UserWarning):
    """A text is longer than the encoder reads: of `total` tokens it reads the first `kept`, those of `kept_text`."""

    def __init__(self, kept: int, total: int, kept_text: str):
        super().__init__(
            f"The prompt has {total} tokens, of which the first {kept} are kept, up to "
            f'"{printable("…" + kept_text[-40:] if len(kept_text) > 40 else kept_text)}".'
        )
        self.kept, self.total, self.kept_text = kept, total, kept_text


class UnknownWords(UserWarning):
    """Words of a text that the tokenizer does not know, with the nearest word that it knows, or None."""

    def __init__(self, nearest: dict[str, str | None]):
        words = (f'"{printable(w)}"' + (f' (did you mean "{n}"?)' if n else "") for w, n in nearest.items())
        super().__init__(f"The model does not know {', '.join(words)}; it cannot follow what it does not know.")
        self.nearest = nearest


class Tokenizer:
    """Cleans texts as Wan does, splits them into tokens, ends them with </s>, and pads them on the right.

    Made by `load` or `from_words`. `pad_id`, `end_id` and `unknown_id` are the ids of its special tokens and
    `vocab_size` is the number of ids in use.
    """

    def __init__(self, backend: "_Library | _SentencePiece"):
        self._backend = backend
        self.pad_id, self.end_id, self.unknown_id = (backend.special_id(token) for token in (PAD, END, UNKNOWN))
        self.vocab_size = backend.vocab_size
        if self.pad_id is None or self.end_id is None:
            raise InputError(f"The tokenizer has no {PAD} or {END} token; it is not one of the T5 family.")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer.json, a sentencepiece spiece.model, or the folder that holds either (the former first)."""
        path = Path(path)
        candidates = [path / "tokenizer.json", path / "spiece.model"] if path.is_dir() else [path]
        for file in candidates:
            if file.is_file():
                return cls(_SentencePiece(file) if file.suffix == ".model" else _Library.load(file))
        raise InputError(f"There is no tokenizer.json or spiece.model at {printable(str(path))}.")

    @classmethod
    def from_words(cls, words: Iterable[str], limit: int = 4096) -> "Tokenizer":
        """A tokenizer that knows exactly these words, in any case, whatever punctuation stands around them.

        An entry of several words adds each of them. Ids: 0 padding, 1 end, 2 unknown, then the words in their order.
        Raises UsageError if there are none or if, with the three special tokens, they are more than `limit`.
        """
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
        backend.normalizer = tokenizers.normalizers.Sequence([
            tokenizers.normalizers.NFKC(),
            tokenizers.normalizers.Lowercase(),
            tokenizers.normalizers.Replace(tokenizers.Regex(_POSSESSIVE), " "),
        ])  # fmt: skip
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORD), "removed", invert=True)
        split = lambda text: backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        known = dict.fromkeys(word for text in words for word, _ in split(text))
        vocabulary = {word: index for index, word in enumerate((PAD, END, UNKNOWN, *known))}
        if not 3 < len(vocabulary) <= limit:
            raise UsageError(f"The word list has {len(known)} words; a tokenizer takes 1 to {limit - 3}.")
        backend.model = tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN)
        return cls(_Library(backend))

    def save(self, path: str | Path) -> None:
        """Writes tokenizer.json (of a tokenizer that was not read from a spiece.model)."""
        if isinstance(self._backend, _SentencePiece):
            raise UsageError("A sentencepiece tokenizer has no tokenizer.json; copy its spiece.model instead.")
        self._backend.save(path)

    def encode(self, texts: Sequence[str], length: int, *, cleaned: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Ids of each text, int32 [texts, length], padded on the right, and how many are real, int32 [texts].

        cleaned: whether `clean` comes first; FLUX's texts were never cleaned.

        A text that does not fit keeps its first length - 1 tokens and the end token. Warns with `TruncatedText` and
        `UnknownWords`, one each for every text concerned. The empty text is the end token alone.
        """
        if length < 1:
            raise UsageError(f"The number of text tokens must be at least 1, got {length}.")
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            text = clean(text) if cleaned else text
            body = self._backend.ids(text)
            kept = body[: length - 1]
            if len(kept) < len(body):
                start = self._backend.beginning(text, len(kept))
                warnings.warn(TruncatedText(len(kept) + 1, len(body) + 1, start), stacklevel=2)
            if self.unknown_id in body:
                warnings.warn(UnknownWords(self._unknown(text)), stacklevel=2)
            ids[row, : len(kept) + 1] = [*kept, self.end_id]
            lengths[row] = len(kept) + 1
        return ids, lengths

    def _unknown(self, text: str) -> dict[str, str | None]:
        pairs = zip(self._backend.ids(text), self._backend.surfaces(text))
        words = dict.fromkeys(surface for index, surface in pairs if index == self.unknown_id)
        return {word: nearest_name(word.lower(), self._backend.words) for word in words}


def clean(text: str) -> str:
    """Wan's cleaning: broken encodings repaired, HTML entities unescaped twice, white space collapsed."""
    import ftfy  # costs 0.1 s

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


class _Library:
    """A tokenizer of the `tokenizers` library, without its own special tokens, padding and truncation."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = tokenizer.get_vocab_size()
        # Only a list of whole words can hold the word that was meant; pieces of words would be noise.
        whole = isinstance(tokenizer.model, tokenizers.models.WordLevel)
        self.words = sorted(set(tokenizer.get_vocab()) - {PAD, END, UNKNOWN}) if whole else []

    @classmethod
    def load(cls, file: Path) -> "_Library":
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises no narrower class
            raise InputError(f"{printable(str(file))} is not a tokenizer.json: {error}.") from error

    def save(self, path: str | Path) -> None:
        self._tokenizer.save(str(path))

    def special_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def surfaces(self, text: str) -> list[str]:
        """The characters that each token stands for."""
        return [text[a:b] for a, b in self._tokenizer.encode(text, add_special_tokens=False).offsets]

    def beginning(self, text: str, count: int) -> str:
        """The part of the text that its first `count` tokens stand for."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return text[: offsets[count - 1][1]] if count else ""


class _SentencePiece:
    """A spiece.model behind the same methods."""

    words: tuple[str, ...] = ()

    def __init__(self, file: Path):
        import sentencepiece  # only releases without a tokenizer.json need it

        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.Load(str(file))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{printable(str(file))} is not a sentencepiece model.") from error
        self.vocab_size: int = self._processor.GetPieceSize()

    def special_id(self, token: str) -> int | None:
        index = self._processor.PieceToId(token)
        return index if self._processor.IdToPiece(index) == token else None

    def ids(self, text: str) -> list[int]:
        return self._processor.EncodeAsIds(text)

    def surfaces(self, text: str) -> list[str]:
        return [piece.replace("▁", "") for piece in self._processor.EncodeAsPieces(text)]

    def beginning(self, text: str, count: int) -> str:
        return self._processor.DecodePieces(self._processor.EncodeAsPieces(text)[:count])
