"""Image encoders: CLIP's vision towers, DINO and DINOv2, as one vision transformer with a config for each release."""

from kaleido_jax.models.vision.config import VisionConfig
from kaleido_jax.models.vision.modeling import VisionEncoder
from kaleido_jax.models.vision.preprocessing import Preprocessing, wan_image, wan_image_tokens

__all__ = ["Preprocessing", "VisionConfig", "VisionEncoder", "wan_image", "wan_image_tokens"]
