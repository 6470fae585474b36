"""Face recognition: ArcFace's and CurricularFace's residual networks, which turn an aligned face into 512 numbers."""

from kaleido_jax.models.faces.modeling import FaceConfig, FaceEncoder

__all__ = ["FaceConfig", "FaceEncoder"]
