"""Names and shapes of the weights of CLIP's text tower as transformers' CLIPTextModel has them, as data.

Two layouts: "huggingface", that of the released files, and "transformers-5", what version 5 of transformers writes (it
reads both): the same names without their first part.
"""

from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models import mapping as tables
from kaleido_jax.models.family import Family
from kaleido_jax.models.mapping import MATRIX, SAME, Entry, Kind, Shape, layers_of, size_of, told, told_number
from kaleido_jax.models.text.clip.config import CLIPTextConfig
from kaleido_jax.models.text.clip.modeling import CLIPTextEncoder

Layout = Literal["huggingface", "transformers-5"]
_PREFIXES = {"huggingface": "text_model.", "transformers-5": ""}

_KINDS: dict[str, Kind] = {
    "linear": ((".kernel", ".weight", MATRIX), (".bias", ".bias", SAME)),
    "norm": ((".scale", ".weight", SAME), (".bias", ".bias", SAME)),
    "table": (("", ".weight", SAME),),
}
_LAYER = "encoder.layers.{}."
# (our module, its name there after the prefix with {} for the layer, kind)
_MODULES: tuple[tuple[str, str, str], ...] = (
    ("token_embedding", "embeddings.token_embedding", "table"),
    ("position_embedding", "embeddings.position_embedding", "table"),
    ("blocks.norm1", _LAYER + "layer_norm1", "norm"),
    ("blocks.attention.query", _LAYER + "self_attn.q_proj", "linear"),
    ("blocks.attention.key", _LAYER + "self_attn.k_proj", "linear"),
    ("blocks.attention.value", _LAYER + "self_attn.v_proj", "linear"),
    ("blocks.attention.out", _LAYER + "self_attn.out_proj", "linear"),
    ("blocks.norm2", _LAYER + "layer_norm2", "norm"),
    ("blocks.mlp.first", _LAYER + "mlp.fc1", "linear"),
    ("blocks.mlp.second", _LAYER + "mlp.fc2", "linear"),
    ("final_norm", "final_layer_norm", "norm"),
)


def mapping(config: CLIPTextConfig, layout: Layout = "huggingface") -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout."""
    prefix = _PREFIXES[layout]
    return tables.table_of(((ours, prefix + theirs, kind) for ours, theirs, kind in _MODULES), _KINDS, config.layers)


def config_from(
    shapes: Mapping[str, Shape], layout: Layout = "huggingface", document: Mapping[str, Any] | None = None
) -> CLIPTextConfig:
    """The sizes of a checkpoint from its tensors' shapes and its config.json.

    Without a document the heads are 64 wide and a text ends with the last token of the table, as in every released CLIP
    (whose config.json may say 2 for that, from before it was read).

    Raises:
      InputError: a tensor that tells a size is missing, or the document names another activation.
    """
    activation = (document or {}).get("hidden_act", "quick_gelu")
    if activation != "quick_gelu":
        raise InputError(f"config.json says hidden_act {activation!r}; the text tower of CLIP here has quick_gelu.")
    prefix = _PREFIXES[layout]
    vocab_size, dim = (size_of(shapes, f"{prefix}embeddings.token_embedding.weight", axis) for axis in (0, 1))
    end_id = told(document, "eos_token_id", 2)
    return CLIPTextConfig(
        vocab_size=vocab_size,
        positions=size_of(shapes, f"{prefix}embeddings.position_embedding.weight", 0),
        dim=dim,
        ffn_dim=size_of(shapes, prefix + _LAYER.format(0) + "mlp.fc1.weight", 0),
        heads=told(document, "num_attention_heads", dim // 64),
        layers=layers_of(shapes, prefix + _LAYER + "mlp.fc1.weight"),
        end_id=vocab_size - 1 if end_id == 2 else end_id,
        eps=told_number(document, "layer_norm_eps", 1e-5),
    )


def config_document(config: CLIPTextConfig, layout: Layout = "huggingface") -> dict[str, Any]:
    """The config.json beside an export: that of transformers' CLIPTextModel."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.positions,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": config.eps,
        "bos_token_id": config.end_id - 1,
        "eos_token_id": config.end_id,
        "pad_token_id": config.end_id,
    }


FAMILY = Family(
    name="clip-text",
    config=CLIPTextConfig,
    make=lambda config: CLIPTextEncoder(config, nnx.Rngs(0)),
    sizes={"clip-vit-large-patch14": CLIPTextConfig.large},
    layout="huggingface",
    mapping=mapping,
    config_from=config_from,
    config_document=config_document,
    # Files of older versions of transformers hold the numbers 0 ... 76 as well.
    ignored={"huggingface": (r"text_model\.embeddings\.position_ids",)},
)
