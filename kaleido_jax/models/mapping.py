"""Where our parameters lie in the checkpoints of other projects, as data: one type for every family.

A table says for each parameter of ours, by dotted name, which tensors of a checkpoint it is: one, or one for each layer
(stacked here on a leading axis), whole or some rows of one that holds several of ours. A transform turns the tensor's
axes; it never touches a value, so that there and back is bitwise in every dtype. `params.py` of a family builds its
tables with `table_of`; what is done with them is written once, here and in `kaleido_jax.porting`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from einops import rearrange
from flax import nnx

from kaleido_jax.errors import InputError

Shape = tuple[int, ...]
Tensor = TypeVar("Tensor", bound=np.ndarray | jax.Array)


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a tensor of PyTorch becomes one of ours, and back.

    pattern: of einops, from PyTorch's axes to ours, such as "o i -> i o"; "" leaves the tensor as it is.
    sizes: of axes that the pattern joins on either side, as (name, size).
    """

    pattern: str = ""
    sizes: tuple[tuple[str, int], ...] = ()

    def from_torch(self, theirs: Tensor) -> Tensor:
        """A view wherever the axes are only permuted. Works on arrays of jax too."""
        return rearrange(theirs, self.pattern, **dict(self.sizes)) if self.pattern else theirs

    def to_torch(self, ours: Tensor) -> Tensor:
        """The inverse of `from_torch`."""
        return self.inverse.from_torch(ours)

    @property
    def inverse(self) -> "Transform":
        """The transform back, from our axes to PyTorch's."""
        return Transform(" -> ".join(reversed(_sides(self.pattern))), self.sizes) if self.pattern else self

    @property
    def first_axis(self) -> int | None:
        """Which axis of ours is PyTorch's first, along which its bytes can be cut; None if it is joined with others."""
        if not self.pattern:
            return 0
        theirs, ours = (_groups(side) for side in _sides(self.pattern))
        return ours.index(theirs[0]) if len(theirs[0]) == 1 and theirs[0] in ours else None

    def slices(self, ours: tuple[slice, ...], shape: Shape) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """(what to read of a tensor of theirs with this `shape`, what to take of it once it is turned) for a slice.

        An axis that is an axis of theirs too is cut there; one that joins several is read whole and cut afterwards.
        """
        if not self.pattern:
            return ours, (slice(None),) * len(ours)
        theirs, mine = (_groups(side) for side in _sides(self.pattern))
        read, rest = [slice(0, size) for size in shape], list(ours)
        for axis, group in enumerate(mine):
            if len(group) == 1 and group in theirs:
                read[theirs.index(group)], rest[axis] = ours[axis], slice(None)
        return tuple(read), tuple(rest)


SAME = Transform()
MATRIX = Transform("o i -> i o")  # the weight of a linear layer


@functools.cache
def _sides(pattern: str) -> tuple[str, str]:
    theirs, ours = pattern.split(" -> ")
    return theirs, ours


@functools.cache
def _groups(side: str) -> tuple[tuple[str, ...], ...]:
    """The axes of one side of a pattern, each as the names that it joins; an axis of 1 has none."""
    groups: list[tuple[str, ...]] = []
    names: list[str] | None = None
    for word in side.replace("(", "( ").replace(")", " )").split():
        if word == "(":
            names = []
        elif word == ")":
            groups.append(tuple(names or ()))
            names = None
        elif names is None:
            groups.append(() if word == "1" else (word,))
        else:
            names.append(word)
    return tuple(groups)


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one parameter of ours lies in a checkpoint.

    names: of the tensor there, or of one tensor for each layer if `stacked`.
    rows: (start, stop) on the tensor's first axis, where one tensor there holds several parameters of ours, as a fused
      query, key and value do; the parts of all entries that name it cover it exactly. None: the whole tensor.
    """

    names: tuple[str, ...]
    transform: Transform = SAME
    stacked: bool = False
    rows: tuple[int, int] | None = None

    def shape(self, ours: Shape) -> Shape:
        """The shape of the tensor there (of its rows) for a parameter with the shape `ours`."""
        # A view of a single number has the shape and costs no memory.
        return self.transform.to_torch(np.broadcast_to(np.int8(0), ours[1:] if self.stacked else ours)).shape

    def from_torch(self, theirs: np.ndarray) -> np.ndarray:
        """One layer of ours (all of it unless `stacked`) from the tensor there."""
        return self.transform.from_torch(theirs if self.rows is None else theirs[slice(*self.rows)])

    def layers(self, ours: Any) -> Iterable[Any]:
        """The parameter's layers, one for each of `names`."""
        return ours if self.stacked else (ours,)


@dataclasses.dataclass(frozen=True)
class Place:
    """One part of a checkpoint's tensor: layer `layer` (0 unless stacked) of our parameter `ours`."""

    ours: str
    layer: int
    entry: Entry


Table = Mapping[str, Entry]
# A kind of module: (suffix of our name, suffix of theirs, transform) for each of its tensors.
Kind = tuple[tuple[str, str, Transform], ...]


def table_of(rows: Iterable[tuple], kinds: Mapping[str, Kind], layers: int = 1) -> dict[str, Entry]:
    """A table from rows (our module, its name there with {} for the layer, kind[, (start, stop) of its rows there])."""
    table: dict[str, Entry] = {}
    for ours, theirs, kind, *part in rows:
        stacked = "{}" in theirs
        for our_suffix, their_suffix, transform in kinds[kind]:
            name = theirs + their_suffix
            names = tuple(name.format(layer) for layer in range(layers)) if stacked else (name,)
            table[ours + our_suffix] = Entry(names, transform, stacked, part[0] if part else None)
    return table


