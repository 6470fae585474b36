"""From one kind of checkpoint to another, tensor by tensor, and into arrays on a mesh."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.models.mapping import Table, differences, places, torch_shapes
from kaleido_jax.names import lookup
from kaleido_jax.parallel import partition_spec
from kaleido_jax.porting import orbax, torch_files
from kaleido_jax.porting.formats import OURS, Format, family_of, layout_of
from kaleido_jax.porting.parameters import Arrays, Checkpoint, Parameters, read, tensor_chunks
from kaleido_jax.porting.safetensors import DTYPES, TensorInfo, refused
from kaleido_jax.porting.writing import replacing, write_file, write_folder

SHARD_BYTES = 10 * 10**9  # as diffusers cuts its releases
FLOATS = {dtype.name: dtype for dtype in DTYPES.values() if dtype.kind in "fV"}
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Ported:
    """What was written: the family, the layout, the sizes, and how many tensors and bytes."""

    family: str
    layout: str
    config: Any
    tensors: int
    nbytes: int


def port(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str = "diffusers",
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Ported:
    """Write the weights of `source`, whose kind is recognised, as another kind of checkpoint.

    Args:
      source: a safetensors file, an index of shards, a .pth file, or a folder that holds one checkpoint.
      destination: a folder; or one file, if it ends with .safetensors or .pth.
      to: "original", "diffusers", "orbax", "kaleido" (our own names), or another layout of the family, such as
        "kaleido-sat".
      dtype: of the tensors written; None keeps each one's own.
      allow_nonfinite: write weights that hold NaN or infinity.
      overwrite: replace a destination that exists.
      shard_bytes: a folder's safetensors are cut into files of at most this size.
      progress: called with the bytes done and all bytes.

    Raises:
      UsageError: the destination exists, or there is no such layout or dtype.
      InputError: listing everything that is wrong with the source. The destination is untouched then.
      StorageError: the destination cannot be written. It is untouched then.
    """
    target = _Target(Path(destination), to, _dtype(dtype), allow_nonfinite, overwrite, shard_bytes, progress)
    with target.replaced() as temporary, _opened(Path(source)) as (row, config, parameters):
        return target.write(temporary, row.family.name, config, parameters, str(source))


def export(
    parameters: Mapping[str, Any],
    config: Any,
    destination: str | os.PathLike[str],
    *,
    to: str = "diffusers",
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Ported:
    """Write parameters that are in memory, on devices or on the host, as `port` writes those of a checkpoint.

    Arrays that lie on a mesh are fetched a layer at a time; all of each must be within reach of this process.

    Args:
      parameters: by dotted name, as `load` gives them. config: their sizes, e.g. a WanConfig.
      destination, to, dtype, allow_nonfinite, overwrite, shard_bytes, progress: as of `port`.

    Raises:
      UsageError, StorageError: as `port`.
      InputError: listing every parameter that is missing, unexpected, of another shape, or not finite.
    """
    family = family_of(config)
    shapes = {name: tuple(leaf.shape) for name, leaf in family.abstract_parameters(config).items()}
    problems = differences({name: tuple(x.shape) for name, x in parameters.items()}, shapes)
    if problems:
        raise refused("the parameters", problems)
    target = _Target(Path(destination), to, _dtype(dtype), allow_nonfinite, overwrite, shard_bytes, progress)
    with target.replaced() as temporary:
        return target.write(temporary, family.name, config, Arrays(parameters), "the parameters")


def load(
    source: str | os.PathLike[str],
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """(sizes, parameters by dotted name on devices) of any checkpoint that `port` reads.

    Args:
      mesh: with the axes of `kaleido_jax.parallel`, whose table says where each parameter lies; a process reads the
        bytes of its own shards and no others. None: all on the first device.
      dtype, allow_nonfinite, progress: as of `port`.

    Raises:
      InputError: listing everything that is wrong with the source.
    """
    target = _dtype(dtype)
    place = functools.partial(_sharding, mesh)
    path = Path(source)
    if orbax.is_orbax(path):
        _, config, shapes = orbax.describe(path)
        shapes = {name: jax.ShapeDtypeStruct(leaf.shape, target or leaf.dtype) for name, leaf in shapes.items()}
        return config, orbax.restore(path, shapes, place)
    with _opened(path) as (_, config, parameters):
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in parameters.shapes.values())
        done, arrays = 0, {}
        for name, leaf in parameters.shapes.items():
            arrays[name] = _placed(parameters, name, target or leaf.dtype, place(name, leaf))
            done += leaf.size * leaf.dtype.itemsize
            if progress:
                progress(done, total)
        if parameters.nonfinite and not allow_nonfinite:
            raise refused(source, [f"{name} holds NaN or infinity" for name in sorted(parameters.nonfinite)])
    return config, arrays


def _write_torch(path: Path, goal: Format, tensors: Mapping[str, TensorInfo], job: "_Job") -> None:
    """PyTorch's own file, made from a safetensors file beside it, whose tensors torch reads as it writes them."""
    between = path.with_suffix(".safetensors")
    try:
        write_file(between, tensors, job.chunks)
        torch_files.save(path, between, wrapper=goal.wrapper)
    finally:
        between.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[tuple[Format, Any, Parameters]]:
    """(format, sizes, parameters) of a source that has no problems, open while the block runs."""
    if orbax.is_orbax(source):
        row, config, shapes = orbax.describe(source)
        yield row, config, Arrays(orbax.restore(source, shapes, None))
        return
    checkpoint = Checkpoint(source)
    with contextlib.closing(checkpoint):
        checkpoint.check()
        yield checkpoint.format, checkpoint.config, checkpoint


