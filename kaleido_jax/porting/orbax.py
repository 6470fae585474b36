"""Our parameters as an orbax checkpoint: a folder with `config.json`, and `arrays/`, sharded as it is read."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from kaleido_jax.errors import InputError
from kaleido_jax.porting.formats import OURS, Format, layouts
from kaleido_jax.porting.safetensors import refused
from kaleido_jax.porting.weights import config_beside

ARRAYS = "arrays"


def is_orbax(source: Path) -> bool:
    """Whether a path is such a folder."""
    return (source / ARRAYS).is_dir()


def save(folder: Path, arrays: Mapping[str, Any], row: Format, config: Any) -> None:
    """Write parameters by dotted name, from the host or from devices, into `folder`, which does not exist yet."""
    # Plain files written one after another: no copy of the arrays, and random bits of weights do not compress.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, save_concurrent_gb=1)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute() / ARRAYS, args=ocp.args.PyTreeSave(dict(arrays)))
    document = layouts(row.family.name)[OURS].config_document(config)
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")


def describe(source: Path) -> tuple[Format, Any, dict[str, jax.ShapeDtypeStruct]]:
    """(format, sizes, shape and dtype of each parameter) of a folder that `save` wrote.

    Raises:
      InputError: it is none, or its parameters are not those of its sizes.
    """
    document = config_beside(source) or {}
    rows = layouts(str(document.get("family")))
    if OURS not in rows:
        raise refused(source / "config.json", [f"says family {document.get('family')!r}, which is not known here"])
    row = rows[OURS]
    config = row.config_from({}, document)
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
    """The arrays of a folder: on devices as `sharding(name, shape)` says, or on the host without one."""
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            if sharding is None:
                how = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in shapes}
            else:
                how = {
                    name: ocp.ArrayRestoreArgs(sharding=sharding(name, leaf), global_shape=leaf.shape, dtype=leaf.dtype)
                    for name, leaf in shapes.items()
                }
            return checkpointer.restore(source.absolute() / ARRAYS, args=ocp.args.PyTreeRestore(restore_args=how))
    except InputError:
        raise
    except Exception as error:  # orbax raises what its storage raises
        raise refused(source, [f"is not an orbax checkpoint that can be read: {error}"]) from error
