"""Names and shapes of the image encoders' weights in the releases that hold them, as data.

CLIP has the layouts "huggingface" (CLIPVisionModelWithProjection, and without a projection CLIPVisionModel),
"open_clip" (also OpenAI's own files) and "wan" (models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth); DINO and
DINOv2 have "huggingface" (ViTModel without a pooler, Dinov2Model, Dinov2WithRegistersModel) and "original" (Meta's
files). Names are those of the files, which differ from the attributes of some of these classes. Each row of a table
names one module of ours and what it is called there, with {} for the layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models import mapping as tables
from kaleido_jax.models.family import Family
from kaleido_jax.models.mapping import (
    MATRIX,
    SAME,
    Entry,
    Kind,
    Shape,
    Transform,
    layers_of,
    size_of,
    told,
    told_number,
)
from kaleido_jax.models.vision.config import VisionConfig
from kaleido_jax.models.vision.modeling import VisionEncoder

Layout = Literal["huggingface", "open_clip", "wan", "original"]

LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "clip": ("huggingface", "open_clip", "wan"),
    "dino": ("huggingface", "original"),
    "dinov2": ("huggingface", "original"),
}
# Tensors that a file may hold beside the vision tower's: the rest of a whole CLIP, and a table of numbers.
_IGNORED: dict[str, tuple[str, ...]] = {
    "huggingface": (r"text_model\..*", r"text_projection\..*", "logit_scale", r".*\.position_ids"),
    "open_clip": (
        r"(transformer|text|token_embedding|ln_final)\..*",
        "positional_embedding|text_projection|logit_scale|input_resolution|context_length|vocab_size",
    ),
    "wan": (r"textual\..*", "log_scale"),
    "original": (),
}

_KINDS: dict[str, Kind] = {
    "linear": ((".kernel", ".weight", MATRIX), (".bias", ".bias", SAME)),
    "matrix": ((".kernel", ".weight", MATRIX),),
    "linear, one tensor each": ((".kernel", "_weight", MATRIX), (".bias", "_bias", SAME)),
    "norm": ((".scale", ".weight", SAME), (".bias", ".bias", SAME)),
    "head": ((".kernel", "", SAME),),
    "embedding": (("", ".weight", SAME),),
    "tensor": (("", "", SAME),),
    "1 d": (("", "", Transform("1 d -> d")),),
    "1 1 d": (("", "", Transform("1 1 d -> d")),),
    "1 n d": (("", "", Transform("1 n d -> n d")),),
    "scale": ((".factor", "", SAME),),
}


def _patches(patch: int, *, bias: bool) -> Kind:
    weight = Transform("d c ph pw -> (ph pw c) d", (("ph", patch), ("pw", patch)))
    return ((".kernel", ".weight", weight), *(((".bias", ".bias", SAME),) if bias else ()))


Row = tuple  # (our module, its name there, kind[, (start, stop) of its rows there])


def _clip_huggingface(config: VisionConfig) -> list[Row]:
    layer = "vision_model.encoder.layers.{}."
    return [
        ("summary", "vision_model.embeddings.class_embedding", "tensor"),
        ("patch_embedding", "vision_model.embeddings.patch_embedding", "patches"),
        ("positions", "vision_model.embeddings.position_embedding", "embedding"),
        ("norm_in", "vision_model.pre_layrnorm", "norm"),
        ("blocks.norm1", layer + "layer_norm1", "norm"),
        ("blocks.attention.query", layer + "self_attn.q_proj", "linear"),
        ("blocks.attention.key", layer + "self_attn.k_proj", "linear"),
        ("blocks.attention.value", layer + "self_attn.v_proj", "linear"),
        ("blocks.attention.out", layer + "self_attn.out_proj", "linear"),
        ("blocks.norm2", layer + "layer_norm2", "norm"),
        ("blocks.mlp.first", layer + "mlp.fc1", "linear"),
        ("blocks.mlp.second", layer + "mlp.fc2", "linear"),
        ("norm_out", "vision_model.post_layernorm", "norm"),
        ("projection", "visual_projection", "matrix"),
    ]


def _fused(config: VisionConfig, name: str, kind: str) -> list[Row]:
    """Query, key and value as thirds of one linear map."""
    return [
        (f"blocks.attention.{part}", name, kind, (i * config.dim, (i + 1) * config.dim))
        for i, part in enumerate(("query", "key", "value"))
    ]


def _clip_open_clip(config: VisionConfig) -> list[Row]:
    layer = "visual.transformer.resblocks.{}."
    return [
        ("summary", "visual.class_embedding", "tensor"),
        ("patch_embedding", "visual.conv1", "patches"),
        ("positions", "visual.positional_embedding", "tensor"),
        ("norm_in", "visual.ln_pre", "norm"),
        ("blocks.norm1", layer + "ln_1", "norm"),
        *_fused(config, layer + "attn.in_proj", "linear, one tensor each"),
        ("blocks.attention.out", layer + "attn.out_proj", "linear"),
        ("blocks.norm2", layer + "ln_2", "norm"),
        ("blocks.mlp.first", layer + "mlp.c_fc", "linear"),
        ("blocks.mlp.second", layer + "mlp.c_proj", "linear"),
        ("norm_out", "visual.ln_post", "norm"),
        ("projection", "visual.proj", "head"),
    ]


def _clip_wan(config: VisionConfig) -> list[Row]:
    layer = "visual.transformer.{}."
    return [
        ("summary", "visual.cls_embedding", "1 1 d"),
        ("patch_embedding", "visual.patch_embedding", "patches"),
        ("positions", "visual.pos_embedding", "1 n d"),
        ("norm_in", "visual.pre_norm", "norm"),
        ("blocks.norm1", layer + "norm1", "norm"),
        *_fused(config, layer + "attn.to_qkv", "linear"),
        ("blocks.attention.out", layer + "attn.proj", "linear"),
        ("blocks.norm2", layer + "norm2", "norm"),
        ("blocks.mlp.first", layer + "mlp.0", "linear"),
        ("blocks.mlp.second", layer + "mlp.2", "linear"),
        ("norm_out", "visual.post_norm", "norm"),
        ("projection", "visual.head", "head"),
    ]


def _feed_forward(config: VisionConfig, layer: str, gated: tuple[str, str]) -> list[Row]:
    """DINOv2's: two maps, or gate and up as halves of one, and down."""
    if config.activation != "swiglu":
        return [
            ("blocks.mlp.first", layer + "mlp.fc1", "linear"),
            ("blocks.mlp.second", layer + "mlp.fc2", "linear"),
        ]
    return [
        ("blocks.mlp.gate", layer + gated[0], "linear", (0, config.ffn_dim)),
        ("blocks.mlp.up", layer + gated[0], "linear", (config.ffn_dim, 2 * config.ffn_dim)),
        ("blocks.mlp.down", layer + gated[1], "linear"),
    ]


