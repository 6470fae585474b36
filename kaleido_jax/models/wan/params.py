"""Names and shapes of Wan's transformer weights in the releases that hold them, as data.

Three layouts: "original" (Wan-AI's own files), "diffusers" (WanTransformer3DModel) and "kaleido-sat" (Kaleido's own
files, made with the SwissArmyTransformer library, which fuse queries, keys and values). Each row of a table names one
module of ours, what it is called there, and how its tensors are turned; a module of the blocks stands once, with {} for
the layer.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models import mapping as tables
from kaleido_jax.models.family import Family
from kaleido_jax.models.mapping import MATRIX, SAME, Entry, Kind, Shape, Transform, layers_of, size_of, told
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.models.wan.modeling import WanTransformer

Layout = Literal["original", "diffusers", "kaleido-sat"]

# How the patch embedding's weight becomes ours depends on the size of a patch; it is put in its place by `mapping`.
_TABLE = Transform("1 rows dim -> rows dim")

# A table of modulation is a tensor itself.
_KINDS: dict[str, Kind] = {
    "linear": ((".kernel", ".weight", MATRIX), (".bias", ".bias", SAME)),
    "layer norm": ((".scale", ".weight", SAME), (".bias", ".bias", SAME)),
    "rms norm": ((".scale", ".weight", SAME),),
    "table": (("", "", _TABLE),),
}

# (our module, its name in the original, in diffusers, kind)
_MODULES: tuple[tuple[str, str, str, str], ...] = (
    ("patch_embedding", "patch_embedding", "patch_embedding", "patches"),
    ("text_embedding.first", "text_embedding.0", "condition_embedder.text_embedder.linear_1", "linear"),
    ("text_embedding.second", "text_embedding.2", "condition_embedder.text_embedder.linear_2", "linear"),
    ("time_embedding.first", "time_embedding.0", "condition_embedder.time_embedder.linear_1", "linear"),
    ("time_embedding.second", "time_embedding.2", "condition_embedder.time_embedder.linear_2", "linear"),
    ("time_projection", "time_projection.1", "condition_embedder.time_proj", "linear"),
    ("blocks.modulation", "blocks.{}.modulation", "blocks.{}.scale_shift_table", "table"),
    *(
        (f"blocks.{ours}.{part}", f"blocks.{{}}.{original}.{o}", f"blocks.{{}}.{diffusers}.{d}", kind)
        for ours, original, diffusers in (
            ("self_attention", "self_attn", "attn1"),
            ("cross_attention", "cross_attn", "attn2"),
        )
        for part, o, d, kind in (
            ("query", "q", "to_q", "linear"),
            ("key", "k", "to_k", "linear"),
            ("value", "v", "to_v", "linear"),
            ("out", "o", "to_out.0", "linear"),
            ("query_norm", "norm_q", "norm_q", "rms norm"),
            ("key_norm", "norm_k", "norm_k", "rms norm"),
        )
    ),
    # The original's norm2 and diffusers' norm3 have no weights: the same norm is called norm3 there and norm2 here.
    ("blocks.cross_norm", "blocks.{}.norm3", "blocks.{}.norm2", "layer norm"),
    ("blocks.mlp.first", "blocks.{}.ffn.0", "blocks.{}.ffn.net.0.proj", "linear"),
    ("blocks.mlp.second", "blocks.{}.ffn.2", "blocks.{}.ffn.net.2", "linear"),
    ("head.modulation", "head.modulation", "scale_shift_table", "table"),
    ("head.projection", "head.head", "proj_out", "linear"),
)

_IMAGE_MODULES: tuple[tuple[str, str, str, str], ...] = (
    ("image_embedding.norm_in", "img_emb.proj.0", "condition_embedder.image_embedder.norm1", "layer norm"),
    ("image_embedding.mlp.first", "img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj", "linear"),
    ("image_embedding.mlp.second", "img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2", "linear"),
    ("image_embedding.norm_out", "img_emb.proj.4", "condition_embedder.image_embedder.norm2", "layer norm"),
    (
        "blocks.cross_attention.image_key",
        "blocks.{}.cross_attn.k_img",
        "blocks.{}.attn2.add_k_proj",
        "linear",
    ),
    (
        "blocks.cross_attention.image_value",
        "blocks.{}.cross_attn.v_img",
        "blocks.{}.attn2.add_v_proj",
        "linear",
    ),
    (
        "blocks.cross_attention.image_key_norm",
        "blocks.{}.cross_attn.norm_k_img",
        "blocks.{}.attn2.norm_added_k",
        "rms norm",
    ),
)

_POSITIONS = (
    "image_embedding.positions", "img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed", "table"
)  # fmt: skip

# (our module, its name in Kaleido's files behind `_SAT_PREFIX`, kind[, which part of a fused tensor]), by what its
# converter from Wan's original files does.
_SAT_PREFIX = "model.diffusion_model."
_SAT_LAYER, _SAT_NORMS = "transformer.layers.{}.", "mixins.adaln_layer."
_SAT_MODULES: tuple[tuple, ...] = (
    ("patch_embedding", "mixins.patch_embed.proj", "patches"),
    ("text_embedding.first", "text_embedding.0", "linear"),
    ("text_embedding.second", "text_embedding.2", "linear"),
    ("time_embedding.first", "time_embed.0", "linear"),
    ("time_embedding.second", "time_embed.2", "linear"),
    ("time_projection", "adaln_projection.1", "linear"),
    ("blocks.modulation", _SAT_NORMS + "adaLN_modulations.{}", "table"),
    ("blocks.self_attention.query", _SAT_LAYER + "attention.query_key_value", "linear", 0),
    ("blocks.self_attention.key", _SAT_LAYER + "attention.query_key_value", "linear", 1),
    ("blocks.self_attention.value", _SAT_LAYER + "attention.query_key_value", "linear", 2),
    ("blocks.self_attention.out", _SAT_LAYER + "attention.dense", "linear"),
    ("blocks.self_attention.query_norm", _SAT_NORMS + "query_layernorm_list.{}", "rms norm"),
    ("blocks.self_attention.key_norm", _SAT_NORMS + "key_layernorm_list.{}", "rms norm"),
    ("blocks.cross_norm", _SAT_LAYER + "post_cross_attention_layernorm", "layer norm"),
    ("blocks.cross_attention.query", _SAT_LAYER + "cross_attention.query", "linear"),
    ("blocks.cross_attention.key", _SAT_LAYER + "cross_attention.key_value", "linear", 0),
    ("blocks.cross_attention.value", _SAT_LAYER + "cross_attention.key_value", "linear", 1),
    ("blocks.cross_attention.out", _SAT_LAYER + "cross_attention.dense", "linear"),
    ("blocks.cross_attention.query_norm", _SAT_NORMS + "cross_query_layernorm_list.{}", "rms norm"),
    ("blocks.cross_attention.key_norm", _SAT_NORMS + "cross_key_layernorm_list.{}", "rms norm"),
    ("blocks.mlp.first", _SAT_LAYER + "mlp.dense_h_to_4h", "linear"),
    ("blocks.mlp.second", _SAT_LAYER + "mlp.dense_4h_to_h", "linear"),
    ("head.modulation", "mixins.final_layer.adaLN_modulation", "table"),
    ("head.projection", "mixins.final_layer.linear", "linear"),
)
_SAT_IMAGE_MODULES: tuple[tuple, ...] = (
    ("image_embedding.norm_in", "clip_proj.proj.0", "layer norm"),
    ("image_embedding.mlp.first", "clip_proj.proj.1", "linear"),
    ("image_embedding.mlp.second", "clip_proj.proj.3", "linear"),
    ("image_embedding.norm_out", "clip_proj.proj.4", "layer norm"),
    ("blocks.cross_attention.image_key", _SAT_NORMS + "clip_feature_key_value_list.{}", "linear", 0),
    ("blocks.cross_attention.image_value", _SAT_NORMS + "clip_feature_key_value_list.{}", "linear", 1),
    ("blocks.cross_attention.image_key_norm", _SAT_NORMS + "clip_feature_key_layernorm_list.{}", "rms norm"),
)


def _rows(layout: Layout, image: bool, positions: bool = False) -> list[tuple]:
    """(our module, its name there, kind[, which part of a fused tensor]) for every module of a layout."""
    if layout == "kaleido-sat":
        rows = _SAT_MODULES + (_SAT_IMAGE_MODULES if image else ())
        return [(ours, _SAT_PREFIX + theirs, *rest) for ours, theirs, *rest in rows]
    column = {"original": 1, "diffusers": 2}[layout]
    rows = _MODULES + (_IMAGE_MODULES if image else ()) + ((_POSITIONS,) if positions else ())
    return [(row[0], row[column], row[3]) for row in rows]


# Our field -> its key in the config.json of a layout.
_DOCUMENT_KEYS = {
    "original": {
        "dim": "dim", "ffn_dim": "ffn_dim", "heads": "num_heads", "layers": "num_layers", "in_channels": "in_dim",
        "out_channels": "out_dim", "freq_dim": "freq_dim",
    },
    "diffusers": {
        "ffn_dim": "ffn_dim", "heads": "num_attention_heads", "layers": "num_layers", "in_channels": "in_channels",
        "out_channels": "out_channels", "text_dim": "text_dim", "freq_dim": "freq_dim",
    },
    "kaleido-sat": {},
}  # fmt: skip


def _patches(patch: tuple[int, int, int]) -> Kind:
    sizes = tuple(zip(("pt", "ph", "pw"), patch))
    weight = Transform("dim c pt ph pw -> (pt ph pw c) dim", sizes)
    return (".kernel", ".weight", weight), (".bias", ".bias", SAME)


def mapping(config: WanConfig, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout."""
    part = lambda index: (index * config.dim, (index + 1) * config.dim)
    rows = [
        (ours, theirs, kind, *map(part, fused))
        for ours, theirs, kind, *fused in _rows(layout, config.image_dim is not None, bool(config.image_positions))
    ]
    return tables.table_of(rows, _KINDS | {"patches": _patches(config.patch)}, config.layers)


