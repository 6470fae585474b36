"""Face recognition: ArcFace's and CurricularFace's residual networks, which turn an aligned face into 512 numbers."""

from kaleido_jax.models.faces.config import FaceConfig
from kaleido_jax.models.faces.modeling import FaceEncoder

__all__ = ["FaceConfig", "FaceEncoder"]
