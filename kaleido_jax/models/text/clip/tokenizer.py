"""CLIP's tokenizer: bytes joined in pairs, between a token that starts a text and one that ends and pads it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from kaleido_jax.errors import InputError, UsageError, printable

START, END = "<|startoftext|>", "<|endoftext|>"
# A piece of text that no pair reaches across: the special tokens, English endings, letters, one digit, other signs.
_PIECE = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer:
    """Splits texts into tokens as transformers' CLIPTokenizer does. Made by `load`; `end_id` also pads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
        if start is None or end is None:
            raise InputError(f"The tokenizer has no {START} or {END} token; it is not CLIP's.")
        self._tokenizer, self.start_id, self.end_id = tokenizer, start, end

    @classmethod
    def load(cls, folder: str | Path) -> "CLIPTokenizer":
        """From a folder with tokenizer.json, or with vocab.json and merges.txt as FLUX.1's releases have them.

        Raises:
          InputError: neither is there, or they cannot be read.
        """
        folder = Path(folder)
        whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
        try:
            if whole.is_file():
                return cls(tokenizers.Tokenizer.from_file(str(whole)))
            if vocabulary.is_file() and merges.is_file():
                model = tokenizers.models.BPE.from_file(
                    str(vocabulary), str(merges), unk_token=END, end_of_word_suffix="</w>"
                )
                return cls(_tokenizer(model))
        except InputError:
            raise
        except Exception as error:  # the library raises no narrower class
            raise InputError(f"The tokenizer in {printable(str(folder))} cannot be read: {error}.") from error
        raise InputError(f"There is no tokenizer.json, and no vocab.json with merges.txt, in {printable(str(folder))}.")

    def encode(self, texts: Sequence[str], length: int = 77) -> np.ndarray:
        """Ids of each text, int32 [texts, length]: the start, as many of its tokens as there is room for, the end.

        What does not fit is left out without a word: in FLUX.1, T5 reads all of a long prompt, CLIP its beginning.
        """
        if length < 2:
            raise UsageError(f"The number of text tokens must be at least 2, got {length}.")
        ids = np.full((len(texts), length), self.end_id, np.int32)
        for row, text in enumerate(texts):
            body = self._tokenizer.encode(text, add_special_tokens=False).ids[: length - 2]
            ids[row, : len(body) + 1] = [self.start_id, *body]
        return ids

    def cut(self, text: str, length: int) -> int:
        """How many tokens of a text `encode` leaves out."""
        return max(len(self._tokenizer.encode(text, add_special_tokens=False).ids) + 2 - length, 0)


def _tokenizer(model: tokenizers.models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFC(),
        normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
        normalizers.Lowercase(),
    ])  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(_PIECE), "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    tokenizer.add_special_tokens([START, END])
    return tokenizer
