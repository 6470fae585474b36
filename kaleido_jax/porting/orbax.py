"""Our parameters as an orbax checkpoint: a folder with `config.json`, `arrays/`, and the manifest of both.

A large array is cut into `PARTS` pieces, each a file, so that a process reads and checks the pieces that its own shards
lie in and no others; with whole arrays for pieces every shard would read all of its array.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kaleido_jax.errors import InputError
from kaleido_jax.manifest import DamagedCheckpoint, file_entries, sync, verify, write_manifest
from kaleido_jax.porting.formats import OURS, Format, layouts
from kaleido_jax.porting.safetensors import TensorInfo, refused
from kaleido_jax.porting.weights import config_beside
from kaleido_jax.porting.writing import write_all

ARRAYS = "arrays"
PARTS = 64  # of a large array, whose longest axes are cut, a matrix into about 8 by 8
LEAST_BYTES = 4 << 20  # of a piece
MOST_PARTS = 100_000  # that are looked for
THREADS = min(4, os.cpu_count() or 1)
BLOCK_BYTES = 1 << 20  # hashed and written at a time
Index = tuple[slice, ...]


def is_orbax(source: Path) -> bool:
    """Whether a path is such a folder."""
    return (source / ARRAYS).is_dir()


def save(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    read: Callable[[str, Index, np.ndarray], object],
    axes: Mapping[str, int | None],
    row: Format,
    config: Any,
) -> None:
    """Write parameters into `folder`, which does not exist yet.

    orbax itself would have all arrays at once and read every file again for the manifest. Here a strip of an array, one
    row of its pieces, is read while the pieces of the strip before are written, each hashed on its way to the disk.

    Args:
      tensors: dtype and shape by dotted name.
      read: puts a part of an array, by name and index, into memory of its shape.
      axes: by name, along which axis an array is cut into strips; None: it is read whole.
    """
    steps = _outline(folder / ARRAYS, tensors)
    strips = [(name, strip) for name, info in tensors.items() for strip in _strips(info.shape, steps[name], axes[name])]
    sizes = [math.prod(_shape(strip)) * tensors[name].dtype.itemsize for name, strip in strips]
    # Two strips at a time, always in the same memory: what the system gives anew it has to clear.
    memory = itertools.cycle([np.empty(max(sizes), np.uint8) for _ in range(2)])
    entries: dict[str, dict[str, Any]] = {}
    futures: list[dict[str, concurrent.futures.Future[dict[str, Any]]]] = [{}]  # of each strip
    synced: list[concurrent.futures.Future[None]] = []
    with concurrent.futures.ThreadPoolExecutor(THREADS) as disk, concurrent.futures.ThreadPoolExecutor(THREADS) as pool:

        def write(file: str, piece: np.ndarray) -> dict[str, Any]:
            entry = _write_piece(folder / file, piece)
            synced.append(disk.submit(sync, folder / file))  # waits for the disk, the processors do not
            return entry

        try:
            for (name, strip), size, buffer in zip(strips, sizes, memory):
                array = buffer[:size].view(tensors[name].dtype).reshape(_shape(strip))
                read(name, strip, array)
                cuts = ((f"{ARRAYS}/{name}/{piece}", cut) for piece, cut in _cuts(strip, steps[name]))
                futures.append({file: pool.submit(write, file, array[(*cut, ...)]) for file, cut in cuts})
                entries |= {file: future.result() for file, future in futures.pop(0).items()}
            entries |= {file: future.result() for file, future in futures.pop(0).items()}
            for future in synced:
                future.result()
        except BaseException:
            disk.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    document = layouts(row.family.name)[OURS].config_document(config)
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    write_manifest(folder, file_entries(folder, written=entries))


def _outline(folder: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    """Have orbax write all but the pieces; gives their shapes.

    It writes one number for each array. What says how large the array is and how it is cut, zarr's own file, is
    changed.
    """
    numbers = {name: np.zeros((1,) * len(info.shape), info.dtype) for name, info in tensors.items()}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
    with _without_words_of_ocdbt(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(numbers))
    steps = {name: _piece_shape(info) for name, info in tensors.items()}
    for name, info in tensors.items():
        described = folder / name / ".zarray"
        document = json.loads(described.read_text())
        document |= {"shape": list(info.shape), "chunks": list(steps[name]), "dimension_separator": "."}
        described.write_text(json.dumps(document))
    return steps


def _piece_shape(info: TensorInfo) -> tuple[int, ...]:
    """The shape of the pieces of an array: all are equal, as zarr would fill up the last."""
    steps, limit = list(info.shape), max(LEAST_BYTES, info.nbytes // PARTS)
    while math.prod(steps) * info.dtype.itemsize > limit:
        divisible = [axis for axis, step in enumerate(steps) if math.gcd(step, 2 * 3 * 5 * 7) > 1]
        if not divisible:
            break
        longest = max(divisible, key=lambda axis: steps[axis])
        steps[longest] //= next(prime for prime in (2, 3, 5, 7) if steps[longest] % prime == 0)
    return tuple(steps)


def _strips(shape: tuple[int, ...], steps: tuple[int, ...], axis: int | None) -> Iterator[Index]:
    """Where each strip of an array lies, as wide as a piece."""
    whole = tuple(slice(0, size) for size in shape)
    if axis is None or not shape:
        yield whole
        return
    for start in range(0, shape[axis], steps[axis]):
        yield (*whole[:axis], slice(start, start + steps[axis]), *whole[axis + 1 :])


def _shape(strip: Index) -> list[int]:
    return [cut.stop - cut.start for cut in strip]


def _cuts(strip: Index, steps: tuple[int, ...]) -> Iterator[tuple[str, Index]]:
    """(its file in zarr's folder of the array, where it lies in the strip) of every piece of a strip."""
    for numbers in itertools.product(*(range(cut.start // step, cut.stop // step) for cut, step in zip(strip, steps))):
        starts = [number * step - cut.start for number, step, cut in zip(numbers, steps, strip)]
        yield ".".join(map(str, numbers)) or "0", tuple(slice(at, at + step) for at, step in zip(starts, steps))


def _write_piece(path: Path, piece: np.ndarray) -> dict[str, Any]:
    """Write a file of zarr's, hashed block by block while the cache holds it; gives its entry in the manifest."""
    digest = hashlib.sha256()
    # Of a stack of layers each is one run of memory, all of them are not.
    layers = piece if piece.ndim > 2 else piece[None]
    with path.open("wb", buffering=0) as file:
        for layer in layers:
            content = memoryview(np.ascontiguousarray(layer).reshape(-1).view(np.uint8))
            for start in range(0, len(content), BLOCK_BYTES):
                block = content[start : start + BLOCK_BYTES]
                digest.update(block)
                write_all(file.fileno(), block)
    return {"size": piece.nbytes, "sha256": digest.hexdigest()}


@contextlib.contextmanager
def _without_words_of_ocdbt() -> Iterator[None]:
    """orbax warns of every folder of plain files that it finds nothing to merge in it."""

    def other(record: logging.LogRecord) -> bool:
        return "Skipping merge of OCDBT" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def describe(source: Path) -> tuple[Format, Any, dict[str, jax.ShapeDtypeStruct]]:
    """(format, sizes, shape and dtype of each parameter) of a folder that `save` wrote.

    Raises:
      InputError: it is none, its files have not the sizes in its manifest, or its parameters not those of its config.
    """
    document = config_beside(source) or {}
    rows = layouts(str(document.get("family")))
    if OURS not in rows:
        raise refused(source / "config.json", [f"says family {document.get('family')!r}, which is not known here"])
    row = rows[OURS]
    config = row.config_from({}, document)
    _verify(source, ())
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            saved = dict(checkpointer.metadata(source.absolute() / ARRAYS).item_metadata)
    except Exception as error:  # orbax raises what its storage raises
        raise refused(source, [f"is not an orbax checkpoint that can be read: {error}"]) from error
    ours = row.family.abstract_parameters(config)
    problems = [f"missing {name}" for name in sorted(ours.keys() - saved.keys())]
    problems += [f"unexpected {name}" for name in sorted(saved.keys() - ours.keys())]
    problems += [
        f"{name} has shape {tuple(saved[name].shape)}, expected {ours[name].shape}"
        for name in sorted(ours.keys() & saved.keys())
        if tuple(saved[name].shape) != ours[name].shape
    ]
    if problems:
        raise refused(source, problems)
    return row, config, {name: jax.ShapeDtypeStruct(leaf.shape, saved[name].dtype) for name, leaf in ours.items()}


def restore(
    source: Path, shapes: Mapping[str, jax.ShapeDtypeStruct], sharding: Callable[[str, Any], Any] | None
) -> dict[str, Any]:
    """The arrays of a folder: on devices as `sharding(name, shape)` says, or on the host without one.

    Raises:
      InputError: a file that is needed is not what the manifest says, or cannot be read.
    """
    if sharding is None:
        how: dict[str, ocp.RestoreArgs] = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes}
        _verify(source, None)
    else:
        places = {name: sharding(name, leaf) for name, leaf in shapes.items()}
        how = {
            name: ocp.ArrayRestoreArgs(sharding=places[name], global_shape=leaf.shape, dtype=leaf.dtype)
            for name, leaf in shapes.items()
        }
        parts = {name: place.addressable_devices_indices_map(shapes[name].shape) for name, place in places.items()}
        _verify(source, _files(source, shapes, {name: list(indices.values()) for name, indices in parts.items()}))
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(source.absolute() / ARRAYS, args=ocp.args.PyTreeRestore(restore_args=how))
    except InputError:
        raise
    except Exception as error:  # orbax raises what its storage raises
        raise refused(source, [f"is not an orbax checkpoint that can be read: {error}"]) from error


def _verify(source: Path, read: set[str] | tuple[()] | None) -> None:
    try:
        verify(source, read=read)
    except DamagedCheckpoint as error:
        raise refused(source, [f"is damaged: {error}"]) from error


def _files(
    source: Path, shapes: Mapping[str, jax.ShapeDtypeStruct], parts: Mapping[str, Sequence[Index | None]]
) -> set[str]:
    """The files that are read for some parts of each array: the pieces that they lie in, and all small files."""
    files = {"config.json"}
    for path in (source / ARRAYS).iterdir():
        if path.is_file():
            files.add(f"{ARRAYS}/{path.name}")
    for name, leaf in shapes.items():
        described = source / ARRAYS / name / ".zarray"
        files.add(f"{ARRAYS}/{name}/{described.name}")
        try:
            document = json.loads(described.read_text())
            steps, separator = [int(step) for step in document["chunks"]], str(document["dimension_separator"])
            if math.prod(-(-size // step) for size, step in zip(leaf.shape, steps, strict=True)) > MOST_PARTS:
                raise ValueError(f"more than {MOST_PARTS} pieces")
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise refused(described, [f"does not describe an array: {error}"]) from error
        for index in parts[name]:
            files |= {f"{ARRAYS}/{name}/{separator.join(piece) or 0}" for piece in _pieces(leaf.shape, steps, index)}
    return files


def _pieces(shape: tuple[int, ...], steps: list[int], index: Index | None) -> Iterator[tuple[str, ...]]:
    """The numbers of the pieces of an array that a part of it lies in, along each axis."""
    parts = (part.indices(size) for part, size in zip(index or (), shape, strict=True))
    spans = (range(start // step, -(-stop // step)) for (start, stop, _), step in zip(parts, steps))
    for numbers in itertools.product(*spans):
        yield tuple(map(str, numbers))
