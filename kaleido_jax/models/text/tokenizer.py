"""Text to token ids: a released tokenizer (tokenizer.json or spiece.model), or the miniature's list of words.

Nothing is dropped in silence: text that does not fit, and words that a tokenizer does not know, are warned of.
"""

import html
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from kaleido_jax.errors import InputError, UsageError, nearest_name, printable

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
# What a word is to the miniature: letters and digits. Possessive endings and the rest of punctuation carry no meaning.
_POSSESSIVE, _WORD = r"['’]s\b", r"[\p{L}\p{N}]+"


class TruncatedText(UserWarning):
    """A text is longer than the encoder reads: `kept` of `total` tokens are read, the last of them ending `kept_text`."""

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

    def __init__(self, backend: Any):
        self._backend = backend
        self.pad_id, self.end_id, self.unknown_id = (backend.token_to_id(token) for token in (PAD, END, UNKNOWN))
        self.vocab_size: int = backend.get_vocab_size()
        if None in (self.pad_id, self.end_id):
            raise InputError(f"The tokenizer has no {PAD} or {END} token; it is not one of the T5 family.")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer.json, a sentencepiece spiece.model, or the folder that holds either (the former first)."""
        path = Path(path)
        candidates = [path / "tokenizer.json", path / "spiece.model"] if path.is_dir() else [path]
        for file in candidates:
            if file.is_file():
                return cls(_SentencePiece(file) if file.suffix == ".model" else _read_json(file))
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
        return cls(backend)

    def save(self, path: str | Path) -> None:
        """Writes tokenizer.json (of a tokenizer that was not read from a spiece.model)."""
        if isinstance(self._backend, _SentencePiece):
            raise UsageError("A sentencepiece tokenizer has no tokenizer.json; copy its spiece.model instead.")
        self._backend.save(str(path))

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of each text, int32 [texts, length], padded on the right, and how many are real, int32 [texts].

        A text that does not fit keeps its first length - 1 tokens and the end token. Warns with `TruncatedText` and
        `UnknownWords`, one each for every text concerned. The empty text is the end token alone.
        """
        if length < 1:
            raise UsageError(f"The number of text tokens must be at least 1, got {length}.")
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        for row, text in enumerate(texts):
            text = clean(text)
            encoding = self._backend.encode(text, add_special_tokens=False)
            kept = min(len(encoding.ids), length - 1)
            if kept < len(encoding.ids):
                kept_text = text[: encoding.offsets[kept - 1][1]] if kept else ""
                warnings.warn(TruncatedText(kept + 1, len(encoding.ids) + 1, kept_text), stacklevel=2)
            if unknown := self._unknown(text, encoding):
                warnings.warn(UnknownWords(unknown), stacklevel=2)
            ids[row, : kept + 1] = [*encoding.ids[:kept], self.end_id]
            lengths[row] = kept + 1
        return ids, lengths

    def _unknown(self, text: str, encoding: Any) -> dict[str, str | None]:
        spans = [span for token, span in zip(encoding.ids, encoding.offsets) if token == self.unknown_id]
        words = dict.fromkeys(text[start:end] for start, end in spans)
        # Only a list of whole words can hold a word that was meant; pieces of words would be noise.
        whole_words = isinstance(getattr(self._backend, "model", None), tokenizers.models.WordLevel)
        known = set(self._backend.get_vocab()) - {PAD, END, UNKNOWN} if words and whole_words else set()
        return {word: nearest_name(word.lower(), sorted(known)) for word in words}


def clean(text: str) -> str:
    """Wan's cleaning: broken encodings repaired, HTML entities unescaped twice, white space collapsed."""
    import ftfy  # costs 0.1 s

    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def _read_json(file: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise InputError(f"{printable(str(file))} is not a tokenizer.json: {error}.") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


class _Encoding:
    """Ids and the characters that each stands for, named as the `tokenizers` library does."""

    def __init__(self, pieces: Any):
        self.ids = [piece.id for piece in pieces]
        self.offsets = [(piece.begin, piece.end) for piece in pieces]


class _SentencePiece:
    """A spiece.model behind the few methods of `tokenizers.Tokenizer` that are used here."""

    def __init__(self, file: Path):
        try:
            import sentencepiece
        except ImportError as error:
            raise InputError(f"Reading {printable(str(file))} needs the package sentencepiece.") from error
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.Load(str(file))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{printable(str(file))} is not a sentencepiece model.") from error

    def token_to_id(self, token: str) -> int | None:
        index = self._processor.PieceToId(token)
        return index if self._processor.IdToPiece(index) == token else None

    def get_vocab_size(self) -> int:
        return self._processor.GetPieceSize()

    def encode(self, text: str, add_special_tokens: bool) -> _Encoding:
        del add_special_tokens  # sentencepiece adds none by itself
        return _Encoding(self._processor.encode(text, out_type="immutable_proto").pieces)