def config_from(shapes: Mapping[str, Shape], layout: Layout, document: Mapping[str, Any] | None = None) -> WanConfig:
    """The sizes of a checkpoint with tensors of these shapes; its config.json wins where it says something.

    Raises:
      InputError: naming what cannot be told.
    """
    names = {ours: theirs for ours, theirs, *_ in _rows(layout, True, True)}
    axis = lambda ours, number: size_of(shapes, f"{names[ours].format(0)}.weight", number)
    keys = _DOCUMENT_KEYS[layout]
    size = lambda field, otherwise: told(document, keys[field], otherwise) if field in keys else otherwise
    dim, in_channels, *patch = (axis("patch_embedding", number) for number in range(5))
    heads = size("heads", dim // 128 if dim % 128 == 0 else None)  # all released sizes have heads of 128
    values = {
        "dim": heads * told(document, "attention_head_dim", dim // heads)
        if layout == "diffusers"
        else size("dim", dim),
        "ffn_dim": size("ffn_dim", axis("blocks.mlp.first", 0)),
        "heads": heads,
        "layers": size("layers", layers_of(shapes, f"{names['blocks.mlp.first']}.weight")),
        "in_channels": size("in_channels", in_channels),
        "out_channels": size("out_channels", axis("head.projection", 0) // math.prod(patch)),
        "patch": tuple(patch),
        "text_dim": size("text_dim", axis("text_embedding.first", 1)),
        "freq_dim": size("freq_dim", axis("time_embedding.first", 1)),
        "eps": (document or {}).get("eps", 1e-6),
    }
    if f"{names['image_embedding.mlp.first']}.weight" in shapes:
        values["image_dim"] = axis("image_embedding.mlp.first", 1)
    positions = names.get(_POSITIONS[0], "")
    if positions in shapes:
        values["image_positions"] = size_of(shapes, positions, 1)
    try:
        return WanConfig(**values)
    except ValueError as error:
        raise InputError(f"these are not the sizes of a Wan transformer: {error}") from error


def config_document(config: WanConfig, layout: Layout) -> dict[str, Any]:
    """The config.json that stands beside weights of this layout; Kaleido's own files have none.

    Raises:
      InputError: for a transformer that computes what no class of another project does.
    """
    for field in ("data_std", "emphasis"):
        if getattr(config, field):
            raise InputError(
                f"{field} is {getattr(config, field)}, which only our own layouts (kaleido, orbax) can hold"
            )
    if layout == "kaleido-sat":
        if config.image_positions:
            raise InputError(f"image_positions is {config.image_positions}, for which Kaleido's files have no name")
        return {}
    keys = _DOCUMENT_KEYS[layout]
    document = {key: getattr(config, field) for field, key in keys.items()} | {"eps": config.eps}
    if layout == "original":
        kind = "t2v" if config.in_channels == config.out_channels else "i2v"
        if config.out_channels == WanConfig.ti2v_5b().out_channels:
            kind = "ti2v"
        if config.image_positions:
            kind = "flf2v"
        return {"_class_name": "WanModel", "model_type": kind, "text_len": 512} | document
    positions = {"pos_embed_seq_len": config.image_positions} if config.image_positions else {}
    return (
        document
        | positions
        | {
            "_class_name": "WanTransformer3DModel",
            "attention_head_dim": config.head_dim,
            "patch_size": list(config.patch),
            "image_dim": config.image_dim,
            "added_kv_proj_dim": None if config.image_dim is None else config.dim,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
        }
    )


FAMILY = Family(
    name="wan",
    config=WanConfig,
    make=lambda config: WanTransformer(config, nnx.Rngs(0)),
    sizes={
        "Wan2.1-T2V-1.3B": WanConfig.t2v_1_3b,
        "Wan2.1-T2V-14B": WanConfig.t2v_14b,
        "Wan2.1-I2V-14B": WanConfig.i2v_14b,
        "Wan2.1-FLF2V-14B": WanConfig.flf2v_14b,
        "Wan2.2-I2V-A14B": WanConfig.i2v_a14b,
        "Wan2.2-TI2V-5B": WanConfig.ti2v_5b,
    },
    layout="diffusers",
    mapping=mapping,
    config_from=config_from,
    config_document=config_document,
)