def places(table: Table) -> dict[str, tuple[Place, ...]]:
    """The table read from the other side: for every tensor of the checkpoint, its parts in the order of its rows."""
    found: dict[str, list[Place]] = {}
    for ours, entry in table.items():
        for layer, name in enumerate(entry.names):
            found.setdefault(name, []).append(Place(ours, layer, entry))
    return {name: tuple(sorted(parts, key=lambda place: place.entry.rows or (0, 0))) for name, parts in found.items()}


def torch_shapes(table: Table, ours: Mapping[str, Any]) -> dict[str, Shape]:
    """Name and shape of every tensor of a checkpoint, from our parameters' (anything with a shape); allocates nothing.

    Raises:
      ValueError: the table is not a bijection onto `ours`, or parts of a fused tensor overlap or leave a gap.
    """
    if table.keys() != ours.keys():
        raise ValueError(f"the table and the parameters differ in {sorted(table.keys() ^ ours.keys())}")
    parts = {name: entry.shape(tuple(ours[name].shape)) for name, entry in table.items()}
    shapes: dict[str, Shape] = {}
    for name, places_there in places(table).items():
        fused = places_there[0].entry.rows is not None
        if len(places_there) > 1 and not all(place.entry.rows for place in places_there):
            raise ValueError(f"{name} is named by {[place.ours for place in places_there]} without rows for each")
        end, shape = 0, parts[places_there[0].ours]
        for place in places_there if fused else ():
            start, stop = place.entry.rows or (0, 0)
            part = parts[place.ours]
            if start != end or stop - start != part[0] or part[1:] != shape[1:]:
                raise ValueError(f"{name}: {place.ours} of shape {part} cannot be rows {start} to {stop} after {end}")
            end = stop
        shapes[name] = (end, *shape[1:]) if fused else shape
    return shapes


def differences(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> list[str]:
    """A line for every tensor that is missing, unexpected or of another shape."""
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if tuple(found[name]) != tuple(expected[name]):
            problems.append(f"{name} has shape {tuple(found[name])}, expected {tuple(expected[name])}")
    return problems


def size_of(shapes: Mapping[str, Shape], name: str, axis: int) -> int:
    """The size of one axis of a checkpoint's tensor, for finding a model's sizes; InputError if there is none."""
    if name not in shapes or len(shapes[name]) <= axis:
        raise InputError(f"the sizes of the model cannot be told: {name} is missing or has no axis {axis}.")
    return int(shapes[name][axis])


def layers_of(shapes: Mapping[str, Shape], name: str) -> int:
    """How many layers a checkpoint has, from the name of a tensor of each, with {} for the layer; 0 if there is none.

    The last one counts, so that a checkpoint that lost some in between is found to miss them.
    """
    begin, end = name.split("{}")
    names = (found for found in shapes if found.startswith(begin) and found.endswith(end))
    numbers = (found[len(begin) : len(found) - len(end)] for found in names)
    return max((int(number) + 1 for number in numbers if number.isdecimal() and len(number) < 6), default=0)


def from_torch(tensors: Mapping[str, Any], table: Table, ours: Mapping[str, Any], what: str) -> dict[str, np.ndarray]:
    """Parameters by dotted name from a PyTorch state dict (arrays, or tensors that numpy can read).

    Args:
      ours: shapes of our parameters, as from `abstract_parameters`.
      what: the kind of weights, for the error, e.g. "Wan weights of layout diffusers".

    Raises:
      InputError: naming every tensor that is missing, unexpected or of another shape.
    """
    problems = differences({name: tuple(x.shape) for name, x in tensors.items()}, torch_shapes(table, ours))
    if problems:
        raise InputError(f"{len(problems)} problems in {what}: {'; '.join(problems)}.")
    parameters = {}
    for name, entry in table.items():
        layers = [entry.from_torch(np.asarray(tensors[theirs])) for theirs in entry.names]
        parameters[name] = np.stack(layers) if entry.stacked else layers[0]
    return parameters


def to_torch(parameters: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`; tensors that are not fused are views of the parameters."""
    arrays = {name: np.asarray(parameters[name]) for name in table}
    tensors = {}
    for name, parts in places(table).items():
        pieces = [
            part.entry.transform.to_torch(arrays[part.ours][part.layer] if part.entry.stacked else arrays[part.ours])
            for part in parts
        ]
        tensors[name] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return tensors


def told(document: Mapping[str, Any] | None, key: str, otherwise: int | None) -> int:
    """A positive whole number of a checkpoint's config.json, or what its tensors say if it is silent.

    Raises:
      InputError: the value is no such number, or neither of them says it.
    """
    value = (document or {}).get(key)
    value = otherwise if value is None else value
    if type(value) is not int or value < 1:
        raise InputError(f"{key} of the config.json is {value!r}; expected a positive whole number")
    return value


def told_number(document: Mapping[str, Any] | None, key: str, otherwise: float) -> float:
    """As `told`, of a number other than 0 that need be neither whole nor positive."""
    value = (document or {}).get(key)
    value = otherwise if value is None else value
    if type(value) not in (int, float) or not value or value != value:
        raise InputError(f"{key} of the config.json is {value!r}; expected a number other than 0")
    return float(value)


def flatten(module: nnx.Module) -> dict[str, Any]:
    """The parameters of a module by dotted name."""
    leaves = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in leaves}


def abstract_parameters(make: Callable[[], nnx.Module]) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter of the module that `make` makes, by dotted name, without allocating any."""
    return flatten(nnx.eval_shape(make))
