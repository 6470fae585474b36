"""Checkpoints that are either whole or not there: orbax for the arrays, our own manifest for the truth.

A checkpoint is a folder named after its step; until its manifest is on disk it has a name that nothing lists.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from kaleido_jax.errors import StorageError
from kaleido_jax.manifest import MANIFEST, DamagedCheckpoint, sync, verify, write_manifest

METADATA = "metadata.json"
ARRAYS = "arrays"
PARTIAL = ".partial"
CORRUPT = ".corrupt"


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep must be at least 1, got {keep}")
        self.folder = Path(folder).absolute()
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps that have a manifest, oldest first. Reads the disk each time."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and (p / MANIFEST).is_file())

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
        """Write the pytree of arrays and the JSON metadata, then the manifest; drop all but the newest `keep`.

        Raises StorageError when it could not be written; checkpoints written before stay as they were.
        """
        final = self.folder / f"{step:08d}"
        if (final / MANIFEST).is_file():
            return
        partial = self.folder / f"{step:08d}{PARTIAL}"
        try:
            self._clean(final, partial)
            partial.mkdir(parents=True)
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(partial / ARRAYS, _flat(state))
                checkpointer.wait_until_finished()
            (partial / METADATA).write_text(json.dumps(dict(metadata), indent=1))
            write_manifest(partial, step=step)
            partial.rename(final)
            sync(self.folder)
        except (OSError, ValueError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(f"checkpoint {step} could not be written to {self.folder}: {error}") from error
        for old in self.steps()[: -self.keep]:
            self._clean(self.folder / f"{old:08d}")

    def restore(self, target: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state shaped and placed like `target`, metadata) of one step, or of the newest that verifies.

        Without `step`, a damaged checkpoint is set aside with a warning and the one before it is tried; None means that
        the folder never held one. Raises StorageError when a given step is missing or damaged, or when all are.
        """
        if step is not None:
            return self._read(step, target)
        for candidate in reversed(self.steps()):
            try:
                return self._read(candidate, target)
            except DamagedCheckpoint as error:
                bad = self.folder / f"{candidate:08d}"
                shutil.rmtree(bad.with_name(bad.name + CORRUPT), ignore_errors=True)
                bad.rename(bad.with_name(bad.name + CORRUPT))
                warnings.warn(f"{error}; it was set aside as {bad.name}{CORRUPT}", stacklevel=2)
        aside = sorted(p.name for p in self.folder.glob(f"*{CORRUPT}"))
        if aside:  # a run that once was must not start anew in silence
            raise StorageError(f"no checkpoint in {self.folder} can be read; damaged ones are {', '.join(aside)}")
        return None

    def _read(self, step: int, target: Any) -> tuple[int, Any, dict[str, Any]]:
        folder = self.folder / f"{step:08d}"
        verify(folder, step=step)
        metadata = json.loads((folder / METADATA).read_text())
        wanted = _flat(target)
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in wanted.items()}
        with ocp.StandardCheckpointer() as checkpointer:
            saved = dict(checkpointer.metadata(folder / ARRAYS).item_metadata)
            _compare(folder, saved, abstract)
            arrays = checkpointer.restore(folder / ARRAYS, abstract)
        leaves = [arrays[name] for name in wanted]
        return step, jax.tree.unflatten(jax.tree.structure(target), leaves), metadata

    def _clean(self, *folders: Path) -> None:
        """Remove folders; the manifest goes first, so that a half-removed checkpoint is not listed."""
        for folder in folders:
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _compare(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raise StorageError that lists the leaves in which a checkpoint differs from the state to be restored."""
    differences = [f"{name} is missing" for name in wanted if name not in saved]
    differences += [f"{name} is not part of this run" for name in saved if name not in wanted]
    differences += [
        f"{name} has shape {tuple(saved[name].shape)}, not {tuple(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in saved and tuple(saved[name].shape) != tuple(leaf.shape)
    ]
    if differences:
        shown = "; ".join(differences[:20])
        raise StorageError(f"{folder} does not match the config ({len(differences)} leaves): {shown}")


def _flat(tree: Any) -> dict[str, jax.Array]:
    """Leaves by their path, e.g. "params/transformer/blocks.attention.query.weight"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_key(entry) for entry in path): leaf for path, leaf in flat}


def _key(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