def _dino_huggingface(config: VisionConfig) -> list[Row]:
    layer = "encoder.layer.{}."
    rows: list[Row] = [
        ("summary", "embeddings.cls_token", "1 1 d"),
        ("registers", "embeddings.register_tokens", "1 n d"),
        ("mask_token", "embeddings.mask_token", "1 d"),
        ("patch_embedding", "embeddings.patch_embeddings.projection", "patches"),
        ("positions", "embeddings.position_embeddings", "1 n d"),
        ("blocks.attention.query", layer + "attention.attention.query", "linear"),
        ("blocks.attention.key", layer + "attention.attention.key", "linear"),
        ("blocks.attention.value", layer + "attention.attention.value", "linear"),
        ("blocks.attention.out", layer + "attention.output.dense", "linear"),
        ("norm_out", "layernorm", "norm"),
    ]
    if config.family == "dino":
        return [
            *rows,
            ("blocks.norm1", layer + "layernorm_before", "norm"),
            ("blocks.norm2", layer + "layernorm_after", "norm"),
            ("blocks.mlp.first", layer + "intermediate.dense", "linear"),
            ("blocks.mlp.second", layer + "output.dense", "linear"),
        ]
    return [
        *rows,
        ("blocks.norm1", layer + "norm1", "norm"),
        ("blocks.scale1", layer + "layer_scale1.lambda1", "scale"),
        ("blocks.norm2", layer + "norm2", "norm"),
        *_feed_forward(config, layer, ("mlp.weights_in", "mlp.weights_out")),
        ("blocks.scale2", layer + "layer_scale2.lambda1", "scale"),
    ]


