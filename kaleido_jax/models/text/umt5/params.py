"""Names of the UMT5 encoder's weights here, in the Hugging Face layout, and in Wan's original file.

`RULES` is the whole mapping. A linear layer's weight is [out, in] in both releases and [in, out] here; weights of a
block exist once per layer there and stacked on a leading axis here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models.text.umt5.config import UMT5Config
from kaleido_jax.models.text.umt5.modeling import UMT5Encoder

Layout = Literal["huggingface", "wan"]


@dataclass(frozen=True)
class Rule:
    """One weight: its dotted name here and its name in each layout, where {i} is the layer."""

    ours: str
    huggingface: str
    wan: str
    transpose: bool = False

    def names(self, layout: Layout, layers: int) -> list[str]:
        """The names of its tensors in that layout, in the order of the layers."""
        name = self.wan if layout == "wan" else self.huggingface
        return [name.format(i=i) for i in range(layers)] if "{i}" in name else [name]


_HF, _WAN = "encoder.block.{i}.layer.", "blocks.{i}."
RULES = (
    Rule("token_embedding", "shared.weight", "token_embedding.weight"),
    Rule("blocks.norm1.scale", _HF + "0.layer_norm.weight", _WAN + "norm1.weight"),
    Rule("blocks.attention.query.kernel", _HF + "0.SelfAttention.q.weight", _WAN + "attn.q.weight", True),
    Rule("blocks.attention.key.kernel", _HF + "0.SelfAttention.k.weight", _WAN + "attn.k.weight", True),
    Rule("blocks.attention.value.kernel", _HF + "0.SelfAttention.v.weight", _WAN + "attn.v.weight", True),
    Rule("blocks.attention.out.kernel", _HF + "0.SelfAttention.o.weight", _WAN + "attn.o.weight", True),
    Rule(
        "blocks.attention.position_bias",
        _HF + "0.SelfAttention.relative_attention_bias.weight",
        _WAN + "pos_embedding.embedding.weight",
    ),
    Rule("blocks.norm2.scale", _HF + "1.layer_norm.weight", _WAN + "norm2.weight"),
    Rule("blocks.feed_forward.gate.kernel", _HF + "1.DenseReluDense.wi_0.weight", _WAN + "ffn.gate.0.weight", True),
    Rule("blocks.feed_forward.up.kernel", _HF + "1.DenseReluDense.wi_1.weight", _WAN + "ffn.fc1.weight", True),
    Rule("blocks.feed_forward.down.kernel", _HF + "1.DenseReluDense.wo.weight", _WAN + "ffn.fc2.weight", True),
    Rule("final_norm.scale", "encoder.final_layer_norm.weight", "norm.weight"),
)
# The Hugging Face layout names the embedding twice; a file may hold either name or both.
ALIASES = {"encoder.embed_tokens.weight": "shared.weight"}
