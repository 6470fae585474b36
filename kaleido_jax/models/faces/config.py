"""Sizes of the released face recognition networks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaceConfig:
    """Sizes of a network.

    depths: blocks of each stage; every stage halves height and width. channels: of the first layer and of each stage.
    features: width of what a face becomes. image_size: pixels of a face's side, a multiple of 2 for each stage.
    subsampled: whether a block that keeps its channels and halves the picture is added to every second pixel, as
      CurricularFace's, and the last normalisation has no scale and bias; else to a 1 x 1 convolution, as ArcFace's.
    eps: of the normalisations.
    """

    depths: tuple[int, ...]
    channels: tuple[int, ...] = (64, 64, 128, 256, 512)
    features: int = 512
    image_size: int = 112
    subsampled: bool = False
    eps: float = 1e-5

    def __post_init__(self):
        if not self.depths or min(self.depths) < 1 or len(self.channels) != 1 + len(self.depths):
            raise ValueError(
                f"FaceConfig has depths {self.depths} and channels {self.channels}; expected at least a block in every "
                "stage, and the channels of the first layer and of every stage."
            )
        if self.image_size % 2 ** len(self.depths):
            raise ValueError(
                f"FaceConfig.image_size is {self.image_size}; expected a multiple of {2 ** len(self.depths)}."
            )

    @property
    def grid(self) -> int:
        """Height and width of what the last stage gives."""
        return self.image_size // 2 ** len(self.depths)

    @classmethod
    def arcface_r50(cls) -> FaceConfig:
        """InsightFace's r50."""
        return cls(depths=(3, 4, 14, 3))

    @classmethod
    def arcface_r100(cls) -> FaceConfig:
        """InsightFace's r100."""
        return cls(depths=(3, 13, 30, 3))

    @classmethod
    def curricularface_r101(cls) -> FaceConfig:
        """IR-101 as OpenS2V-Eval and ConsisID read it (glint360k_curricular_face_r101_backbone.bin)."""
        return cls(depths=(3, 13, 30, 3), subsampled=True)
