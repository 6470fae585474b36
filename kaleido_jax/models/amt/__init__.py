"""AMT-S: the frame between two frames, which VBench's motion smoothness reads."""

from kaleido_jax.models.amt.config import AMTConfig
from kaleido_jax.models.amt.modeling import AMT

__all__ = ["AMT", "AMTConfig"]
