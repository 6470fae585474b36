"""The MMDiT of videos in shots that LCT stands on: sizes and maths; its blocks are FLUX's too."""

from kaleido_jax.models.mmdit.config import MMDiTConfig
from kaleido_jax.models.mmdit.modeling import VideoMMDiT

__all__ = ["MMDiTConfig", "VideoMMDiT"]
