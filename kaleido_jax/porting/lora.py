"""LoRA files of Wan's and FLUX's transformers: reading them, adding them to weights, taking them off, and writing them.

A LoRA (arXiv:2106.09685, section 4.1) changes a weight W of PyTorch's shape [outputs, inputs] to
W + strength * alpha / rank * up @ down. Here it is kept apart from the weights, by the parameter of ours and the layer
that it changes, so that it can be written under the names of any layout. `lora_formats` knows how files spell it.
"""

import collections
import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.models.mapping import MATRIX, Place, Shape, Table, Transform, places, torch_shapes
from kaleido_jax.names import lookup
from kaleido_jax.porting.formats import OURS, Format, family_of, layouts
from kaleido_jax.porting.lora_formats import STYLES, Factors, parse, spell
from kaleido_jax.porting.safetensors import TensorInfo, refused
from kaleido_jax.porting.weights import open_weights, read_json
from kaleido_jax.porting.writing import replacing, write_file
from kaleido_jax.typing import AnyArray

Part = tuple[str, int]  # a parameter of ours, and which of its layers (0 if it has none)


@dataclasses.dataclass(frozen=True, eq=False)
class Lora:
    """A change of a transformer's weights.

    config: the sizes of the transformer. factors: low-rank changes. differences: whole ones, of biases and norms and in
    PyTorch's order of axes. Both are by parameter of ours and layer; layers that are not there stay as they are.
    """

    config: Any
    factors: Mapping[Part, Factors]
    differences: Mapping[Part, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_stacked(
        cls, config: Any, factors: Mapping[str, tuple[AnyArray, AnyArray]], *, alpha: float | None = None
    ) -> "Lora":
        """From factors in our order of axes, as they are trained beside the weights: kernel + alpha / rank * a @ b.

        Args:
          factors: by dotted name of a kernel, (a [layers, inputs, rank], b [layers, rank, outputs]), both without the
            axis of layers for a kernel that is not of a block.
          alpha: None: the rank, so that nothing is scaled.
        """
        table = _reference(config)
        number = None if alpha is None else np.asarray(alpha, np.float32)
        parts: dict[Part, Factors] = {}
        problems = []
        for name, (a, b) in factors.items():
            if name not in table or table[name].transform != MATRIX:
                problems.append(f"{name} is not the kernel of a linear layer of this model")
                continue
            pairs = zip(np.asarray(a), np.asarray(b), strict=True) if table[name].stacked else [(a, b)]
            for layer, (down, up) in enumerate(pairs):
                parts[name, layer] = Factors(np.asarray(down).T, np.asarray(up).T, number)
        if problems:
            raise InputError(f"{len(problems)} problems in the factors: {'; '.join(problems)}.")
        return cls(config, parts)


def read(source: str | os.PathLike[str], config: Any) -> Lora:
    """Read a LoRA file (safetensors, or .pt with the torch extra), or PEFT's folder of one, for a model of these sizes.

    Dialects are told from the names, see `lora_formats`. DoRA and whatever else is no sum with the weights is refused.

    Raises:
      InputError: listing everything that is wrong with the file; UsageError: there is no such file.
    """
    weights = open_weights(source)
    try:
        document = next((read_json(file, 1 << 20) for file in _configuration(Path(source))), None)
        tables = {row.layout: row.table(config) for row in _layouts(config)}
        ours = family_of(config).abstract_parameters(config)
        shapes = {layout: _shapes(table, ours) for layout, table in tables.items()}
        parsed, problems = parse(weights, shapes, document)
        if problems:
            raise refused(weights.path, problems)
    finally:
        weights.close()
    there = places(tables[parsed.layout])
    factors = {
        (place.ours, place.layer): _rows_of(change, place)
        for layer, change in parsed.factors.items()
        for place in there[f"{layer}.weight"]
    }
    differences = {
        (place.ours, place.layer): value if place.entry.rows is None else value[slice(*place.entry.rows)]
        for name, value in parsed.differences.items()
        for place in there[name]
    }
    return Lora(config, factors, differences)


def files(source: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files that `read` reads. Raises as `read` does if there is not one file of weights."""
    weights = open_weights(source)
    weights.close()
    return weights.path, *_configuration(Path(source))


def _configuration(path: Path) -> tuple[Path, ...]:
    """PEFT's configuration beside weights of that name, if it is there."""
    beside = (path if path.is_dir() else path.parent) / "adapter_config.json"
    return (beside,) if beside.is_file() and (path.is_dir() or path.name.startswith("adapter_model.")) else ()


def write(destination: str | os.PathLike[str], lora: Lora, *, to: str = "diffusers", overwrite: bool = False) -> None:
    """Write a safetensors file that others load.

    Args:
      to: "diffusers" (and PEFT), "original" (names of the original release) or "kohya".

    Raises:
      UsageError: the destination exists, or there is no such kind of file.
      InputError: naming what such a file cannot hold. StorageError: it cannot be written. Nothing is left of it then.
    """
    style = lookup(STYLES, to, "kind of LoRA file")
    row = lookup({row.layout: row for row in _layouts(lora.config)}, style.layout, "layout")
    table = row.table(lora.config)
    shapes = _shapes(table, row.family.abstract_parameters(lora.config))
    factors: dict[str, Factors] = {}
    differences: dict[str, np.ndarray] = {}
    for name, there in places(table).items():
        changes = [lora.factors.get((place.ours, place.layer)) for place in there]
        if any(change is not None for change in changes):
            factors[name.removesuffix(".weight")] = _joined(changes, there, shapes[name])
        values = [lora.differences.get((place.ours, place.layer)) for place in there]
        present = [value for value in values if value is not None]
        if present:
            whole = np.zeros(shapes[name], present[0].dtype)
            for place, value in zip(there, values):
                if value is not None:
                    whole[slice(*place.entry.rows) if place.entry.rows else ...] = value
            differences[name] = whole
    tensors, metadata, problems = spell(style, factors, differences)
    if problems:
        raise InputError(f"a file of kind {to} cannot hold all of this LoRA: {'; '.join(problems)}.")
    infos = {key: TensorInfo(value.dtype, value.shape) for key, value in tensors.items()}
    with replacing(Path(destination), overwrite=overwrite) as temporary:
        write_file(temporary, infos, lambda key: [tensors[key]], metadata)


def merge(
    parameters: Mapping[str, AnyArray], loras: Iterable[tuple[Lora, float]], *, donate: bool = False
) -> dict[str, AnyArray]:
    """The parameters with LoRAs added, each with its strength, in one sum of float32 and one rounding to their dtype.

    Parameters that nothing changes are the same arrays as before. Keep the parameters given if they are needed again to
    the bit; `unmerge` gives them up to rounding.

    Args:
      donate: change jax's arrays in place, where they are; those given cannot be used any more. For weights that do not
        fit twice.

    Raises:
      InputError: a LoRA is of other sizes than the parameters. UsageError: a strength is no number.
    """
    merged, add = dict(parameters), _added_in_place if donate else _added
    for name, changes in _by_parameter(parameters, loras).items():
        entry = _reference(changes[0][0].config)[name]
        kernel = jnp.asarray(parameters[name])
        layers = kernel.shape[0] if entry.stacked else 1
        shape = entry.shape(tuple(kernel.shape))
        down, up, difference = _stacked(name, changes, layers, shape)
        merged[name] = add(kernel, down, up, difference, transform=entry.transform, shape=shape, stacked=entry.stacked)
    return merged


def unmerge(parameters: Mapping[str, AnyArray], loras: Iterable[tuple[Lora, float]]) -> dict[str, AnyArray]:
    """The parameters with merged LoRAs taken off again, up to a rounding of their dtype: `merge` backwards."""
    return merge(parameters, [(lora, -strength) for lora, strength in loras])


def _layouts(config: Any) -> list[Format]:
    """The layouts of other projects of the family that has sizes of this kind."""
    return [row for layout, row in layouts(family_of(config).name).items() if layout != OURS]


def _shapes(table: Table, ours: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of what of a model a layout has; one with parts that are only ours has more, which stay."""
    return torch_shapes(table, {name: ours[name] for name in table})


@functools.lru_cache(maxsize=8)
def _reference(config: Any) -> Table:
    """Where each parameter lies in the family's first layout. How one is turned is the same in all of them."""
    first, *others = (row.table(config) for row in _layouts(config))
    for table in others:
        different = [name for name, entry in table.items() if entry.transform != first[name].transform]
        if different:
            raise AssertionError(
                f"{different} are turned differently in two layouts, so that factors do not carry over"
            )
    return first


def _rows_of(change: Factors, place: Place) -> Factors:
    """The factors of one part of a fused weight: all parts have the same down factor."""
    if place.entry.rows is None:
        return change
    return dataclasses.replace(change, up=change.up[slice(*place.entry.rows)])


def _joined(changes: list[Factors | None], there: tuple[Place, ...], shape: Shape) -> Factors:
    """The factors of a weight from those of its parts: with one down factor if they have it, else beside each other."""
    present = [change for change in changes if change is not None]
    first = present[0]
    if len(there) == 1:
        return first
    alike = len(present) == len(there) and all(
        np.array_equal(change.down, first.down) and change.scale == first.scale for change in present
    )
    if alike:
        return dataclasses.replace(first, up=np.concatenate([change.up for change in present]))
    equal = len({change.scale for change in present}) == 1
    dtype = first.up.dtype if equal else np.dtype(np.float32)
    rank = sum(change.rank for change in present)
    up, start = np.zeros((shape[0], rank), dtype), 0
    for place, change in zip(there, changes):
        if change is None:
            continue
        values = change.up.reshape(len(change.up), change.rank)
        if not equal:
            values = values.astype(np.float32) * np.float32(change.scale)
        up[slice(*(place.entry.rows or (0, shape[0]))), start : start + change.rank] = values
        start += change.rank
    alpha = None if not equal or first.scale == 1.0 else np.asarray(np.float32(first.scale * rank))
    return Factors(np.concatenate([change.down for change in present]), up, alpha)


def _by_parameter(
    parameters: Mapping[str, AnyArray], loras: Iterable[tuple[Lora, float]]
) -> dict[str, list[tuple[Lora, float]]]:
    """The LoRAs that change each parameter, with their strengths."""
    found: dict[str, list[tuple[Lora, float]]] = collections.defaultdict(list)
    problems = []
    for lora, strength in loras:
        if type(strength) not in (int, float) or not math.isfinite(strength):
            raise UsageError(f"the strength of a LoRA is {strength!r}; expected a number.")
        expected = family_of(lora.config).abstract_parameters(lora.config)
        for name in dict.fromkeys(name for name, _ in (*lora.factors, *lora.differences)):
            if name not in parameters or tuple(parameters[name].shape) != tuple(expected[name].shape):
                there = f"shape {tuple(parameters[name].shape)}" if name in parameters else "no such parameter"
                problems.append(f"{name} has shape {tuple(expected[name].shape)} in the LoRA's model and {there} here")
            found[name].append((lora, strength))
    if problems:
        raise InputError(f"a LoRA is of another model: {'; '.join(problems)}.")
    return found


def _stacked(
    name: str, changes: list[tuple[Lora, float]], layers: int, shape: Shape
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """(down [layers, ranks, inputs], up [layers, outputs, ranks], difference [layers, *shape]) in float32.

    Ranks of different LoRAs lie beside each other; up is scaled. What a layer lacks is zero, what all lack is None.
    """
    keys = [(name, layer) for layer in range(layers)]
    factors = [[(change, strength) for lora, strength in changes if (change := lora.factors.get(key))] for key in keys]
    ranks = max(sum(change.rank for change, _ in row) for row in factors)
    down = up = difference = None
    if ranks:
        down = np.zeros((layers, ranks, math.prod(shape[1:])), np.float32)
        up = np.zeros((layers, shape[0], ranks), np.float32)
        for layer, row in enumerate(factors):
            start = 0
            for change, strength in row:
                part = slice(start, start + change.rank)
                down[layer, part] = change.down.reshape(change.rank, -1)
                scale = np.float32(strength * change.scale)
                up[layer, :, part] = change.up.reshape(shape[0], change.rank).astype(np.float32) * scale
                start += change.rank
    if any(key in lora.differences for lora, _ in changes for key in keys):
        difference = np.zeros((layers, *shape), np.float32)
        for layer, key in enumerate(keys):
            for lora, strength in changes:
                if key in lora.differences:
                    difference[layer] += np.float32(strength) * lora.differences[key].astype(np.float32)
    return down, up, difference


def _add(
    kernel: AnyArray, down: Any, up: Any, difference: Any, *, transform: Transform, shape: Shape, stacked: bool
) -> AnyArray:
    """kernel + up @ down + difference, one layer after the other, so that only one of them is there in float32."""

    def changed(layer: Any, at: Any) -> Any:
        total = layer.astype(jnp.float32)
        if down is not None:
            product = jnp.matmul(up[at], down[at], precision=jax.lax.Precision.HIGHEST)
            total = total + transform.from_torch(product.reshape(shape))
        if difference is not None:
            total = total + transform.from_torch(difference[at])
        return total.astype(layer.dtype)

    # Whole layers are moved as bits: XLA's CPU backend would turn all of a bfloat16 array to float32 for each of them.
    bits = jnp.dtype(f"uint{8 * kernel.dtype.itemsize}")

    def body(at: Any, stack: Any) -> Any:
        layer = jax.lax.dynamic_index_in_dim(stack, at, keepdims=False)
        layer = changed(jax.lax.bitcast_convert_type(layer, kernel.dtype), at)
        return jax.lax.dynamic_update_index_in_dim(stack, jax.lax.bitcast_convert_type(layer, bits), at, 0)

    if not stacked:
        return changed(kernel, 0)
    stack = jax.lax.fori_loop(0, kernel.shape[0], body, jax.lax.bitcast_convert_type(kernel, bits))
    return jax.lax.bitcast_convert_type(stack, kernel.dtype)


_STATIC = ("transform", "shape", "stacked")
_added = jax.jit(_add, static_argnames=_STATIC)
_added_in_place = jax.jit(_add, static_argnames=_STATIC, donate_argnames=("kernel",))
