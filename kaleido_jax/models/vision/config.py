"""Sizes of the released image encoders: CLIP (arXiv:2103.00020), DINO (arXiv:2104.14294), DINOv2 (arXiv:2304.07193)."""

import dataclasses

from kaleido_jax.models.sizes import check_dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Sizes and habits of one vision transformer; every released one is a named constructor.

    family: whose habits it has. "clip" normalises the tokens before the first block, and its patch embedding has no
      bias; "dinov2" scales what every layer adds to the stream; "dino" is the plain vision transformer.
    dim: width of a token; ffn_dim: hidden width of the feed-forward layers; heads, layers: how many of each.
    patch: pixels of the side of a patch. image_size: pixels of the side of the pictures that the positions were
      trained for; other sizes interpolate them.
    activation: of the feed-forward layers; "swiglu" multiplies two maps, one of them behind a SiLU.
    projection: width of CLIP's embedding of a picture, or None where the summary is not projected.
    registers: tokens beside the picture's (arXiv:2309.16588).
    mask_token: whether the weights hold the token that stood for a hidden patch in training.
    position_offset: DINO and DINOv2 add 0.1 to the number of patches in the ratio by which they interpolate positions.
    position_antialias: whether that interpolation averages where it shrinks.
    eps: of the layer norms. dtype: of the activations; norms are float32 whatever it is.
    """

    family: str
    dim: int
    ffn_dim: int
    heads: int
    layers: int
    patch: int
    image_size: int = 224
    activation: str = "gelu"
    projection: int | None = None
    registers: int = 0
    mask_token: bool = False
    position_offset: float = 0.0
    position_antialias: bool = False
    eps: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        if self.family not in ("clip", "dino", "dinov2"):
            raise ValueError(f"VisionConfig.family is {self.family!r}; expected clip, dino or dinov2.")
        if self.activation not in ("gelu", "quick_gelu", "swiglu"):
            raise ValueError(f"VisionConfig.activation is {self.activation!r}; expected gelu, quick_gelu or swiglu.")
        for name in ("dim", "ffn_dim", "heads", "layers", "patch"):
            if getattr(self, name) < 1:
                raise ValueError(f"VisionConfig.{name} is {getattr(self, name)}; expected a positive integer.")
        if self.dim % self.heads:
            raise ValueError(f"VisionConfig.dim is {self.dim}; expected a multiple of the {self.heads} heads.")
        if self.image_size < self.patch:
            raise ValueError(f"VisionConfig.image_size is {self.image_size}; expected at least a patch, {self.patch}.")
        check_dtype(self)

    @property
    def grid(self) -> int:
        """Patches along the side of a picture of `image_size`: the table of positions holds the square of it."""
        return self.image_size // self.patch

    @classmethod
    def clip_b32(cls) -> "VisionConfig":
        """CLIP ViT-B/32 of OpenAI: VBench's background consistency, CLIP-I and CLIP-T."""
        return cls(
            family="clip", dim=768, ffn_dim=3072, heads=12, layers=12, patch=32, activation="quick_gelu",
            projection=512, eps=1e-5,
        )  # fmt: skip

    @classmethod
    def clip_l14(cls) -> "VisionConfig":
        """CLIP ViT-L/14 of OpenAI, on which the LAION aesthetic predictors stand."""
        return cls(
            family="clip", dim=1024, ffn_dim=4096, heads=16, layers=24, patch=14, activation="quick_gelu",
            projection=768, eps=1e-5,
        )  # fmt: skip

    @classmethod
    def clip_h14(cls) -> "VisionConfig":
        """CLIP ViT-H/14 of open-clip's XLM-RoBERTa release, which Wan's image-to-video models read.

        The `image_encoder` folder of diffusers' Wan holds it without its projection: `projection=None`.
        """
        return cls(
            family="clip", dim=1280, ffn_dim=5120, heads=16, layers=32, patch=14, projection=1024, eps=1e-5
        )  # fmt: skip

    @classmethod
    def dino_s16(cls) -> "VisionConfig":
        """DINO ViT-S/16: DINO-I as DreamBooth defines it."""
        return cls(family="dino", dim=384, ffn_dim=1536, heads=6, layers=12, patch=16, position_offset=0.1)

    @classmethod
    def dino_b16(cls) -> "VisionConfig":
        """DINO ViT-B/16: VBench's subject consistency."""
        return dataclasses.replace(cls.dino_s16(), dim=768, ffn_dim=3072, heads=12)

    @classmethod
    def dinov2_s14(cls) -> "VisionConfig":
        """DINOv2 ViT-S/14."""
        return cls(
            family="dinov2", dim=384, ffn_dim=1536, heads=6, layers=12, patch=14, image_size=518, mask_token=True,
            position_offset=0.1,
        )  # fmt: skip

    @classmethod
    def dinov2_b14(cls) -> "VisionConfig":
        """DINOv2 ViT-B/14."""
        return dataclasses.replace(cls.dinov2_s14(), dim=768, ffn_dim=3072, heads=12)

    @classmethod
    def dinov2_l14(cls) -> "VisionConfig":
        """DINOv2 ViT-L/14."""
        return dataclasses.replace(cls.dinov2_s14(), dim=1024, ffn_dim=4096, heads=16, layers=24)

    @classmethod
    def dinov2_g14(cls) -> "VisionConfig":
        """DINOv2 ViT-g/14, whose feed-forward layers are gated."""
        return dataclasses.replace(
            cls.dinov2_s14(), dim=1536, ffn_dim=4096, heads=24, layers=40, activation="swiglu"
        )  # fmt: skip

    def with_registers(self) -> "VisionConfig":
        """The release of the same DINOv2 with four registers; it interpolates positions in another way."""
        return dataclasses.replace(self, registers=4, position_offset=0.0, position_antialias=True)
