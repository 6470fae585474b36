"""Which families and layouts of checkpoints there are, and which of them a set of tensor names is.

A family is registered by one row for each layout.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from kaleido_jax.config import from_json, to_json
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.models.family import Family
from kaleido_jax.models.flux import params as flux
from kaleido_jax.models.image_vae import params as image_vae
from kaleido_jax.models.mapping import Entry, Shape, Table
from kaleido_jax.models.mmdit import params as mmdit
from kaleido_jax.models.text.clip import params as clip
from kaleido_jax.models.text.umt5 import params as umt5
from kaleido_jax.models.vae import params as vae
from kaleido_jax.models.vision import params as vision
from kaleido_jax.models.wan import params as wan
from kaleido_jax.names import lookup

_LORA = re.compile(r"[._]lora[._](A|B|down|up|mid|magnitude_vector)(\.|$)")
OURS = "kaleido"  # our own parameters under their own names, as model folders and orbax checkpoints hold them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One layout of one family's checkpoints.

    family: what is known of its weights. layout: as the family's tables call it.
    markers: names of tensors that together only this layout has.
    weights: what the files are called, without their ending. documents: how its config.json calls itself (_class_name
      or model_type); a config.json that calls itself otherwise is that of another part of the release.
    release: the one .pt file of a release's folder, if that is how it is laid out (the name of the file's own folder
      stands in `torch_files.LATEST`). wrapper: the key under which .pt files hold the weights, if not at the top.
    """

    family: Family
    layout: str
    markers: tuple[str, ...]
    weights: str
    documents: tuple[str, ...] = ()
    release: str = ""
    wrapper: str = ""

    def own(self, document: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The config.json if it is of this format."""
        kind = (document or {}).get("_class_name", (document or {}).get("model_type"))
        return document if kind in self.documents else None

    def config_from(self, shapes: Mapping[str, Shape], document: Mapping[str, Any] | None) -> Any:
        """The sizes of a checkpoint. Raises InputError naming what cannot be told, or what is no size of the family."""
        try:
            config = self.family.config_from(shapes, self.layout, self.own(document))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"these are not the sizes of {self.family.name} weights: {error}") from error
        return self._owned(config)

    def _owned(self, config: Any) -> Any:
        if not self.family.has(config):
            raise InputError(f"the sizes are those of {family_of(config).name} weights, not of {self.family.name}")
        return config

    def config_document(self, config: Any) -> dict[str, Any]:
        """The config.json to write beside the weights; empty where releases have none."""
        return self.family.config_document(config, self.layout)

    def table(self, config: Any) -> Table:
        """Where each parameter lies."""
        return self.family.mapping(config, self.layout)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of tensors that a file may hold instead or too."""
        return self.family.aliases_of(self.layout)

    def ignored(self, name: str) -> bool:
        """Whether a tensor holds no weight, such as a table of positions."""
        return self.family.ignores(name, self.layout)


class OurFormat(Format):
    """Our own layout of a family: every name is its own, and the config.json says the sizes."""

    def own(self, document: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        return document

    def config_from(self, shapes: Mapping[str, Shape], document: Mapping[str, Any] | None) -> Any:
        """As `Format.config_from`: of a folder that `port` wrote, or of a model folder with all three networks."""
        document, name = document or {}, self.family.name
        section = document.get("sizes" if document.get("family") == name else self.weights)
        if section is None:
            raise InputError(f"our own names of {name} weights need the config.json with their sizes beside them")
        return self._owned(from_json(self.family.config, section, "config.json"))

    def config_document(self, config: Any) -> dict[str, Any]:
        return {"format": 1, "family": self.family.name, "sizes": to_json(config)}

    def table(self, config: Any) -> Table:
        return {name: Entry((name,)) for name in self.family.abstract_parameters(config)}


FORMATS: tuple[Format, ...] = (
    Format(
        family=wan.FAMILY,
        layout="original",
        markers=("patch_embedding.weight", "text_embedding.0.weight", "head.modulation"),
        weights="diffusion_pytorch_model",
        documents=("WanModel",),
    ),
    Format(
        family=wan.FAMILY,
        layout="diffusers",
        markers=("patch_embedding.weight", "condition_embedder.text_embedder.linear_1.weight", "scale_shift_table"),
        weights="diffusion_pytorch_model",
        documents=("WanTransformer3DModel",),
    ),
    Format(
        family=wan.FAMILY,
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
        family=wan.FAMILY,
        layout=OURS,
        markers=("patch_embedding.kernel", "text_embedding.first.kernel", "head.modulation"),
        weights="transformer",
    ),
    Format(
        family=vae.FAMILY,
        layout="original",
        markers=("conv1.weight", "encoder.conv1.weight", "decoder.conv1.weight", "decoder.head.0.gamma"),
        weights="vae",
    ),
    Format(
        family=vae.FAMILY,
        layout="diffusers",
        markers=("quant_conv.weight", "encoder.conv_in.weight", "decoder.norm_out.gamma"),
        weights="diffusion_pytorch_model",
        documents=("AutoencoderKLWan",),
    ),
    OurFormat(
        family=vae.FAMILY,
        layout=OURS,
        markers=("quant_conv.kernel", "encoder.conv_in.kernel", "decoder.norm_out.scale"),
        weights="vae",
    ),
    Format(
        family=umt5.FAMILY,
        layout="huggingface",
        markers=(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
        ),
        weights="model",
        documents=("umt5", "t5"),
    ),
    Format(
        family=umt5.FAMILY,
        layout="wan",
        markers=("token_embedding.weight", "blocks.0.attn.q.weight", "blocks.0.ffn.gate.0.weight"),
        weights="models_t5_umt5-xxl-enc",
    ),
    OurFormat(
        family=umt5.FAMILY,
        layout=OURS,
        markers=("token_embedding", "blocks.feed_forward.gate.kernel", "final_norm.scale"),
        weights="text",
    ),
    Format(
        family=flux.FAMILY,
        layout="original",
        markers=("img_in.weight", "double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"),
        weights="flux1",
    ),
    Format(
        family=flux.FAMILY,
        layout="diffusers",
        markers=("x_embedder.weight", "context_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight"),
        weights="diffusion_pytorch_model",
        documents=("FluxTransformer2DModel",),
    ),
    OurFormat(
        family=flux.FAMILY,
        layout=OURS,
        markers=("patch_embedding.kernel", "double_blocks.visual.qkv.query.kernel", "single_blocks.mlp.kernel"),
        weights="transformer",
    ),
    OurFormat(
        family=mmdit.FAMILY,
        layout=OURS,
        markers=("patch_embedding.kernel", "blocks.visual.qkv.query.kernel", "last_block.text_qkv.query.kernel"),
        weights="transformer",
    ),
    Format(
        family=image_vae.FAMILY,
        layout="original",
        markers=("encoder.mid.attn_1.q.weight", "decoder.mid.attn_1.q.weight", "decoder.norm_out.weight"),
        weights="ae",
    ),
    Format(
        family=image_vae.FAMILY,
        layout="diffusers",
        markers=("encoder.mid_block.attentions.0.to_q.weight", "decoder.conv_norm_out.weight"),
        weights="diffusion_pytorch_model",
        documents=("AutoencoderKL",),
    ),
    OurFormat(
        family=image_vae.FAMILY,
        layout=OURS,
        markers=("encoder.middle.attention.query.kernel", "decoder.middle.attention.query.kernel"),
        weights="vae",
    ),
    Format(
        family=clip.FAMILY,
        layout="huggingface",
        markers=("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"),
        weights="model",
        documents=("clip_text_model",),
    ),
    Format(
        family=clip.FAMILY,
        layout="transformers-5",
        markers=("embeddings.token_embedding.weight", "encoder.layers.0.mlp.fc1.weight", "final_layer_norm.weight"),
        weights="model",
        documents=("clip_text_model",),
    ),
    OurFormat(
        family=clip.FAMILY,
        layout=OURS,
        markers=("token_embedding", "position_embedding", "blocks.attention.query.bias", "final_norm.bias"),
        weights="clip",
    ),
    Format(
        family=vision.CLIP,
        layout="huggingface",
        markers=("vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight"),
        weights="model",
        documents=("clip_vision_model",),
    ),
    Format(
        family=vision.CLIP,
        layout="open_clip",
        markers=("visual.class_embedding", "visual.conv1.weight", "visual.ln_pre.weight"),
        weights="open_clip_model",
    ),
    Format(
        family=vision.CLIP,
        layout="wan",
        markers=("visual.cls_embedding", "visual.patch_embedding.weight", "visual.pre_norm.weight"),
        weights="models_clip_open-clip-xlm-roberta-large-vit-huge-14",
    ),
    OurFormat(
        family=vision.CLIP,
        layout=OURS,
        markers=("summary", "patch_embedding.kernel", "norm_in.scale", "blocks.attention.query.kernel"),
        weights="vision",
    ),
    Format(
        family=vision.DINO,
        layout="huggingface",
        markers=("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight", "layernorm.weight"),
        weights="model",
        documents=("vit", "dinov2", "dinov2_with_registers"),
    ),
    Format(
        family=vision.DINO,
        layout="original",
        markers=("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
        weights="pretrain",
    ),
    OurFormat(
        family=vision.DINO,
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


def family_of(config: Any) -> Family:
    """The family that has sizes of this kind. Raises UsageError if none has."""
    found = next((row.family for row in FORMATS if row.family.has(config)), None)
    if found is None:
        kinds = ", ".join(sorted({row.family.config.__name__ for row in FORMATS}))
        raise UsageError(f"config is a {type(config).__name__}; weights are known here for {kinds}")
    return found


def layouts(family: str) -> dict[str, Format]:
    """The formats of a family, by its name, by layout."""
    return {row.layout: row for row in FORMATS if row.family.name == family}


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
    if any(_LORA.search(name) for name in names):
        raise InputError(
            "this is a LoRA, a change of a model's weights and no model: `kaleido generate --lora FILE` adds it, and"
            f" kaleido_jax.porting.lora reads, merges and writes it; tensors begin with {shown}"
        )
    if not count:
        raise InputError(f"these are not weights of a family that is known here; tensors begin with {shown}")
    missing = [marker for marker in near.markers if marker not in names]
    raise InputError(
        f"these are not weights that are known here; nearest are {near.family.name} weights of layout {near.layout},"
        f" but {', '.join(missing)} is missing; tensors begin with {shown}"
    )


def nearest_size(family: Family, config: Any) -> tuple[str, list[str]]:
    """(the released size that resembles the sizes most, in which fields they differ from it)."""

    def distance(name: str) -> list[str]:
        released = family.sizes[name]()
        fields = [field.name for field in dataclasses.fields(released) if field.name not in ("dtype", "eps")]
        return [
            f"{field} is {getattr(config, field)} instead of {getattr(released, field)}"
            for field in fields
            if getattr(config, field) != getattr(released, field)
        ]

    return min(((name, distance(name)) for name in family.sizes), key=lambda pair: len(pair[1]))
