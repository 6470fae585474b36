"""transformers' image encoders beside ours: equal sizes, equal weights."""

from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from kaleido_jax.models.mapping import Shape
from kaleido_jax.models.vision import VisionConfig


def peer(config: VisionConfig) -> transformers.PreTrainedModel:
    """transformers' class of the same sizes, in float32."""
    sizes: dict[str, Any] = {
        "hidden_size": config.dim, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "patch_size": config.patch, "image_size": config.image_size, "layer_norm_eps": config.eps,
        "attn_implementation": "eager",
    }  # fmt: skip
    if config.family == "clip":
        options = transformers.CLIPVisionConfig(
            intermediate_size=config.ffn_dim, hidden_act=config.activation, projection_dim=config.projection or 1,
            **sizes,
        )  # fmt: skip
        if config.projection is None:
            return transformers.CLIPVisionModel(options)
        return transformers.CLIPVisionModelWithProjection(options)
    if config.family == "dino":
        options = transformers.ViTConfig(intermediate_size=config.ffn_dim, **sizes)
        return transformers.ViTModel(options, add_pooling_layer=False)
    gated = config.activation == "swiglu"
    # It names the width of the feed-forward layers by a whole number; of a gated one, two thirds are kept.
    width = lambda ratio: (ratio * config.dim * 2 // 3 + 7) // 8 * 8 if gated else ratio * config.dim
    sizes["mlp_ratio"] = next(ratio for ratio in range(1, 9) if width(ratio) == config.ffn_dim)
    if config.registers:
        options = transformers.Dinov2WithRegistersConfig(
            use_swiglu_ffn=gated, num_register_tokens=config.registers, **sizes
        )
        return transformers.Dinov2WithRegistersModel(options)
    options = transformers.Dinov2Config(use_swiglu_ffn=gated, use_mask_token=config.mask_token, **sizes)
    return transformers.Dinov2Model(options)


def file_tensors(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's tensors under the names of the released files, to which transformers itself turns them."""
    tensors = revert_weight_conversion(model, model.state_dict())
    if isinstance(model, transformers.CLIPVisionModel):  # today's class has lost the prefix of its files
        tensors = {f"vision_model.{name}": x for name, x in tensors.items()}
    return tensors


def file_shapes(config: VisionConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a released file, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in file_tensors(peer(config)).items()}
