"""LoRA training: low-rank changes beside the transformer's linear maps are trained, everything else stays as it is.

The changes stand in the blocks (`layers.LowRank`) and run inside the scan over them, so that no gradient of a frozen
weight is ever made. Without them the network is the one that training started from, which is how preference training
gets its reference model without a second copy of the weights.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax.bundle import abstract
from kaleido_jax.errors import UsageError
from kaleido_jax.models.layers import Linear, LowRank, rounded
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.porting.lora import Lora
from kaleido_jax.typing import Array

_KERNEL = re.compile(r"blocks\..+\.kernel")
FACTORS = re.compile(r"(blocks\..+)\.low_rank\.([ab])")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """What a LoRA is trained of; `rank` 0 trains all weights instead.

    alpha: the change is scaled by alpha / rank; 0: by 1. layers: parts of the blocks whose linear maps it changes. The
    defaults are the usual ones of Wan's LoRAs; AnyID names neither its rank nor its layers.
    base: how the blocks' frozen kernels lie in memory: in the dtype that they are multiplied in, or as "int8" with a
    scale of each output, which takes half of bfloat16. What is trained is then a change of the rounded weights.
    """

    rank: int = 0
    alpha: float = 0.0
    layers: tuple[str, ...] = ("self_attention", "cross_attention", "mlp")
    base: Literal["dtype", "int8"] = "dtype"

    def __post_init__(self) -> None:
        if self.rank < 0 or not self.alpha >= 0:
            raise ValueError(f"lora.rank is {self.rank} and lora.alpha {self.alpha}; both must be at least 0")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.alpha else 1.0

    def changes(self, name: str) -> bool:
        """Whether it changes the map of this dotted name, as blocks.mlp.first is one."""
        return any(f".{layer}." in f"{name}." for layer in self.layers)


def changed_kernels(transformer: WanConfig, lora: LoraConfig) -> dict[str, tuple[int, int, int]]:
    """Name and shape [layers, inputs, outputs] of the kernels that are changed. UsageError if there are none."""
    _, shapes = abstract(lambda: WanTransformer(transformer, nnx.Rngs(0)))
    found = {
        name.removesuffix(".kernel"): tuple(leaf.shape)
        for name, leaf in shapes.items()
        if _KERNEL.fullmatch(name) and lora.changes(name.removesuffix(".kernel"))
    }
    for layer in lora.layers:
        if not any(f".{layer}." in f"{name}." for name in found):
            raise UsageError(f"lora.layers names {layer!r}, and no linear map of the blocks is called so")
    return found


def factors(transformer: WanConfig, lora: LoraConfig, seed: int) -> dict[str, Array]:
    """The factors before the first step, by dotted name: a as PEFT draws it, b zero, so that nothing is changed yet."""
    random = np.random.default_rng([seed, 0x10AA])
    made = {}
    for name, (layers, inputs, outputs) in changed_kernels(transformer, lora).items():
        bound = 1 / math.sqrt(inputs)
        a = random.uniform(-bound, bound, (layers, inputs, lora.rank))
        made[f"{name}.low_rank.a"] = jnp.asarray(a, jnp.float32)
        made[f"{name}.low_rank.b"] = jnp.zeros((layers, lora.rank, outputs), jnp.float32)
    return made


def attach(module: WanTransformer, lora: LoraConfig) -> WanTransformer:
    """The transformer with low-rank changes of shape alone (to be filled by `bundle.merge`) beside its linear maps."""
    for path, layer in nnx.iter_modules(module):
        name = ".".join(map(str, path))
        if isinstance(layer, Linear) and name.startswith("blocks.") and lora.changes(name):
            layers, inputs, outputs = layer.kernel.get_value().shape
            a = jnp.zeros((layers, inputs, lora.rank), jnp.float32)
            layer.low_rank = LowRank(a, jnp.zeros((layers, lora.rank, outputs), jnp.float32), lora.scale)
    return module


def base(module: WanTransformer, lora: LoraConfig) -> WanTransformer:
    """The transformer as `frozen` weights fit it: with scales of shape alone beside kernels that are int8."""
    if lora.base != "int8":
        return module
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, Linear) and path[:1] == ("blocks",):
            layers, _, outputs = layer.kernel.get_value().shape
            layer.int8_scale = nnx.Param(jnp.zeros((layers, 1, outputs), jnp.float32))
    return module


def frozen(lora: LoraConfig, dtype: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a transformer that computes in `dtype`, as a run that trains a LoRA keeps them."""
    return int8(values) if lora.base == "int8" else frozen_as(dtype, values)


def frozen_as(dtype: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer's frozen weights with the blocks' kernels in the dtype that they are multiplied in anyway."""
    return {name: value.astype(dtype) if _KERNEL.fullmatch(name) else value for name, value in values.items()}


def int8(values: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer's weights with the blocks' kernels as whole numbers up to 127, and a scale of each output."""
    made = dict(values)
    for name in filter(_KERNEL.fullmatch, values):
        made[name], scale = rounded(values[name].astype(jnp.float32), axis=1)
        made[name.removesuffix("kernel") + "int8_scale"] = scale
    return dict(sorted(made.items()))


def unrounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The weights that frozen ones stand for: whole numbers times their scales, everything else as it is."""
    made = {name: value for name, value in values.items() if not name.endswith(".int8_scale")}
    for name in filter(_KERNEL.fullmatch, made):
        scale = values.get(name.removesuffix("kernel") + "int8_scale")
        made[name] = made[name] if scale is None else made[name].astype(jnp.float32) * scale
    return made


def to_lora(transformer: WanConfig, lora: LoraConfig, trained: Mapping[str, Any]) -> Lora:
    """The trained factors as a LoRA that can be written in any of the file formats, or merged into the weights."""
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for name, value in trained.items():
        match = FACTORS.fullmatch(name)
        assert match is not None, name
        pairs.setdefault(f"{match[1]}.kernel", {})[match[2]] = np.asarray(value, np.float32)
    alpha = lora.alpha or None
    return Lora.from_stacked(transformer, {name: (pair["a"], pair["b"]) for name, pair in pairs.items()}, alpha=alpha)
