"""Our parameters as they lie in a checkpoint: read a part at a time, never a second time, never all at once.

What is read goes straight to where it is needed: to its layer of a stacked array, to a device's shard, or to another
file. Bits are moved as whole numbers, so that no dtype is ever converted unasked.
"""

import collections
import concurrent.futures
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kaleido_jax.errors import InputError
from kaleido_jax.models.mapping import Entry, Place, Table, differences, torch_shapes
from kaleido_jax.porting.formats import Format, recognise
from kaleido_jax.porting.safetensors import TensorInfo, refused
from kaleido_jax.porting.weights import Weights, config_beside, open_weights
from kaleido_jax.porting.writing import rows_of

CHUNK_BYTES = 8 << 20  # read, checked and moved at a time: large enough for the disk, small enough for the cache
STRIP = 32  # rows of a matrix turned at a time, whose lines stay in the first cache: 128 take twice as long
THREADS = min(4, os.cpu_count() or 1)
ALIGNMENT = 64
Index = tuple[slice, ...]


class Checkpoint:
    """A checkpoint on disk, recognised and compared with what its family expects.

    format, config: what it is. problems: all that is missing, unexpected or of a wrong shape; nothing is read while
    there are any. nonfinite: the tensors in which NaN or infinity was met so far.
    """

    def __init__(self, source: str | os.PathLike[str]):
        """Opens the files. Raises InputError if they are damaged or of no known family."""
        self.weights: Weights = open_weights(source)
        try:
            self._describe(config_beside(Path(source) if Path(source).is_dir() else self.weights.path))
        except InputError as error:
            self.weights.close()
            raise refused(self.weights.path, [str(error).removesuffix(".")]) from error
        except BaseException:
            self.weights.close()
            raise

    def _describe(self, document: Mapping[str, Any] | None) -> None:
        tensors = self.weights.tensors
        self.format: Format = recognise(tensors)
        aliases = self.format.aliases
        self.names = {name: name for name in tensors if name not in aliases and not self.format.ignored(name)}
        self.repeated = {alias: name for alias, name in aliases.items() if alias in tensors and name in tensors}
        self.names |= {name: alias for alias, name in aliases.items() if alias in tensors and name not in tensors}
        found = {name: tensors[there].shape for name, there in self.names.items()}
        self.config = self.format.config_from(found, document)
        self.table: Table = self.format.table(self.config)
        ours = self.format.family.abstract_parameters(self.config)
        self.problems = differences(found, torch_shapes(self.table, ours))
        self.problems += [
            f"{alias} and {name} are one tensor, but have shapes {tensors[alias].shape} and {tensors[name].shape}"
            for alias, name in self.repeated.items()
            if (tensors[alias].shape, tensors[alias].dtype) != (tensors[name].shape, tensors[name].dtype)
        ]
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {}
        for name, entry in self.table.items():
            dtypes = {tensors[self.names[there]].dtype for there in entry.names if there in self.names}
            if len(dtypes) > 1:
                kinds = " and ".join(sorted(dtype.name for dtype in dtypes))
                self.problems.append(f"{entry.names[0]} and the same of other layers have different dtypes: {kinds}")
            if dtypes:
                self.shapes[name] = jax.ShapeDtypeStruct(ours[name].shape, min(dtypes, key=str))
        self.nonfinite: set[str] = set()

    def check(self) -> None:
        """Raises InputError that lists every problem, if there are any."""
        if self.problems:
            raise refused(self.weights.path, self.problems)
        for alias, name in self.repeated.items():
            info = self.weights.tensors[name]
            for start, stop in rows_of(info.shape, info.dtype.itemsize, CHUNK_BYTES):
                rows = (slice(start, stop),)
                if self.weights.read(name, rows).tobytes() != self.weights.read(alias, rows).tobytes():
                    raise refused(self.weights.path, [f"{alias} and {name} are one tensor, but hold different values"])

    def order(self, name: str) -> tuple[bool, int | None]:
        """(whether each layer lies alone, along which axis of it parts are read fastest; None: it is read whole)."""
        return self.table[name].stacked, self.table[name].transform.first_axis

    def view(self, name: str, index: Index) -> np.ndarray:
        """Part of a parameter: bits as unsigned whole numbers, which may lie in any order."""
        entry, shape = self.table[name], self.shapes[name].shape
        index = full(index, shape)
        if not entry.stacked:
            return self._tensor(entry, entry.names[0], shape, index)
        names = entry.names[index[0]]
        layers = [self._tensor(entry, there, shape[1:], index[1:])[None] for there in names]
        return layers[0] if len(layers) == 1 else np.concatenate(layers)

    def _tensor(self, entry: Entry, name: str, shape: tuple[int, ...], index: Index) -> np.ndarray:
        """Part of what one tensor there holds of a parameter, or of its layer, of this shape."""
        there = self.names[name]
        read, rest = entry.transform.slices(index, entry.transform.to_torch(_hollow(shape)).shape)
        if entry.rows is not None:
            begin = entry.rows[0]
            read = (slice(read[0].start + begin, read[0].stop + begin), *read[1:])
        array = self.weights.read(there, read)
        if there not in self.nonfinite and not finite(array):
            self.nonfinite.add(there)
        return entry.transform.from_torch(bits(array))[rest]

    def close(self) -> None:
        self.weights.close()


