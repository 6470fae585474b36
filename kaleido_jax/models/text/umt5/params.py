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

    @property
    def stacked(self) -> bool:
        """Whether there is one tensor for each layer."""
        return "{i}" in self.wan

    def names(self, layout: Layout, layers: int) -> list[str]:
        """The names of its tensors in that layout, in the order of the layers."""
        name = self.wan if layout == "wan" else self.huggingface
        return [name.format(i=i) for i in range(layers)] if self.stacked else [name]


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


def shapes(config: UMT5Config, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a release in this layout; aliases are not listed. Allocates nothing."""
    ours = _abstract(config)
    return {name: _theirs(rule, ours[rule.ours].shape) for rule in RULES for name in rule.names(layout, config.layers)}


def from_torch(tensors: Mapping[str, Any], config: UMT5Config, layout: Layout = "huggingface") -> dict[str, np.ndarray]:
    """Parameters by dotted name from a PyTorch state dict (arrays, or tensors that numpy can read).

    Raises:
        InputError: naming every tensor that is missing, unexpected, or of another shape.
    """
    aliases = ALIASES if layout == "huggingface" else {}
    tensors = {aliases.get(name, name): tensor for name, tensor in tensors.items()}
    expected = shapes(config, layout)
    problems = [f"missing {name}" for name in expected if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        raise InputError(f"{len(problems)} problems in UMT5 weights of layout {layout}: {'; '.join(problems)}.")
    parameters = {}
    for rule in RULES:
        arrays = [np.asarray(tensors[name]) for name in rule.names(layout, config.layers)]
        arrays = [array.T if rule.transpose else array for array in arrays]
        parameters[rule.ours] = np.stack(arrays) if rule.stacked else arrays[0]
    return parameters


def to_torch(
    parameters: Mapping[str, Any], config: UMT5Config, layout: Layout = "huggingface"
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`; the embedding under its first name only."""
    tensors = {}
    for rule in RULES:
        value = np.asarray(parameters[rule.ours])
        for name, array in zip(rule.names(layout, config.layers), value if rule.stacked else [value], strict=True):
            tensors[name] = array.T if rule.transpose else array
    return tensors


def _abstract(config: UMT5Config) -> dict[str, jax.ShapeDtypeStruct]:
    state = nnx.eval_shape(lambda: nnx.state(UMT5Encoder(config, nnx.Rngs(0)), nnx.Param))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def _theirs(rule: Rule, ours: tuple[int, ...]) -> tuple[int, ...]:
    shape = ours[1:] if rule.stacked else ours
    return shape[::-1] if rule.transpose else shape
