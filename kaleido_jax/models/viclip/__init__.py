"""ViCLIP: a CLIP of videos and texts, which VBench's overall consistency reads."""

from kaleido_jax.models.viclip.config import ViCLIPConfig
from kaleido_jax.models.viclip.modeling import ViCLIP

__all__ = ["ViCLIP", "ViCLIPConfig"]
