"""Sizes of the UMT5 encoder, and of T5's, which is the same but for its table of relative positions."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """Sizes of a UMT5 encoder, or of a T5 1.1 one.

    Attributes:
        vocab_size: rows of the embedding table, special tokens included.
        dim: width of the residual stream and of the output.
        heads, head_dim: of attention; their product need not be `dim`.
        ffn_dim: width of the gated feed-forward layer.
        layers: number of blocks.
        buckets: rows of a relative-position table, half of them for each direction; divisible by 4.
        shared_positions: whether all layers read one such table (T5) rather than each its own (UMT5).
        max_distance: distances from here on share one bucket.
        eps: of the RMS norms.
        dtype: of the activations; norms and the softmax are float32 whatever it is.
    """

    vocab_size: int
    dim: int
    heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    buckets: int = 32
    shared_positions: bool = False
    max_distance: int = 128
    eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("vocab_size", "dim", "heads", "head_dim", "ffn_dim", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"UMT5Config.{name} must be at least 1, got {getattr(self, name)}.")
        if self.buckets < 4 or self.buckets % 4:
            raise ValueError(f"UMT5Config.buckets must be a positive multiple of 4, got {self.buckets}.")
        if self.max_distance <= self.buckets // 4:
            raise ValueError(f"UMT5Config.max_distance must be above {self.buckets // 4}, got {self.max_distance}.")

        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"UMT5Config.dtype must be float32, bfloat16 or float16, got {self.dtype!r}.")

    @classmethod
    def xxl(cls) -> "UMT5Config":
        """The encoder that Wan 2.1, Wan 2.2 and Kaleido read prompts with (google/umt5-xxl)."""
        return cls(vocab_size=256384, dim=4096, heads=64, head_dim=64, ffn_dim=10240, layers=24)

    @classmethod
    def t5_xxl(cls) -> "UMT5Config":
        """The encoder that FLUX.1 and Stable Diffusion 3 read prompts with (google/t5-v1_1-xxl)."""
        return dataclasses.replace(cls.xxl(), vocab_size=32128, shared_positions=True)

    @classmethod
    def miniature(cls, vocab_size: int = 4096) -> "UMT5Config":
        """The encoder of the shipped miniature; `vocab_size` is that of its word list."""
        return cls(vocab_size=vocab_size, dim=128, heads=4, head_dim=32, ffn_dim=256, layers=2)
