"""Sizes of the MMDiT of videos."""

import dataclasses

from kaleido_jax.models.sizes import check_transformer
from kaleido_jax.rope import axis_widths


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Sizes of an MMDiT of videos.

    dim: width of a token; ffn_dim: hidden width of the feed-forward layers; heads, layers: how many of each, the last
    layer included, which does not change the text. channels: of the latents read and predicted; patch: latent (frames,
    rows, columns) of one token. text_dim: width of the text encoder's output. freq_dim: width of the sinusoidal
    embedding of time. eps: of every norm. dtype: of the activations; norms, modulation and the embedding of time are
    float32 whatever it is.
    """

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    freq_dim: int = 256
    eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        check_transformer(self)
        if self.layers < 2:
            raise ValueError(f"MMDiTConfig.layers is {self.layers}; expected at least 2, the last one included.")
        if self.dim % self.heads or self.head_dim % 2:
            raise ValueError(f"MMDiTConfig.dim is {self.dim}; expected an even multiple of the {self.heads} heads.")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def axes(self) -> tuple[int, int, int]:
        """How the width of a head is divided between time, rows and columns."""
        return axis_widths(self.head_dim)

    @classmethod
    def lct_3b(cls) -> "MMDiTConfig":
        """A model of the size that LCT (arXiv:2503.10589) tunes, 3.0 billion parameters.

        The paper says "3B" and "MMDiT" and no more, and its weights are not public: heads 128 wide as in Wan and FLUX,
        feed-forward layers 4 times as wide as a token as in Stable Diffusion 3, latents of Wan's VAE, texts of T5.
        """
        return cls(dim=1792, ffn_dim=7168, heads=14, layers=26)
