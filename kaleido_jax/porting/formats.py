"""Which families and layouts of checkpoints there are, and which of them a set of tensor names is.

A family is registered by one row for each layout; its `params.py` is imported when a checkpoint of it turns up.
"""

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from kaleido_jax.config import from_json, to_json
from kaleido_jax.errors import InputError
from kaleido_jax.models.flux.config import FluxConfig
from kaleido_jax.models.image_vae.config import ImageVAEConfig
from kaleido_jax.models.mapping import Entry, Shape, Table
from kaleido_jax.models.text.clip.config import CLIPTextConfig
from kaleido_jax.models.text.umt5.config import UMT5Config
from kaleido_jax.models.vae.config import VAEConfig
from kaleido_jax.models.vision.config import VisionConfig
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.names import lookup

OURS = "kaleido"  # our own parameters under their own names, as model folders and orbax checkpoints hold them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One layout of one family's checkpoints.

    family: its name here. layout: as its params.py calls it. params: that module. config: the class of its sizes.
    sizes: released sizes by name. markers: names of tensors that together only this layout has.
    weights: what the files are called, without their ending. documents: how its config.json calls itself (_class_name
      or model_type); a config.json that calls itself otherwise is that of another part of the release.
    release: the one .pt file of a release's folder, if that is how it is laid out (the name of the file's own folder
      stands in `torch_files.LATEST`). wrapper: the key under which .pt files hold the weights, if not at the top.
    """

    family: str
    layout: str
    params: str
    config: type
    sizes: Mapping[str, Callable[[], Any]]
    markers: tuple[str, ...]
    weights: str
    documents: tuple[str, ...] = ()
    release: str = ""
    wrapper: str = ""

    @property
    def module(self) -> Any:
        """The family's params.py."""
        return importlib.import_module(self.params)

    def own(self, document: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The config.json if it is of this format."""
        kind = (document or {}).get("_class_name", (document or {}).get("model_type"))
        return document if kind in self.documents else None

    def config_from(self, shapes: Mapping[str, Shape], document: Mapping[str, Any] | None) -> Any:
        """The sizes of a checkpoint. Raises InputError naming what cannot be told, or what is no size of the family."""
        try:
            return self.module.config_from(shapes, self.layout, self.own(document))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"these are not the sizes of {self.family} weights: {error}") from error

    def config_document(self, config: Any) -> dict[str, Any]:
        """The config.json to write beside the weights; empty where releases have none."""
        return self.module.config_document(config, self.layout)

    def table(self, config: Any) -> Table:
        """Where each parameter lies."""
        return self.module.mapping(config, self.layout)

    def shapes(self, config: Any) -> dict[str, Any]:
        """Shape and dtype of every parameter of ours."""
        return self.module.abstract_parameters(config)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of tensors that a file may hold instead or too."""
        return getattr(self.module, "ALIASES", {}).get(self.layout, {})

    def ignored(self, name: str) -> bool:
        """Whether a tensor holds no weight, such as a table of positions."""
        patterns = getattr(self.module, "IGNORED", {}).get(self.layout, ())
        return any(re.fullmatch(pattern, name) for pattern in patterns)


class OurFormat(Format):
    """Our own layout of a family: every name is its own, and the config.json says the sizes."""

    def own(self, document: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        return document

    def config_from(self, shapes: Mapping[str, Shape], document: Mapping[str, Any] | None) -> Any:
        """As `Format.config_from`: of a folder that `port` wrote, or of a model folder with all three networks."""
        document = document or {}
        section = document.get("sizes" if document.get("family") == self.family else self.weights)
        if section is None:
            raise InputError(
                f"our own names of {self.family} weights need the config.json with their sizes beside them"
            )
        return from_json(self.config, section, "config.json")

    def config_document(self, config: Any) -> dict[str, Any]:
        return {"format": 1, "family": self.family, "sizes": to_json(config)}

    def table(self, config: Any) -> Table:
        return {name: Entry((name,)) for name in self.shapes(config)}

    @property
    def aliases(self) -> Mapping[str, str]:
        return {}

    def ignored(self, name: str) -> bool:
        return False


_WAN: dict[str, Any] = {
    "family": "wan",
    "params": "kaleido_jax.models.wan.params",
    "config": WanConfig,
    "sizes": {
        "Wan2.1-T2V-1.3B": WanConfig.t2v_1_3b,
        "Wan2.1-T2V-14B": WanConfig.t2v_14b,
        "Wan2.1-I2V-14B": WanConfig.i2v_14b,
        "Wan2.2-I2V-A14B": WanConfig.i2v_a14b,
        "Wan2.2-TI2V-5B": WanConfig.ti2v_5b,
    },
}
_VAE: dict[str, Any] = {
    "family": "wan-vae",
    "params": "kaleido_jax.models.vae.params",
    "config": VAEConfig,
    "sizes": {"Wan2.1_VAE": VAEConfig.wan2_1, "Wan2.2_VAE": VAEConfig.wan2_2, "miniature": VAEConfig.miniature},
}
_UMT5: dict[str, Any] = {
    "family": "umt5",
    "params": "kaleido_jax.models.text.umt5.params",
    "config": UMT5Config,
    "sizes": {"umt5-xxl": UMT5Config.xxl, "t5-v1_1-xxl": UMT5Config.t5_xxl},
}
_FLUX: dict[str, Any] = {
    "family": "flux",
    "params": "kaleido_jax.models.flux.params",
    "config": FluxConfig,
    "sizes": {"FLUX.1-dev": FluxConfig.dev, "FLUX.1-schnell": FluxConfig.schnell},
}
_IMAGE_VAE: dict[str, Any] = {
    "family": "image-vae",
    "params": "kaleido_jax.models.image_vae.params",
    "config": ImageVAEConfig,
    "sizes": {"FLUX.1": ImageVAEConfig.flux},
}
_CLIP_TEXT: dict[str, Any] = {
    "family": "clip-text",
    "params": "kaleido_jax.models.text.clip.params",
    "config": CLIPTextConfig,
    "sizes": {"clip-vit-large-patch14": CLIPTextConfig.large},
}
_CLIP_VISION: dict[str, Any] = {
    "family": "clip-vision",
    "params": "kaleido_jax.models.vision.params",
    "config": VisionConfig,
    "sizes": {
        "clip-vit-base-patch32": VisionConfig.clip_b32,
        "clip-vit-large-patch14": VisionConfig.clip_l14,
        "open-clip-xlm-roberta-large-vit-huge-14": VisionConfig.clip_h14,
    },
}
_DINO: dict[str, Any] = {
    "family": "dino",
    "params": "kaleido_jax.models.vision.params",
    "config": VisionConfig,
    "sizes": {
        "dino-vits16": VisionConfig.dino_s16,
        "dino-vitb16": VisionConfig.dino_b16,
        "dinov2-small": VisionConfig.dinov2_s14,
        "dinov2-base": VisionConfig.dinov2_b14,
        "dinov2-large": VisionConfig.dinov2_l14,
        "dinov2-giant": VisionConfig.dinov2_g14,
    },
}

FORMATS: tuple[Format, ...] = (
    Format(
        **_WAN,
        layout="original",
        markers=("patch_embedding.weight", "text_embedding.0.weight", "head.modulation"),
        weights="diffusion_pytorch_model",
        documents=("WanModel",),
    ),
    Format(
        **_WAN,
        layout="diffusers",
        markers=("patch_embedding.weight", "condition_embedder.text_embedder.linear_1.weight", "scale_shift_table"),
        weights="diffusion_pytorch_model",
        documents=("WanTransformer3DModel",),
    ),
    Format(
        **_WAN,
        layout="kaleido-sat",
        markers=(
            "model.diffusion_model.mixins.patch_embed.proj.weight",
            "model.diffusion_model.transformer.layers.0.attention.query_key_value.weight",
        ),
        weights="mp_rank_00_model_states",
        release="1/mp_rank_00_model_states.pt",
        wrapper="module",
    ),
    OurFormat(
        **_WAN,
        layout=OURS,
        markers=("patch_embedding.kernel", "text_embedding.first.kernel", "head.modulation"),
        weights="transformer",
    ),
    Format(
        **_VAE,
        layout="original",
        markers=("conv1.weight", "encoder.conv1.weight", "decoder.conv1.weight", "decoder.head.0.gamma"),
        weights="vae",
    ),
    Format(
        **_VAE,
        layout="diffusers",
        markers=("quant_conv.weight", "encoder.conv_in.weight", "decoder.norm_out.gamma"),
        weights="diffusion_pytorch_model",
        documents=("AutoencoderKLWan",),
    ),
    OurFormat(
        **_VAE,
        layout=OURS,
        markers=("quant_conv.kernel", "encoder.conv_in.kernel", "decoder.norm_out.scale"),
        weights="vae",
    ),
    Format(
        **_UMT5,
        layout="huggingface",
        markers=(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        ),
        weights="model",
        documents=("umt5", "t5"),
    ),
    Format(
        **_UMT5,
        layout="wan",
        markers=("token_embedding.weight", "blocks.0.attn.q.weight", "blocks.0.ffn.gate.0.weight"),
        weights="models_t5_umt5-xxl-enc",
    ),
    OurFormat(
        **_UMT5,
        layout=OURS,
        markers=("token_embedding", "blocks.feed_forward.gate.kernel", "final_norm.scale"),
        weights="text",
    ),
    Format(
        **_FLUX,
        layout="original",
        markers=("img_in.weight", "double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"),
        weights="flux1",
    ),
    Format(
        **_FLUX,
        layout="diffusers",
        markers=("x_embedder.weight", "context_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight"),
        weights="diffusion_pytorch_model",
        documents=("FluxTransformer2DModel",),
    ),
    OurFormat(
        **_FLUX,
        layout=OURS,
        markers=("patch_embedding.kernel", "double_blocks.visual.qkv.query.kernel", "single_blocks.mlp.kernel"),
        weights="transformer",
    ),
    Format(
        **_IMAGE_VAE,
        layout="original",
        markers=("encoder.mid.attn_1.q.weight", "decoder.mid.attn_1.q.weight", "decoder.norm_out.weight"),
        weights="ae",
    ),
    Format(
        **_IMAGE_VAE,
        layout="diffusers",
        markers=("encoder.mid_block.attentions.0.to_q.weight", "decoder.conv_norm_out.weight"),
        weights="diffusion_pytorch_model",
        documents=("AutoencoderKL",),
    ),
    OurFormat(
        **_IMAGE_VAE,
        layout=OURS,
        markers=("encoder.middle.attention.query.kernel", "decoder.middle.attention.query.kernel"),
        weights="vae",
    ),
    Format(
        **_CLIP_TEXT,
        layout="huggingface",
        markers=("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"),
        weights="model",
        documents=("clip_text_model",),
    ),
    Format(
        **_CLIP_TEXT,
        layout="transformers-5",
        markers=("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight", "final_layer_norm.weight"),
        weights="model",
        documents=("clip_text_model",),
    ),
    OurFormat(
        **_CLIP_TEXT,
        layout=OURS,
        markers=("token_embedding", "position_embedding", "blocks.attention.query.bias", "final_norm.bias"),
        weights="clip",
    ),
    Format(
        **_CLIP_VISION,
        layout="huggingface",
        markers=("vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight"),
        weights="model",
        documents=("clip_vision_model",),
    ),
    Format(
        **_CLIP_VISION,
        layout="open_clip",
        markers=("visual.class_embedding", "visual.conv1.weight", "visual.ln_pre.weight"),
        weights="open_clip_model",
    ),
    Format(
        **_CLIP_VISION,
        layout="wan",
        markers=("visual.cls_embedding", "visual.patch_embedding.weight", "visual.pre_norm.weight"),
        weights="models_clip_open-clip-xlm-roberta-large-vit-huge-14",
    ),
    OurFormat(
        **_CLIP_VISION,
        layout=OURS,
        markers=("summary", "patch_embedding.kernel", "norm_in.scale", "blocks.attention.query.kernel"),
        weights="clip-vision",
    ),
    Format(
        **_DINO,
        layout="huggingface",
        markers=("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "layernorm.weight"),
        weights="model",
        documents=("vit", "dinov2", "dinov2_with_registers"),
    ),
    Format(
        **_DINO,
        layout="original",
        markers=("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        weights="pretrain",
    ),
    OurFormat(
        **_DINO,
        layout=OURS,
        markers=("summary", "patch_embedding.kernel", "patch_embedding.bias", "blocks.attention.query.kernel"),
        weights="dino",
    ),
)

# What `--to` calls the layout of a family, where that differs from the layout's own name.
_CALLED = {
    ("umt5", "diffusers"): "huggingface",
    ("umt5", "original"): "wan",
    ("clip-text", "diffusers"): "huggingface",
    ("clip-vision", "diffusers"): "huggingface",
    ("clip-vision", "original"): "wan",
    ("dino", "diffusers"): "huggingface",
}


def layouts(family: str) -> dict[str, Format]:
    """The formats of a family by layout."""
    return {row.layout: row for row in FORMATS if row.family == family}


def layout_of(family: str, to: str) -> Format:
    """The format that `--to` means for a family. Raises UsageError naming those there are."""
    return lookup(layouts(family), _CALLED.get((family, to), to), f"layout of {family} weights")


def recognise(names: Mapping[str, Any]) -> Format:
    """The format of a checkpoint with tensors of these names.

    Raises:
      InputError: it is none that is known; the sentence names the nearest, if any is near.
    """
    for row in FORMATS:
        if all(marker in names for marker in row.markers):
            return row
    near, count = max(
        ((row, sum(marker in names for marker in row.markers)) for row in FORMATS), key=lambda pair: pair[1]
    )
    shown = ", ".join(sorted(names)[:5])
    if not count:
        raise InputError(f"these are not weights of a family that is known here; tensors begin with {shown}")
    missing = [marker for marker in near.markers if marker not in names]
    raise InputError(
        f"these are not weights that are known here; nearest are {near.family} weights of layout {near.layout}, but"
        f" {', '.join(missing)} is missing; tensors begin with {shown}"
    )


def nearest_size(row: Format, config: Any) -> tuple[str, list[str]]:
    """(the released size that resembles the sizes most, in which fields they differ from it)."""

    def distance(name: str) -> list[str]:
        released = row.sizes[name]()
        fields = [field.name for field in dataclasses.fields(released) if field.name not in ("dtype", "eps")]
        return [
            f"{field} is {getattr(config, field)} instead of {getattr(released, field)}"
            for field in fields
            if getattr(config, field) != getattr(released, field)
        ]

    return min(((name, distance(name)) for name in row.sizes), key=lambda pair: len(pair[1]))
