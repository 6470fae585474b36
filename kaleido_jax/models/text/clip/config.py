"""Sizes of CLIP's text tower (Radford et al. 2021, arXiv:2103.00020)."""

import dataclasses

from kaleido_jax.models.sizes import check_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of a CLIP text tower.

    vocab_size, positions: rows of the tables of tokens and of positions (the longest text). dim: width of a token;
    ffn_dim: hidden width of the feed-forward layers; heads, layers: how many of each. end_id: the token that ends a
    text and pads it. eps: of the layer norms. dtype: of the activations; norms are float32 whatever it is.
    """

    vocab_size: int
    positions: int
    dim: int
    ffn_dim: int
    heads: int
    layers: int
    end_id: int
    eps: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("vocab_size", "positions", "dim", "ffn_dim", "heads", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"CLIPTextConfig.{name} is {getattr(self, name)}; expected a positive integer.")
        if self.dim % self.heads:
            raise ValueError(f"CLIPTextConfig.dim is {self.dim}; expected a multiple of the {self.heads} heads.")
        if not 0 <= self.end_id < self.vocab_size:
            raise ValueError(f"CLIPTextConfig.end_id is {self.end_id}; expected an id below {self.vocab_size}.")
        check_dtype(self)

    @classmethod
    def large(cls) -> "CLIPTextConfig":
        """The text tower of CLIP ViT-L/14 (openai/clip-vit-large-patch14), which FLUX.1 reads."""
        return cls(vocab_size=49408, positions=77, dim=768, ffn_dim=3072, heads=12, layers=12, end_id=49407)