def _dino_original(config: VisionConfig) -> list[Row]:
    layer = "blocks.{}."
    return [
        ("summary", "cls_token", "1 1 d"),
        ("registers", "register_tokens", "1 n d"),
        ("mask_token", "mask_token", "1 d"),
        ("patch_embedding", "patch_embed.proj", "patches"),
        ("positions", "pos_embed", "1 n d"),
        ("blocks.norm1", layer + "norm1", "norm"),
        *_fused(config, layer + "attn.qkv", "linear"),
        ("blocks.attention.out", layer + "attn.proj", "linear"),
        ("blocks.scale1", layer + "ls1.gamma", "scale"),
        ("blocks.norm2", layer + "norm2", "norm"),
        *_feed_forward(config, layer, ("mlp.w12", "mlp.w3")),
        ("blocks.scale2", layer + "ls2.gamma", "scale"),
        ("norm_out", "norm", "norm"),
    ]


_ROWS = {
    ("clip", "huggingface"): _clip_huggingface,
    ("clip", "open_clip"): _clip_open_clip,
    ("clip", "wan"): _clip_wan,
    ("dino", "huggingface"): _dino_huggingface,
    ("dino", "original"): _dino_original,
    ("dinov2", "huggingface"): _dino_huggingface,
    ("dinov2", "original"): _dino_original,
}


def _make(config: VisionConfig) -> VisionEncoder:
    return VisionEncoder(config, nnx.Rngs(0))


