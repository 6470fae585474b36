"""ViCLIP: a CLIP of videos and texts, which VBench's overall consistency reads."""

from kaleido_jax.models.viclip.modeling import ViCLIP, ViCLIPConfig

__all__ = ["ViCLIP", "ViCLIPConfig"]
