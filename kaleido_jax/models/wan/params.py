"""Names and shapes of Wan's transformer weights in the releases that hold them, as data.

Two layouts: "original" (Wan-AI's own files) and "diffusers" (WanTransformer3DModel). Each row of the table names one
module of ours, what it is called there, and how its tensors are turned; a module of the blocks stands once, with {} for
the layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from einops import rearrange
from flax import nnx

from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.models.wan.modeling import WanTransformer

Layout = Literal["original", "diffusers"]


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a tensor of PyTorch becomes one of ours, and back; neither touches the values."""

    from_torch: Callable[[np.ndarray, WanConfig], np.ndarray]
    to_torch: Callable[[np.ndarray, WanConfig], np.ndarray]


def _patch_sizes(config: WanConfig) -> dict[str, int]:
    return dict(zip(("pt", "ph", "pw"), config.patch))


_SAME = Transform(lambda x, config: x, lambda x, config: x)
_MATRIX = Transform(lambda x, config: x.T, lambda x, config: x.T)
_TABLE = Transform(lambda x, config: x[0], lambda x, config: x[None])
_PATCHES = Transform(
    lambda x, config: rearrange(x, "dim c pt ph pw -> (pt ph pw c) dim"),
    lambda x, config: rearrange(x, "(pt ph pw c) dim -> dim c pt ph pw", **_patch_sizes(config)),
)

# Kind of module -> (our tensor, PyTorch's tensor, transform). A table of modulation is a tensor itself.
_TENSORS: dict[str, tuple[tuple[str, str, Transform], ...]] = {
    "linear": ((".kernel", ".weight", _MATRIX), (".bias", ".bias", _SAME)),
    "patches": ((".kernel", ".weight", _PATCHES), (".bias", ".bias", _SAME)),
    "layer norm": ((".scale", ".weight", _SAME), (".bias", ".bias", _SAME)),
    "rms norm": ((".scale", ".weight", _SAME),),
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


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one of our tensors lies in a checkpoint: one name, or one for each layer, which are stacked here."""

    names: tuple[str, ...]
    stacked: bool
    transform: Transform

    def from_torch(self, tensors: Mapping[str, np.ndarray], config: WanConfig) -> np.ndarray:
        ours = [self.transform.from_torch(tensors[name], config) for name in self.names]
        return np.stack(ours) if self.stacked else ours[0]

    def to_torch(self, ours: np.ndarray, config: WanConfig) -> dict[str, np.ndarray]:
        layers = ours if self.stacked else ours[None]
        return {name: self.transform.to_torch(x, config) for name, x in zip(self.names, layers)}


def mapping(config: WanConfig, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout."""
    column = {"original": 1, "diffusers": 2}[layout]
    table = {}
    for row in _MODULES + (_IMAGE_MODULES if config.image_dim is not None else ()):
        stacked = "{}" in row[column]
        for ours, theirs, transform in _TENSORS[row[3]]:
            name = row[column] + theirs
            names = tuple(name.format(layer) for layer in range(config.layers)) if stacked else (name,)
            table[row[0] + ours] = Entry(names, stacked, transform)
    return table


def abstract_parameters(config: WanConfig) -> dict[str, Any]:
    """Shape and dtype (jax.ShapeDtypeStruct) of every parameter by dotted name, without allocating any."""
    return flatten(nnx.eval_shape(lambda: WanTransformer(config, nnx.Rngs(0))))


def torch_shapes(config: WanConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint of this layout, without allocating any."""
    ours, shapes = abstract_parameters(config), {}
    for name, entry in mapping(config, layout).items():
        # A view of a single number has the shape and costs no memory.
        shape = ours[name].shape[1:] if entry.stacked else ours[name].shape
        shapes |= dict.fromkeys(entry.names, entry.transform.to_torch(np.broadcast_to(np.int8(0), shape), config).shape)
    return shapes


def from_torch(tensors: Mapping[str, Any], config: WanConfig, layout: Layout = "diffusers") -> dict[str, np.ndarray]:
    """Parameters by dotted name from a PyTorch state dict (arrays, or tensors that numpy can read).

    Raises:
      ValueError: naming every tensor that is missing, unexpected or of another shape.
    """
    shapes = torch_shapes(config, layout)
    problems = [f"missing {name}" for name in sorted(shapes.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & tensors.keys()):
        if tuple(tensors[name].shape) != shapes[name]:
            problems.append(f"{name} has shape {tuple(tensors[name].shape)}, expected {shapes[name]}")
    if problems:
        raise ValueError(f"{len(problems)} problems in Wan weights of layout {layout}: " + "; ".join(problems))
    arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    return {name: entry.from_torch(arrays, config) for name, entry in mapping(config, layout).items()}


def to_torch(parameters: Mapping[str, Any], config: WanConfig, layout: Layout = "diffusers") -> dict[str, np.ndarray]:
    """The inverse of `from_torch`."""
    tensors: dict[str, np.ndarray] = {}
    for name, entry in mapping(config, layout).items():
        tensors |= entry.to_torch(np.asarray(parameters[name]), config)
    return tensors


def flatten(model: WanTransformer) -> dict[str, Any]:
    """The parameters of a model by dotted name."""
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in leaves}
