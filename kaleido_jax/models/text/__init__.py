"""Text: encoders and tokenizers."""

from kaleido_jax.models.text.clip.config import CLIPTextConfig
from kaleido_jax.models.text.clip.modeling import CLIPTextEncoder
from kaleido_jax.models.text.tokenizer import Tokenizer, TruncatedText, UnknownWords
from kaleido_jax.models.text.umt5.config import UMT5Config
from kaleido_jax.models.text.umt5.modeling import UMT5Encoder

__all__ = [
    "CLIPTextConfig",
    "CLIPTextEncoder",
    "Tokenizer",
    "TruncatedText",
    "UMT5Config",
    "UMT5Encoder",
    "UnknownWords",
]