class Arrays:
    """Parameters that are in memory already, on the host or on devices."""

    def __init__(self, arrays: Mapping[str, Any]):
        self._arrays = arrays
        self.shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
        self.nonfinite: set[str] = set()
        self._last: tuple[tuple[str, Any, Any], np.ndarray] | None = None

    def order(self, name: str) -> tuple[bool, int | None]:
        """As `Checkpoint.order`. What lies on a device is fetched whole, or a layer at a time."""
        return len(self.shapes[name].shape) > 2, 0 if isinstance(self._arrays[name], np.ndarray) else None

    def view(self, name: str, index: Index) -> np.ndarray:
        """As `Checkpoint.view`."""
        if isinstance(self._arrays[name], np.ndarray):
            part = self._arrays[name][index]
        else:
            deep = self.shapes[name].ndim > 2  # a stack of layers is fetched a layer at a time, anything else whole
            rows = index[0] if deep else slice(None)
            key = (name, rows.start, rows.stop)
            last = self._last
            if last is None or last[0] != key:  # it leaves its device once
                array = self._arrays[name]
                self._last = last = key, np.asarray(array[rows] if deep else array)
            part = last[1][(slice(None), *index[1:]) if deep else index]
        if name not in self.nonfinite and not finite(part):
            self.nonfinite.add(name)
        return bits(part)


# Where parameters come from: `shapes` (jax.ShapeDtypeStruct) by dotted name, `view`, `order`, and `nonfinite`.
Parameters = Checkpoint | Arrays


