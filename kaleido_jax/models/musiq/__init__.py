"""MUSIQ: the quality of a picture as people rate it, which VBench's imaging quality reads."""

from kaleido_jax.models.musiq.config import MusiqConfig
from kaleido_jax.models.musiq.modeling import Musiq

__all__ = ["Musiq", "MusiqConfig"]