def mapping(config: VisionConfig, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout.

    Raises:
      ValueError: if the config's family has no such layout.
    """
    if layout not in LAYOUTS[config.family]:
        known = ", ".join(LAYOUTS[config.family])
        raise ValueError(f"layout is {layout!r}; expected one of {known}, for weights of {config.family}.")
    kinds = _KINDS | {"patches": _patches(config.patch, bias=config.family != "clip")}
    table = tables.table_of(_ROWS[config.family, layout](config), kinds, config.layers)
    present = tables.abstract_parameters(
        lambda: _make(config)
    )  # a model may lack its projection, registers, mask token or scales
    return {name: entry for name, entry in table.items() if name in present}


# Where the sizes are told: (patches, positions and their axis of places, first norm of a layer, first of its maps).
_TOLD: dict[str, tuple[str, str, int, str, str]] = {
    "clip huggingface": (
        "vision_model.embeddings.patch_embedding.weight", "vision_model.embeddings.position_embedding.weight", 0,
        "vision_model.encoder.layers.{}.layer_norm1.weight", "vision_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "clip open_clip": (
        "visual.conv1.weight", "visual.positional_embedding", 0,
        "visual.transformer.resblocks.{}.ln_1.weight", "visual.transformer.resblocks.0.mlp.c_fc.weight",
    ),
    "clip wan": (
        "visual.patch_embedding.weight", "visual.pos_embedding", 1,
        "visual.transformer.{}.norm1.weight", "visual.transformer.0.mlp.0.weight",
    ),
    "dino huggingface": (
        "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings", 1,
        "encoder.layer.{}.layernorm_before.weight", "encoder.layer.0.intermediate.dense.weight",
    ),
    "dinov2 huggingface": (
        "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings", 1,
        "encoder.layer.{}.norm1.weight", "encoder.layer.0.mlp.fc1.weight",
    ),
    "dino original": (
        "patch_embed.proj.weight", "pos_embed", 1, "blocks.{}.norm1.weight", "blocks.0.mlp.fc1.weight"
    ),
}  # fmt: skip
_TOLD["dinov2 original"] = _TOLD["dino original"]
_PROJECTIONS = {
    "huggingface": ("visual_projection.weight", 0),
    "open_clip": ("visual.proj", 1),
    "wan": ("visual.head", 1),
}
_GATED = ("encoder.layer.0.mlp.weights_in.weight", "blocks.0.mlp.w12.weight")
_REGISTERS = ("embeddings.register_tokens", "register_tokens")
_MASK_TOKENS = ("embeddings.mask_token", "mask_token")
_LAYER_SCALES = ("encoder.layer.0.layer_scale1.lambda1", "blocks.0.ls1.gamma")


def config_from(
    shapes: Mapping[str, Shape], layout: Layout = "huggingface", document: Mapping[str, Any] | None = None
) -> VisionConfig:
    """The sizes of a checkpoint from its tensors' shapes and its config.json.

    Without a document heads are 64 wide, but 80 in towers of 1280 channels and more, which also have the exact GELU
    where narrower CLIPs have OpenAI's; this is so in all releases named in `VisionConfig`.

    Raises:
      InputError: a tensor that tells a size is missing, or the document names another activation.
    """
    scaled = any(name in shapes for name in _LAYER_SCALES)
    clip = layout in ("open_clip", "wan") or any(name.startswith("vision_model.") for name in shapes)
    family = "clip" if clip else "dinov2" if scaled else "dino"
    patches, positions, places, norm, hidden = _TOLD[f"{family} {layout}"]
    dim, patch = (size_of(shapes, patches, axis) for axis in (0, 2))
    gated = next((name for name in _GATED if name in shapes), None)
    wide = clip and dim >= 1280
    activation = (document or {}).get("hidden_act", "quick_gelu" if clip and not wide else "gelu")
    if activation not in ("gelu", "quick_gelu"):
        raise InputError(f"config.json says hidden_act {activation!r}; image encoders here have gelu or quick_gelu.")
    registers = next((size_of(shapes, name, 1) for name in _REGISTERS if name in shapes), 0)
    projection = _PROJECTIONS.get(layout, ("", 0)) if clip else ("", 0)
    grid = math.isqrt(max(size_of(shapes, positions, places) - 1, 0))
    return VisionConfig(
        family=family,
        dim=dim,
        ffn_dim=size_of(shapes, gated, 0) // 2 if gated else size_of(shapes, hidden, 0),
        heads=told(document, "num_attention_heads", dim // (80 if wide else 64)),
        layers=layers_of(shapes, norm),
        patch=patch,
        image_size=told(document, "image_size", grid * patch),
        activation="swiglu" if gated else activation,
        projection=size_of(shapes, *projection) if projection[0] in shapes else None,
        registers=registers,
        mask_token=any(name in shapes for name in _MASK_TOKENS),
        position_offset=0.0 if clip or registers else 0.1,
        position_antialias=registers > 0,
        eps=told_number(document, "layer_norm_eps", 1e-5 if clip else 1e-6),
    )


def config_document(config: VisionConfig, layout: Layout = "huggingface") -> dict[str, Any]:
    """The config.json that stands beside weights of this layout; the original releases have none."""
    if layout != "huggingface":
        return {}
    gated = config.activation == "swiglu"
    sizes = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
        "image_size": config.image_size,
        "hidden_act": "gelu" if gated else config.activation,
        "layer_norm_eps": config.eps,
    }
    if config.family == "clip":
        name = "CLIPVisionModel" if config.projection is None else "CLIPVisionModelWithProjection"
        projection = {} if config.projection is None else {"projection_dim": config.projection}
        kind = {"model_type": "clip_vision_model", "intermediate_size": config.ffn_dim, **projection}
    elif config.family == "dino":
        name, kind = "ViTModel", {"model_type": "vit", "intermediate_size": config.ffn_dim, "qkv_bias": True}
    else:
        name = "Dinov2WithRegistersModel" if config.registers else "Dinov2Model"
        # transformers gives the hidden width as a multiple, of which gated layers keep two thirds, in steps of 8.
        width = lambda ratio: (ratio * config.dim * 2 // 3 + 7) // 8 * 8 if gated else ratio * config.dim
        ratio = next((ratio for ratio in range(1, 17) if width(ratio) == config.ffn_dim), None)
        if ratio is None:
            raise InputError(f"ffn_dim is {config.ffn_dim}; transformers knows multiples of dim, {config.dim}, only.")
        kind = {"model_type": "dinov2", "mlp_ratio": ratio, "use_swiglu_ffn": gated, "qkv_bias": True}
        if config.registers:
            kind |= {"model_type": "dinov2_with_registers", "num_register_tokens": config.registers}
        else:
            kind |= {"use_mask_token": config.mask_token}
    return {"architectures": [name], **kind, **sizes}


_SHARED: dict[str, Any] = {
    "config": VisionConfig,
    "make": _make,
    "layout": "huggingface",
    "mapping": mapping,
    "config_from": config_from,
    "config_document": config_document,
    "ignored": _IGNORED,
}
CLIP = Family(
    name="clip-vision",
    **_SHARED,
    owns=lambda config: config.family == "clip",
    sizes={
        "clip-vit-base-patch32": VisionConfig.clip_b32,
        "clip-vit-large-patch14": VisionConfig.clip_l14,
        "open-clip-xlm-roberta-large-vit-huge-14": VisionConfig.clip_h14,
    },
)
DINO = Family(
    name="dino",
    **_SHARED,
    owns=lambda config: config.family != "clip",
    sizes={
        "dino-vits16": VisionConfig.dino_s16,
        "dino-vitb16": VisionConfig.dino_b16,
        "dinov2-small": VisionConfig.dinov2_s14,
        "dinov2-base": VisionConfig.dinov2_b14,
        "dinov2-large": VisionConfig.dinov2_l14,
        "dinov2-giant": VisionConfig.dinov2_g14,
    },
)