def read(
    parameters: Parameters,
    name: str,
    index: Index = (),
    *,
    dtype: Any = None,
    out: np.ndarray | None = None,
    overflowed: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """A parameter, or the part of it that `index` says, each layer put in its place as it is read.

    Args:
      dtype: of the numbers given; None keeps theirs.
      out: memory for them, of their shape and of the dtype wanted; None: memory of their own.
      overflowed: called when a finite number does not fit the dtype.
    """
    shape, source = parameters.shapes[name].shape, np.dtype(parameters.shapes[name].dtype)
    index = full(index, shape)
    if out is None:
        out = _aligned([part.stop - part.start for part in index], np.dtype(dtype or source))
    stacked, axis = parameters.order(name)
    if stacked:
        layers = [(slice(layer, layer + 1), *index[1:]) for layer in range(index[0].start, index[0].stop)]
        axis = None if axis is None else axis + 1
    else:
        layers = [index]

    def move(part: Index) -> None:
        at = (slice(cut.start - begin.start, cut.stop - begin.start) for cut, begin in zip(part, index))
        place = out[(*at, ...)]  # with the ellipsis a view, of a single number too
        array = parameters.view(name, part)
        if out.dtype == source:
            _copy_bits(bits(place), array, axis)
        else:
            np.copyto(place, _converted(array, source, out.dtype, overflowed))

    cuts = [cut for layer in layers for cut in _cuts(layer, axis, source.itemsize)]
    if len(cuts) == 1:
        move(cuts[0])
    else:
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            collections.deque(pool.map(move, cuts), maxlen=0)
    return out


def tensor_chunks(
    parameters: Parameters, parts: tuple[Place, ...], info: TensorInfo, overflowed: Callable[[], None]
) -> Iterator[np.ndarray]:
    """The elements of a checkpoint's tensor in order, from the parameters that lie in it, in the dtype of `info`.

    `overflowed` is called when a finite number does not fit that dtype.
    """
    for part in parts:
        begin, end = part.entry.rows or (0, info.shape[0] if info.shape else 1)
        shape = (end - begin, *info.shape[1:]) if info.shape else ()
        leaf, inverse = parameters.shapes[part.ours], part.entry.transform.inverse
        layer = (slice(part.layer, part.layer + 1),) if part.entry.stacked else ()
        source = np.dtype(leaf.dtype)
        # Where its first axis is joined with others of ours, the tensor is one piece; such tensors are small.
        whole = part.entry.transform.first_axis is None or not shape
        for start, stop in [(0, end - begin)] if whole else rows_of(shape, source.itemsize, CHUNK_BYTES):
            wanted = full((slice(start, stop),), shape) if shape else ()
            index, rest = inverse.slices(wanted, leaf.shape[len(layer) :])
            array = parameters.view(part.ours, layer + index)
            array = inverse.from_torch(array[0] if layer else array)[rest]
            if info.dtype == source:
                yield np.ascontiguousarray(array)
            else:
                yield _converted(array, source, info.dtype, overflowed)


def full(index: Index, shape: tuple[int, ...]) -> Index:
    """The index with a start and a stop for every axis."""
    index = (*index, *(slice(None),) * (len(shape) - len(index)))
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape))


def bits(array: np.ndarray) -> np.ndarray:
    """The same elements as unsigned whole numbers, which numpy moves faster than the dtypes that it does not know."""
    return array.view(f"u{array.dtype.itemsize}")


def _aligned(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins where jax lets a CPU device use it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _copy_bits(out: np.ndarray, array: np.ndarray, axis: int | None) -> None:
    """Copy a view whose `axis` is the slowest, in strips across it, so that both sides stay in the cache."""
    if axis is None or array.flags.c_contiguous:
        np.copyto(out, array)
        return
    before = (slice(None),) * axis
    for start in range(0, array.shape[axis], STRIP):
        strip = (*before, slice(start, start + STRIP))
        np.copyto(out[strip], array[strip])


def _converted(array: np.ndarray, source: np.dtype, dtype: np.dtype, overflowed: Callable[[], None]) -> np.ndarray:
    """Bits that stand for `source`, as numbers of another dtype."""
    given = np.ascontiguousarray(array).view(source)
    with np.errstate(over="ignore", invalid="ignore"):
        made = given.astype(dtype)
    if not finite(made) and finite(given):
        overflowed()
    return made


_EXPONENTS = {  # bits that are all set in NaN and infinity, and in nothing else
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float8_e5m2": 0x7C,
    "float8_e4m3fn": 0x7F,
}


def finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite. Whole numbers are finite."""
    mask = _EXPONENTS.get(array.dtype.name)
    if mask is None:
        return True
    flat = bits(np.ascontiguousarray(array)).reshape(-1)
    limit = flat.dtype.type(mask)
    step = (1 << 18) // flat.itemsize
    scratch = np.empty(min(step, flat.size), flat.dtype)
    for start in range(0, flat.size, step):
        block = flat[start : start + step]
        if np.bitwise_and(block, limit, out=scratch[: block.size]).max() == limit:
            return False
    return True


def _cuts(index: Index, axis: int | None, itemsize: int) -> Iterator[Index]:
    """The index, cut along an axis into pieces of about CHUNK_BYTES."""
    if axis is None or not index:
        yield index
        return
    shape = tuple(part.stop - part.start for part in index)
    order = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    for start, stop in rows_of(order, itemsize, CHUNK_BYTES):
        begin = index[axis].start
        yield (*index[:axis], slice(begin + start, begin + stop), *index[axis + 1 :])


def _hollow(shape: tuple[int, ...]) -> np.ndarray:
    """An array of this shape that takes no memory."""
    return np.broadcast_to(np.int8(0), shape)