@dataclasses.dataclass(frozen=True)
class _Target:
    """What is to be written, and where."""

    destination: Path
    to: str
    dtype: np.dtype | None
    allow_nonfinite: bool
    overwrite: bool
    shard_bytes: int
    progress: Progress | None

    def replaced(self) -> contextlib.AbstractContextManager[Path]:
        """A path beside the destination, to be written."""
        if self.to == "orbax" and self.destination.suffix in (".safetensors", *torch_files.SUFFIXES):
            raise UsageError(
                f"an orbax checkpoint is a folder, and {printable(self.destination.name)} looks like a file"
            )
        return replacing(self.destination, overwrite=self.overwrite)

    def write(self, path: Path, family: str, config: Any, parameters: Parameters, source: str) -> Ported:
        """Write the parameters at a path beside the destination. Raises InputError naming those that are no numbers."""
        goal = layout_of(family, OURS if self.to == "orbax" else self.to)
        document = goal.config_document(config)  # or says what the layout cannot hold
        tensors = _tensors(goal, config, parameters, self.dtype)
        total = sum(info.nbytes for info in tensors.values())
        job = _Job(parameters, tensors, goal.table(config), self.progress, total)
        if self.to == "orbax":
            orbax.save(path, tensors, job.read, job.axes(), goal, config)
        elif self.destination.suffix == ".safetensors":
            write_file(path, tensors, job.chunks)
        elif self.destination.suffix in torch_files.SUFFIXES:
            _write_torch(path, goal, tensors, job)
        elif goal.release:
            file = path / goal.release
            file.parent.mkdir(parents=True)
            _write_torch(file, goal, tensors, job)
            (path / torch_files.LATEST).write_text(file.parent.name)
        else:
            path.mkdir()
            if document:
                (path / "config.json").write_text(json.dumps(document, indent=2) + "\n")
            write_folder(path, goal.weights, tensors, job.chunks, shard_bytes=self.shard_bytes)
        problems = [f"{name} does not fit {self.dtype}" for name in sorted(job.overflowed)]
        if not self.allow_nonfinite:
            problems += [f"{name} holds NaN or infinity" for name in sorted(parameters.nonfinite)]
        if problems:
            raise refused(source, problems)
        return Ported(family, "orbax" if self.to == "orbax" else goal.layout, config, len(tensors), total)


class _Job:
    """The tensors of one port while they are written."""

    def __init__(
        self,
        parameters: Parameters,
        tensors: Mapping[str, TensorInfo],
        table: Table,
        progress: Progress | None,
        total: int,
    ):
        self._parameters, self._tensors, self._places = parameters, tensors, places(table)
        self._progress, self._total, self._done = progress, total, 0
        self.overflowed: set[str] = set()

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """The elements of a tensor of the destination, in order."""
        info = self._tensors[name]
        overflowed = functools.partial(self.overflowed.add, name)
        for chunk in tensor_chunks(self._parameters, self._places[name], info, overflowed):
            yield chunk
            self._advance(chunk.nbytes)

    def axes(self) -> dict[str, int | None]:
        """By parameter, the axis along which parts of it are read as fast as all of it; None: it is read whole."""
        orders = {name: self._parameters.order(name) for name in self._tensors}
        return {name: None if axis is None else axis + stacked for name, (stacked, axis) in orders.items()}

    def read(self, name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Put a part of a parameter into memory of its shape and dtype."""
        read(self._parameters, name, index, out=out, overflowed=functools.partial(self.overflowed.add, name))
        self._advance(out.nbytes)

    def _advance(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)


def _tensors(goal: Format, config: Any, parameters: Parameters, target: np.dtype | None) -> dict[str, TensorInfo]:
    """Dtype and shape of every tensor of the destination."""
    table = goal.table(config)
    shapes = torch_shapes(table, goal.family.abstract_parameters(config))
    tensors, problems = {}, []
    for name, parts in places(table).items():
        dtypes = {np.dtype(parameters.shapes[part.ours].dtype) for part in parts}
        if target is None and len(dtypes) > 1:
            kinds = " and ".join(sorted(dtype.name for dtype in dtypes))
            problems.append(f"{name} is made of parts with dtypes {kinds}; choose one with --dtype")
        tensors[name] = TensorInfo(target or min(dtypes, key=str), shapes[name])
    if problems:
        raise InputError(f"{len(problems)} tensors cannot be written: {'; '.join(problems[:20])}.")
    return tensors


def _dtype(name: str | None) -> np.dtype | None:
    return None if name is None else lookup(FLOATS, name, "dtype")


def _sharding(mesh: jax.sharding.Mesh | None, name: str, leaf: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.sharding.NamedSharding(mesh, partition_spec(name, leaf.shape, mesh))


def _placed(parameters: Parameters, name: str, dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A parameter on devices, each shard read once."""
    shape = parameters.shapes[name].shape
    shards: dict[Iterable, np.ndarray] = {}

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        key = tuple((part.start, part.stop) for part in index or ())
        if key not in shards:
            shards[key] = read(parameters, name, index or (), dtype=dtype)
        return shards[key]

    return jax.make_array_from_callback(shape, sharding, shard)
