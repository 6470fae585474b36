"""Names and shapes of the UMT5 encoder's weights in the releases that hold them, as data.

Two layouts: "huggingface" (UMT5EncoderModel) and "wan" (Wan's original models_t5_umt5-xxl-enc-bf16.pth). Each row of
the table names one module of ours and what it is called there, with {} for the layer.
"""

from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models import mapping as tables
from kaleido_jax.models.family import Family
from kaleido_jax.models.mapping import MATRIX, SAME, Entry, Kind, Shape, layers_of, size_of, told
from kaleido_jax.models.text.umt5.config import UMT5Config
from kaleido_jax.models.text.umt5.modeling import UMT5Encoder

Layout = Literal["huggingface", "wan"]

_KINDS: dict[str, Kind] = {
    "linear": ((".kernel", ".weight", MATRIX),),
    "norm": ((".scale", ".weight", SAME),),
    "table": (("", ".weight", SAME),),
}

_HF, _WAN = "encoder.block.{}.layer.", "blocks.{}."
# (our module, its name in the Hugging Face layout, in Wan's, kind)
_MODULES: tuple[tuple[str, str, str, str], ...] = (
    ("token_embedding", "shared", "token_embedding", "table"),
    ("blocks.norm1", _HF + "0.layer_norm", _WAN + "norm1", "norm"),
    ("blocks.attention.query", _HF + "0.SelfAttention.q", _WAN + "attn.q", "linear"),
    ("blocks.attention.key", _HF + "0.SelfAttention.k", _WAN + "attn.k", "linear"),
    ("blocks.attention.value", _HF + "0.SelfAttention.v", _WAN + "attn.v", "linear"),
    ("blocks.attention.out", _HF + "0.SelfAttention.o", _WAN + "attn.o", "linear"),
    ("blocks.norm2", _HF + "1.layer_norm", _WAN + "norm2", "norm"),
    ("blocks.feed_forward.gate", _HF + "1.DenseReluDense.wi_0", _WAN + "ffn.gate.0", "linear"),
    ("blocks.feed_forward.up", _HF + "1.DenseReluDense.wi_1", _WAN + "ffn.fc1", "linear"),
    ("blocks.feed_forward.down", _HF + "1.DenseReluDense.wo", _WAN + "ffn.fc2", "linear"),
    ("final_norm", "encoder.final_layer_norm", "norm", "norm"),
)
# The table of relative positions: of each layer, or (T5) the first one's, which all layers share.
_POSITIONS = (
    "blocks.attention.position_bias",
    _HF + "0.SelfAttention.relative_attention_bias",
    _WAN + "pos_embedding.embedding",
    "table",
)
_SHARED_POSITIONS = (
    "position_bias",
    _HF.format(0) + "0.SelfAttention.relative_attention_bias",
    "pos_embedding.embedding",
    "table",
)


def mapping(config: UMT5Config, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout."""
    column = {"huggingface": 1, "wan": 2}[layout]
    rows = (*_MODULES, _SHARED_POSITIONS if config.shared_positions else _POSITIONS)
    return tables.table_of(((row[0], row[column], row[3]) for row in rows), _KINDS, config.layers)


# Our field -> its key in the Hugging Face config.json.
_DOCUMENT_KEYS = {
    "vocab_size": "vocab_size",
    "dim": "d_model",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "ffn_dim": "d_ff",
    "layers": "num_layers",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
}


def config_from(shapes: Mapping[str, Shape], layout: Layout, document: Mapping[str, Any] | None = None) -> UMT5Config:
    """The sizes of a checkpoint with tensors of these shapes; its config.json wins where it says something.

    Raises:
      InputError: naming what cannot be told.
    """
    column = {"huggingface": 1, "wan": 2}[layout]
    names = {row[0]: f"{row[column]}.weight" for row in (*_MODULES, _POSITIONS, _SHARED_POSITIONS)}
    axis = lambda ours, number: size_of(shapes, names[ours].format(0), number)
    layers = layers_of(shapes, names["blocks.norm1"])
    alone = layers > 1 and names["blocks.attention.position_bias"].format(1) not in shapes
    # One layer alone does not tell T5 from UMT5.
    shared = alone or (layers == 1 and (document or {}).get("model_type") == "t5")
    heads = axis("position_bias" if shared else "blocks.attention.position_bias", 1)
    values = {
        "vocab_size": axis("token_embedding", 0),
        "dim": axis("token_embedding", 1),
        "heads": heads,
        "head_dim": axis("blocks.attention.query", 0) // max(heads, 1),
        "ffn_dim": axis("blocks.feed_forward.up", 0),
        "layers": layers,
        "buckets": axis("position_bias" if shared else "blocks.attention.position_bias", 0),
        "max_distance": 128,
    }
    values = {field: told(document, key, values[field]) for field, key in _DOCUMENT_KEYS.items()}
    try:
        eps = (document or {}).get("layer_norm_epsilon", 1e-6)
        return UMT5Config(**values, eps=eps, shared_positions=shared)
    except (ValueError, TypeError) as error:
        raise InputError(f"these are not the sizes of a UMT5 encoder: {error}") from error


def config_document(config: UMT5Config, layout: Layout) -> dict[str, Any]:
    """The config.json that stands beside weights of this layout; Wan's own has none."""
    if layout == "wan":
        return {}
    name, kind = ("T5EncoderModel", "t5") if config.shared_positions else ("UMT5EncoderModel", "umt5")
    document = {"architectures": [name], "model_type": kind, "layer_norm_epsilon": config.eps}
    document |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return document | {key: getattr(config, field) for field, key in _DOCUMENT_KEYS.items()}


FAMILY = Family(
    name="umt5",
    config=UMT5Config,
    make=lambda config: UMT5Encoder(config, nnx.Rngs(0)),
    sizes={"umt5-xxl": UMT5Config.xxl, "t5-v1_1-xxl": UMT5Config.t5_xxl},
    layout="huggingface",
    mapping=mapping,
    config_from=config_from,
    config_document=config_document,
    # The Hugging Face layout names the embedding twice; a file may hold either name or both.
    aliases={"huggingface": {"encoder.embed_tokens.weight": "shared.weight"}},
)
