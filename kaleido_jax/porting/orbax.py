"""Our parameters as an orbax checkpoint: a folder with `config.json`, `arrays/`, and the manifest of both.

A large array is cut into `PARTS` pieces, each a file, so that a process reads and checks the pieces that its own shards
lie in and no others; with whole arrays for pieces every shard would read all of its array.
"""

import contextlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kaleido_jax.errors import InputError
from kaleido_jax.manifest import DamagedCheckpoint, verify, write_manifest
from kaleido_jax.porting.formats import OURS, Format, layouts
from kaleido_jax.porting.safetensors import refused
from kaleido_jax.porting.weights import config_beside

ARRAYS = "arrays"
PARTS = 64  # of a large array: orbax cuts its longest axes, a matrix into about 8 by 8
LEAST_BYTES = 1 << 20  # of a piece
MOST_PARTS = 100_000  # that are looked for


def is_orbax(source: Path) -> bool:
    """Whether a path is such a folder."""
    return (source / ARRAYS).is_dir()


def save(folder: Path, arrays: Mapping[str, Any], row: Format, config: Any) -> None:
    """Write parameters by dotted name, from the host or from devices, into `folder`, which does not exist yet."""
    # Plain files written one after another: no copy of the arrays, and random bits of weights do not compress.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, save_concurrent_gb=1)
    pieces = {name: ocp.SaveArgs(chunk_byte_size=max(LEAST_BYTES, x.nbytes // PARTS)) for name, x in arrays.items()}
    with _without_words_of_ocdbt(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute() / ARRAYS, args=ocp.args.PyTreeSave(dict(arrays), save_args=pieces))
    document = layouts(row.family.name)[OURS].config_document(config)
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    write_manifest(folder)


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
    source: Path, shapes: Mapping[str, jax.ShapeDtypeStruct], parts: Mapping[str, Sequence[tuple[slice, ...] | None]]
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


def _pieces(shape: tuple[int, ...], steps: list[int], index: tuple[slice, ...] | None) -> Iterator[tuple[str, ...]]:
    """The numbers of the pieces of an array that a part of it lies in, along each axis."""
    parts = (part.indices(size) for part, size in zip(index or (), shape, strict=True))
    spans = (range(start // step, -(-stop // step)) for (start, stop, _), step in zip(parts, steps))
    for numbers in itertools.product(*spans):
        yield tuple(map(str, numbers))
