"""Sizes of the Wan causal video VAEs."""

import math
from dataclasses import dataclass

# Per-channel statistics of the released latents, as published beside the weights.
_WAN2_1_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_WAN2_1_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
_WAN2_2_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
_WAN2_2_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes of one causal video VAE; every released size is a named constructor.

    Attributes:
      z_dim: channels of a latent.
      base_dim: encoder channels at full (unshuffled) resolution; stage i has `base_dim * dim_mult[i]`.
      decoder_base_dim: the same for the decoder.
      dim_mult: channel multiple of each stage; between two stages height and width halve.
      num_res_blocks: residual blocks of an encoder stage; a decoder stage has one more.
      temporal_downsample: for each of the `len(dim_mult) - 1` transitions, whether frames halve too.
      patch_size: pixels of a square of this side become channels first (1 for Wan 2.1, 2 for Wan 2.2).
      residual: parameter-free shortcuts around every stage (Wan 2.2).
      latents_mean, latents_std: per-channel statistics by which `WanVAE.encode` normalises.
    """

    z_dim: int
    base_dim: int
    decoder_base_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    patch_size: int
    residual: bool
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("z_dim", "base_dim", "decoder_base_dim", "num_res_blocks", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample has {len(self.temporal_downsample)} entries; dim_mult has {len(self.dim_mult)}"
                f" stages, so it needs {len(self.dim_mult) - 1}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name} has {len(getattr(self, name))} values; z_dim is {self.z_dim}")
        if min(self.latents_std) <= 0:
            raise ValueError(f"latents_std holds {min(self.latents_std)}; every value must be positive")
        if self.residual:
            self._check_shortcuts()

    def _check_shortcuts(self) -> None:
        """A shortcut averages or repeats whole groups of channels, so the counts must divide."""
        for stage, (n_in, n_out, factor) in enumerate(self.encoder_shortcuts()):
            if n_in * factor % n_out:
                raise ValueError(
                    f"dim_mult {self.dim_mult} has no residual shortcut in encoder stage {stage}: {n_in} channels times"
                    f" {factor} cannot be averaged into {n_out} (the last two multiples are usually equal)"
                )
        for stage, (n_in, n_out, factor) in enumerate(self.decoder_shortcuts()):
            if n_out * factor % n_in:
                raise ValueError(
                    f"dim_mult {self.dim_mult} has no residual shortcut in decoder stage {stage}: {n_in} channels"
                    f" cannot be repeated into {n_out} times {factor}"
                )

    def encoder_shortcuts(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, pixels merged) of every encoder stage."""
        dims = [self.base_dim * m for m in (1, *self.dim_mult)]
        factors = [8 if temporal else 4 for temporal in self.temporal_downsample] + [1]
        return list(zip(dims[:-1], dims[1:], factors, strict=True))

    def decoder_shortcuts(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, pixels made of one) of every decoder stage but the last, which has none."""
        dims = [self.decoder_base_dim * m for m in (self.dim_mult[-1], *self.dim_mult[::-1])]
        factors = [8 if temporal else 4 for temporal in self.temporal_downsample[::-1]]
        return list(zip(dims[:-2], dims[1:-1], factors, strict=True))

    @property
    def spatial_factor(self) -> int:
        """Pixels of height (or width) per latent."""
        return self.patch_size * 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, after the first, which stands alone."""
        return math.prod(2 if temporal else 1 for temporal in self.temporal_downsample)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip; raises ValueError unless `frames` is temporal_factor * n + 1."""
        if frames < 1 or (frames - 1) % self.temporal_factor:
            lower = max(frames - 1, 0) // self.temporal_factor * self.temporal_factor + 1
            raise ValueError(
                f"frames is {frames}; it must be {self.temporal_factor} n + 1, such as {lower} or"
                f" {lower + self.temporal_factor}"
            )
        return (frames - 1) // self.temporal_factor + 1

    @classmethod
    def wan2_1(cls) -> "VAEConfig":
        """Wan2.1_VAE: 16 channels, 8 x 8 pixels and 4 frames per latent."""
        return cls(
            z_dim=16,
            base_dim=96,
            decoder_base_dim=96,
            dim_mult=(1, 2, 4, 4),
            num_res_blocks=2,
            temporal_downsample=(False, True, True),
            patch_size=1,
            residual=False,
            latents_mean=_WAN2_1_MEAN,
            latents_std=_WAN2_1_STD,
        )

    @classmethod
    def wan2_2(cls) -> "VAEConfig":
        """Wan2.2_VAE (of TI2V-5B): 48 channels, 16 x 16 pixels and 4 frames per latent."""
        return cls(
            z_dim=48,
            base_dim=160,
            decoder_base_dim=256,
            dim_mult=(1, 2, 4, 4),
            num_res_blocks=2,
            temporal_downsample=(False, True, True),
            patch_size=2,
            residual=True,
            latents_mean=_WAN2_2_MEAN,
            latents_std=_WAN2_2_STD,
        )

    @classmethod
    def miniature(cls) -> "VAEConfig":
        """The shipped miniature: 16 channels, 8 x 8 pixels and 2 frames per latent; statistics are set by training."""
        return cls(
            z_dim=16,
            base_dim=24,
            decoder_base_dim=24,
            dim_mult=(1, 2, 2),
            num_res_blocks=1,
            temporal_downsample=(False, True),
            patch_size=2,
            residual=True,
            latents_mean=(0.0,) * 16,
            latents_std=(1.0,) * 16,
        )
