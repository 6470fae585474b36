"""Sizes of ViCLIP."""

from __future__ import annotations

import dataclasses

from kaleido_jax.models.text.clip.config import CLIPTextConfig
from kaleido_jax.models.vision.config import VisionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViCLIPConfig:
    """Sizes: vision, the tower of a frame, of the family "clip" with a projection; frames of a video; text, whose
    features get the projection's width."""

    vision: VisionConfig
    text: CLIPTextConfig
    frames: int = 8

    def __post_init__(self):
        if self.vision.family != "clip" or self.vision.projection is None or self.frames < 2:
            raise ValueError("ViCLIPConfig needs a vision tower of the family clip with a projection, and 2 frames.")

    @classmethod
    def large(cls) -> ViCLIPConfig:
        """ViClip-InternVid-10M-FLT, which reads 32 tokens of a text."""
        return cls(vision=VisionConfig.clip_l14(), text=dataclasses.replace(CLIPTextConfig.large(), positions=32))
