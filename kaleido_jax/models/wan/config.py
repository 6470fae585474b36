"""Sizes of Wan's video transformers (Wan 2.1, arXiv:2503.20314; Wan 2.2)."""

import dataclasses

from kaleido_jax.models.sizes import check_transformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Sizes of a Wan transformer; every released one is a named constructor.

    dim: width of a token; ffn_dim: hidden width of the feed-forward layers; heads, layers: how many of each.
    in_channels, out_channels: latent channels read and predicted. patch: latent (frames, rows, columns) of one token.
    text_dim: width of the text encoder's output. freq_dim: width of the sinusoidal embedding of time.
    eps: of every norm in the blocks and the head. image_dim: width of CLIP's image tokens; None for no image branch.
    image_positions: how many image tokens it reads, where each has a learned position: the 514 of two pictures in the
      models from a first and a last frame. None: any number, without positions.
    emphasis: whether every block has ContextAnyone's Emphasize-Attention. Such a network is tuned from one without it,
      so what this attention and the image branch add starts at zero.
    data_std: standard deviation of every latent channel. Where given, the head predicts the clean latent in units of
      it, and the velocity follows (arXiv:2511.13720): noise, which fills all dimensions of a patch, then need not pass
      through a width not much above them. None, as in all released models: the head predicts the velocity.
    dtype: of the activations; norms, modulation and time embedding are float32 whatever it is.
    """

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    in_channels: int = 16
    out_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    text_dim: int = 4096
    freq_dim: int = 256
    eps: float = 1e-6
    image_dim: int | None = None
    image_positions: int | None = None
    emphasis: bool = False
    data_std: tuple[float, ...] | None = None
    dtype: str = "float32"

    def __post_init__(self):
        check_transformer(self)
        if self.dim % self.heads or self.head_dim % 2:
            raise ValueError(f"WanConfig.dim is {self.dim}; expected an even multiple of the {self.heads} heads.")
        if self.image_positions is not None and (self.image_dim is None or self.image_positions < 1):
            raise ValueError(
                f"WanConfig.image_positions is {self.image_positions}; expected a positive number, and image_dim to be "
                "set."
            )
        if self.data_std is not None:
            if not len(self.data_std) == self.in_channels == self.out_channels:
                raise ValueError(
                    f"WanConfig.data_std has {len(self.data_std)} values; expected one for each of as many channels in "
                    f"(in_channels {self.in_channels}) as out (out_channels {self.out_channels})."
                )
            if min(self.data_std) <= 0:
                raise ValueError(f"WanConfig.data_std holds {min(self.data_std)}; expected numbers above 0.")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @classmethod
    def t2v_1_3b(cls) -> "WanConfig":
        """Wan2.1-T2V-1.3B."""
        return cls(dim=1536, ffn_dim=8960, heads=12, layers=30)

    @classmethod
    def t2v_14b(cls) -> "WanConfig":
        """Wan2.1-T2V-14B, and each expert of Wan2.2-T2V-A14B."""
        return cls(dim=5120, ffn_dim=13824, heads=40, layers=40)

    @classmethod
    def i2v_14b(cls) -> "WanConfig":
        """Wan2.1-I2V-14B: 16 noisy, 4 mask and 16 image channels, and CLIP's image tokens."""
        return dataclasses.replace(cls.t2v_14b(), in_channels=36, image_dim=1280)

    @classmethod
    def flf2v_14b(cls) -> "WanConfig":
        """Wan2.1-FLF2V-14B, from a first and a last frame: Wan2.1-I2V-14B, and positions of both pictures' tokens."""
        return dataclasses.replace(cls.i2v_14b(), image_positions=514)

    @classmethod
    def i2v_a14b(cls) -> "WanConfig":
        """Each expert of Wan2.2-I2V-A14B: channels as Wan2.1-I2V-14B's, and no branch for CLIP's image tokens."""
        return dataclasses.replace(cls.t2v_14b(), in_channels=36)

    @classmethod
    def ti2v_5b(cls) -> "WanConfig":
        """Wan2.2-TI2V-5B, with the Wan 2.2 VAE's 48 channels."""
        return cls(dim=3072, ffn_dim=14336, heads=24, layers=30, in_channels=48, out_channels=48)

    @classmethod
    def miniature(cls) -> "WanConfig":
        """The shipped miniature's: for its VAE's latents (12 x 12 for 96 x 96 pixels), 36 tokens a frame."""
        return cls(
            dim=160,
            ffn_dim=640,
            heads=4,
            layers=6,
            in_channels=12,
            out_channels=12,
            patch=(1, 2, 2),
            text_dim=128,
            freq_dim=128,
            data_std=(2.65, 1.6, 1.3, 0.63, 0.54, 0.43, 0.43, 0.39, 0.35, 0.33, 0.28, 0.23),
        )
