"""Where every parameter lies on a mesh: one table of patterns on dotted names, applied from outside the networks.

A row says which dimensions heads and hidden units divide (tensor parallelism as in Shoeybi et al. 2019: columns of the
first product, rows of the second), and which is the stack of layers, over which the network scans and which nothing
divides. Of the other dimensions, fsdp takes the largest that it divides.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

LAYERS = "layers"  # the leading axis of stacked layers

_COLUMNS, _ROWS = (LAYERS, None, "tensor"), (LAYERS, "tensor", None)
_SPLIT, _WHOLE = (LAYERS, "tensor"), (LAYERS, None)
_ANY_RANK = (...,)  # whatever its rank, only fsdp divides it
_ATTENTION = r"blocks\.(self|cross|emphasis)_attention\."

Roles = tuple[Any, ...]

# Of the MMDiT's blocks: (end of the name, roles without the stack of layers).
_STREAM: tuple[tuple[str, Roles], ...] = (
    (r"qkv\.(query|key|value)\.kernel", (None, "tensor")),
    (r"qkv\.(query|key|value)\.bias", ("tensor",)),
    (r"qkv\.(query|key)_norm\.scale", (None,)),
    (r"mlp(\.first)?\.kernel", (None, "tensor")),
    (r"mlp(\.first)?\.bias", ("tensor",)),
    (r"(out|mlp\.second)\.kernel", ("tensor", None)),
    (r"(out|mlp\.second)\.bias", (None,)),
    (r"modulation\.kernel", (None, "tensor")),
    (r"modulation\.bias", ("tensor",)),
)

# One row for each kind of parameter; a name must match exactly one of them from beginning to end.
TABLE: tuple[tuple[str, Roles], ...] = (
    # Wan's transformer
    (_ATTENTION + r"(image_)?(query|key|value)\.kernel", _COLUMNS),
    (_ATTENTION + r"(image_)?(query|key|value)\.bias", _SPLIT),
    (_ATTENTION + r"(image_)?(query|key)_norm\.scale", _SPLIT),
    (_ATTENTION + r"out\.kernel", _ROWS),
    (_ATTENTION + r"out\.bias", _WHOLE),
    (r"blocks\.mlp\.first\.kernel", _COLUMNS),
    (r"blocks\.mlp\.first\.bias", _SPLIT),
    (r"blocks\.mlp\.second\.kernel", _ROWS),
    (r"blocks\.mlp\.second\.bias", _WHOLE),
    (r"blocks\..+\.(low_rank\.[ab]|int8_scale)", (LAYERS, None, None)),
    (r"blocks\.modulation", (LAYERS, None, None)),
    (r"blocks\.(cross|emphasis)_norm\.(scale|bias)", _WHOLE),
    (r"(text|time|pooled|guidance)_embedding\.first\.kernel", (None, "tensor")),
    (r"(text|time|pooled|guidance)_embedding\.first\.bias", ("tensor",)),
    (r"(text|time|pooled|guidance)_embedding\.second\.kernel", ("tensor", None)),
    (r"(text|time|pooled|guidance)_embedding\.second\.bias", (None,)),
    (r"image_embedding\.(mlp\.(first|second)\.kernel|positions)", (None, None)),
    (r"image_embedding\.(mlp\.(first|second)|norm_in|norm_out)\.(scale|bias)", (None,)),
    (r"(patch_embedding|time_projection|head\.projection)\.kernel", (None, None)),
    (r"(patch_embedding|time_projection|head\.projection)\.bias", (None,)),
    (r"head\.modulation", (None, None)),
    # MMDiTs: FLUX and LCT's
    *((r"((double_)?blocks\.(visual|text)|single_blocks)\." + end, (LAYERS, *roles)) for end, roles in _STREAM),
    *((r"last_block\.(visual\.|text_)" + end, roles) for end, roles in _STREAM),
    (r"(text_embedding|((head\.|last_block\.text_)?(shift|scale))|projection)\.kernel", (None, None)),
    (r"(text_embedding|((head\.|last_block\.text_)?(shift|scale))|projection)\.bias", (None,)),
    # T5's encoders and CLIP's of text
    (r"blocks\.attention\.(query|key|value)\.kernel", _COLUMNS),
    (r"blocks\.attention\.(query|key|value)\.bias", _SPLIT),
    (r"blocks\.attention\.out\.kernel", _ROWS),
    (r"blocks\.attention\.out\.bias", _WHOLE),
    (r"blocks\.attention\.position_bias", (LAYERS, None, "tensor")),
    (r"position_bias", (None, "tensor")),
    (r"position_embedding", (None, None)),
    (r"blocks\.feed_forward\.(gate|up)\.kernel", _COLUMNS),
    (r"blocks\.feed_forward\.down\.kernel", _ROWS),
    (r"blocks\.norm[12]\.(scale|bias)", _WHOLE),
    (r"final_norm\.(scale|bias)", (None,)),
    (r"token_embedding", ("tensor", None)),
    # VAEs of videos and of pictures
    (r"((encoder|decoder)\..*|(post_)?quant_conv)\.kernel", _ANY_RANK),
    (r"((encoder|decoder)\..*|(post_)?quant_conv)\.(bias|scale)", (None,)),
)
_PATTERNS = tuple((re.compile(pattern), roles) for pattern, roles in TABLE)


def rows_of(name: str, rank: int) -> list[Roles]:
    """The roles of every row of the table that a dotted name matches; exactly one, for a parameter that is known."""
    rows = [roles for pattern, roles in _PATTERNS if pattern.fullmatch(name)]
    return [(None,) * rank if roles is _ANY_RANK else roles for roles in rows]


def partition_spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Where the parameter of this dotted name and shape lies on a mesh with the axes AXES.

    A dimension that its axis does not divide is not divided.

    Raises:
      ValueError: no row of the table, or more than one, matches the name; or the row has another rank.
    """
    rows = rows_of(name, len(shape))
    if len(rows) != 1:
        raise ValueError(f"the parameter {name} matches {len(rows)} rows of parallel.partition.TABLE; expected one")
    roles = rows[0]
    if len(roles) != len(shape):
        raise ValueError(f"the parameter {name} has shape {shape}; its row of parallel.partition.TABLE is {roles}")
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    spec: list[Any] = [None] * len(shape)
    local = list(shape)
    for axis, role in enumerate(roles):
        if role == "tensor" and tensor > 1 and shape[axis] % tensor == 0:
            spec[axis], local[axis] = "tensor", shape[axis] // tensor
    free = [axis for axis, role in enumerate(roles) if role != LAYERS and local[axis] % fsdp == 0]
    if fsdp > 1 and free:
        # Those that tensor divides come last: a dimension of one axis is gathered more simply.
        axis = max(free, key=lambda axis: (spec[axis] is None, local[axis]))
        spec[axis] = "fsdp" if spec[axis] is None else ("tensor", "fsdp")
    return PartitionSpec(*spec)


def shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of shardings like a tree of parameters: weights, averages, moments, gradients.

    The last mapping key on the way to a leaf is the dotted name of its parameter; leaves without one, such as counters,
    lie whole on every device.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        spec = partition_spec(keys[-1], leaf.shape, mesh) if keys and leaf.ndim else PartitionSpec()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def batch_axes(mesh: Any, batch: int) -> tuple[str, ...]:
    """Those axes of the mesh that divide a batch of this size."""
    axes: tuple[str, ...] = ()
    for name in ("data", "fsdp"):
        if batch % mesh.shape[name] == 0:
            axes, batch = (*axes, name), batch // mesh.shape[name]
    return axes


def batch_shardings(tree: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A tree of shardings for arrays whose first axis is the batch: divided by data and fsdp, where they divide it."""
    spec = lambda leaf: PartitionSpec(batch_axes(mesh, leaf.shape[0]) or None)
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf)), tree)


def place(tree: Any, shardings: Any) -> Any:
    """Arrays put where the shardings say; arrays that every process has whole may go to devices of many."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
            return jax.device_put(leaf, sharding)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """What the arrays of a tree, or their shapes, take on one device."""
    sizes = jax.tree.map(
        lambda leaf, sharding: int(np.prod(sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))
