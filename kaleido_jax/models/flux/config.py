"""Sizes of FLUX.1's transformers (Black Forest Labs, 2024; github.com/black-forest-labs/flux)."""

import dataclasses

from kaleido_jax.models.sizes import check_transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class FluxConfig:
    """Sizes of a FLUX transformer; the released ones are named constructors.

    dim: width of a token; ffn_dim: hidden width of the feed-forward layers; heads: of attention. double_layers,
    single_layers: blocks with weights of their own for text and picture, and blocks with one set for both.
    channels: of the latents read and predicted; patch: latent (frames, rows, columns) of one token.
    text_dim, pooled_dim: widths of T5's tokens and of CLIP's pooled vector. guidance: whether the guidance scale is an
    input (dev, which was distilled from guided samples). axes: how the width of a head is divided between time, rows
    and columns. freq_dim: width of the sinusoidal embedding of time and guidance. eps: of every norm.
    dtype: of the activations; norms, modulation and the embedding of time are float32 whatever it is.
    """

    dim: int
    ffn_dim: int
    heads: int
    double_layers: int
    single_layers: int
    guidance: bool
    channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    pooled_dim: int = 768
    axes: tuple[int, int, int] = (16, 56, 56)
    freq_dim: int = 256
    eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        check_transformer(self)
        if len(self.axes) != 3 or any(width < 0 or width % 2 for width in self.axes):
            raise ValueError(f"FluxConfig.axes is {self.axes}; expected three even widths.")
        if self.dim != self.heads * sum(self.axes):
            raise ValueError(
                f"FluxConfig.dim is {self.dim}; expected {self.heads * sum(self.axes)}, "
                f"{self.heads} heads of the {sum(self.axes)} that axes {self.axes} add up to."
            )

    @property
    def head_dim(self) -> int:
        return sum(self.axes)

    @classmethod
    def dev(cls) -> "FluxConfig":
        """FLUX.1 [dev]: 12 billion parameters, distilled from guided samples; 50 steps, guidance 3.5."""
        return cls(dim=3072, ffn_dim=12288, heads=24, double_layers=19, single_layers=38, guidance=True)

    @classmethod
    def schnell(cls) -> "FluxConfig":
        """FLUX.1 [schnell]: the same size without the guidance input, distilled to 1 to 4 steps."""
        return dataclasses.replace(cls.dev(), guidance=False)
