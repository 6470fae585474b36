"""Sizes of the VAE of pictures."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageVAEConfig:
    """Sizes of an AutoencoderKL (latent diffusion, arXiv:2112.10752, appendix G).

    z_dim: channels of the latents. channels: of each resolution, the finest first; every step to the next one halves
    height and width. num_res_blocks: residual blocks of each resolution of the encoder (the decoder has one more).
    groups: of the group norms; eps: theirs. shift, scale: the normalised latents are (latents - shift) * scale.
    """

    z_dim: int
    channels: tuple[int, ...]
    num_res_blocks: int
    shift: float
    scale: float
    groups: int = 32
    eps: float = 1e-6

    def __post_init__(self):
        for name in ("z_dim", "num_res_blocks", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"ImageVAEConfig.{name} is {getattr(self, name)}; expected a positive integer.")
        if not self.channels or any(count < 1 or count % self.groups for count in self.channels):
            raise ValueError(
                f"ImageVAEConfig.channels is {self.channels}; expected positive multiples of the {self.groups} groups."
            )
        if not self.scale:
            raise ValueError("ImageVAEConfig.scale is 0; expected another number.")

    @property
    def spatial_factor(self) -> int:
        """Pixels to one latent, along height and along width."""
        return 2 ** (len(self.channels) - 1)

    @classmethod
    def flux(cls) -> "ImageVAEConfig":
        """The VAE of FLUX.1: 8 x 8 pixels to 16 channels."""
        return cls(z_dim=16, channels=(128, 256, 512, 512), num_res_blocks=2, shift=0.1159, scale=0.3611)
