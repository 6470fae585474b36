"""Checkpoints that are either whole or not there: orbax for the arrays, our own manifest for the truth.

A checkpoint is a folder named after its step; until its manifest is on disk it has a name that nothing lists. The
manifest also has a checksum of every array that the devices compute, whatever mesh it lies on: what is restored is what
was on the devices, not only what reached the disk. Where several processes save, each writes and hashes its own share.
"""

import functools
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from kaleido_jax.errors import StorageError
from kaleido_jax.manifest import MANIFEST, DamagedCheckpoint, file_entries, sync, verify, write_manifest
from kaleido_jax.parallel import processes
from kaleido_jax.typing import Array

METADATA = "metadata.json"
ARRAYS = "arrays"
PARTIAL = ".partial"
CORRUPT = ".corrupt"
HASHES = ".hashes-"


class Checkpoints:
    """The checkpoints of one run, in one folder."""

    def __init__(self, folder: str | Path, *, keep: int = 2, keep_every: int = 0) -> None:
        if keep < 1 or keep_every < 0:
            raise ValueError(
                f"checkpoint.keep must be at least 1 and checkpoint.keep_every 0, got {keep} and {keep_every}"
            )
        self.folder = Path(folder).absolute()
        self.keep, self.keep_every = keep, keep_every

    def steps(self) -> list[int]:
        """Steps that have a manifest, oldest first. Reads the disk each time, on every process for itself."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and (p / MANIFEST).is_file())

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
        """Write the pytree of arrays and the JSON metadata, then the manifest; drop old ones.

        The newest `keep` stay, and those of every `keep_every`-th step.

        Raises StorageError when it could not be written; checkpoints written before stay as they were.
        """
        final = self.folder / f"{step:08d}"
        if processes.agreed((final / MANIFEST).is_file()):
            return
        partial = self.folder / f"{step:08d}{PARTIAL}"
        arrays = _flat(state)
        sums = {name: int(value) for name, value in jax.device_get(checksums(arrays)).items()}
        index, count = processes.share()

        def make_room() -> None:
            half = [p for p in self.folder.glob("*") if p.name.isdigit() and not (p / MANIFEST).is_file()]
            self._clean(*half, *self.folder.glob(f"*{PARTIAL}"))  # what killed runs left behind
            for left in self.folder.glob(f"*{HASHES}*"):
                left.unlink()
            partial.mkdir(parents=True)

        def write() -> None:
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(partial / ARRAYS, arrays)
                checkpointer.wait_until_finished()

        def join() -> None:
            entries = {}
            for path in sorted(self.folder.glob(f"{step:08d}{HASHES}*")):
                entries |= json.loads(path.read_text())
                path.unlink()
            write_manifest(partial, entries, step=step, checksums=sums)
            partial.rename(final)
            sync(self.folder)

        note = lambda: (partial / METADATA).write_text(json.dumps(dict(metadata), indent=1))
        hashes = self.folder / f"{step:08d}{HASHES}{index}"
        own_files = lambda: hashes.write_text(json.dumps(file_entries(partial, (index, count))))
        try:
            for action, by_one in ((make_room, True), (write, False), (note, True), (own_files, False), (join, True)):
                processes.everywhere(functools.partial(self._storing, step, action), only_first=by_one)
        except StorageError:
            hashes.unlink(missing_ok=True)
            if processes.is_first():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        if processes.is_first():
            for old in self.steps()[: -self.keep]:
                if not self.keep_every or old % self.keep_every:
                    self._clean(self.folder / f"{old:08d}")

    def _storing(self, step: int, action: Callable[[], Any]) -> None:
        """Do a part of saving. Raises StorageError for what the system or orbax raises."""
        try:
            action()
        except (OSError, ValueError) as error:
            raise StorageError(f"checkpoint {step} could not be written to {self.folder}: {error}") from error

    def check_room(self, state: Any) -> None:
        """Raise StorageError unless the disk has room for all checkpoints that a run has at a time, and a tenth."""

        def check() -> None:
            one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
            count = max(1, self.keep + 1 - len(self.steps()))
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(self.folder).free
            except OSError as error:
                raise StorageError(f"checkpoints cannot be written to {self.folder}: {error}") from error
            if free < 1.1 * count * one:
                needed = f"{count} checkpoints take {1.1 * count * one / 1e9:.2f} GB"
                raise StorageError(f"{self.folder} has {free / 1e9:.2f} GB free; {needed}")

        processes.everywhere(check, only_first=True)

    def restore(self, target: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state shaped and placed like `target`, metadata) of one step, or of the newest that verifies.

        Without `step`, a damaged checkpoint is set aside with a warning and the one before it is tried; None means that
        the folder never held one. Raises StorageError when a given step is missing or damaged, or when all are.
        """
        if step is not None:
            return self._read(step, target)
        while (candidate := processes.agreed(max(self.steps(), default=-1))) >= 0:
            try:
                return self._read(candidate, target)
            except DamagedCheckpoint as error:
                bad = self.folder / f"{candidate:08d}"
                processes.everywhere(functools.partial(_set_aside, bad), only_first=True)
                warnings.warn(f"{error}; it was set aside as {bad.name}{CORRUPT}", stacklevel=2)
        aside = sorted(p.name for p in self.folder.glob(f"*{CORRUPT}"))
        if aside:  # a run that once was must not start anew in silence
            raise StorageError(f"no checkpoint in {self.folder} can be read; damaged ones are {', '.join(aside)}")
        return None

    def _read(self, step: int, target: Any) -> tuple[int, Any, dict[str, Any]]:
        folder = self.folder / f"{step:08d}"
        manifest = processes.everywhere(lambda: verify(folder, part=processes.share(), step=step))
        metadata = json.loads((folder / METADATA).read_text())
        wanted = _flat(target)
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in wanted.items()}
        with ocp.StandardCheckpointer() as checkpointer:
            saved = dict(checkpointer.metadata(folder / ARRAYS).item_metadata)
            _compare(folder, saved, abstract)
            arrays = checkpointer.restore(folder / ARRAYS, abstract)
        found = jax.device_get(checksums(arrays))
        for name, sum_ in manifest.get("checksums", {}).items():
            if int(found[name]) != sum_:
                raise DamagedCheckpoint(f"{folder}: {name} is not what was on the devices when it was saved")
        leaves = [arrays[name] for name in wanted]
        return step, jax.tree.unflatten(jax.tree.structure(target), leaves), metadata

    def _clean(self, *folders: Path) -> None:
        """Remove folders; the manifest goes first, so that a half-removed checkpoint is not listed."""
        for folder in folders:
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def _set_aside(folder: Path) -> None:
    """Rename a damaged checkpoint so that nothing lists it, and everybody can look at it."""
    aside = folder.with_name(folder.name + CORRUPT)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


@jax.jit
def checksums(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Of every array a uint32 in which each bit and its place count: the same on every mesh, because whole numbers are
    added and multiplied, modulo 2^32, in any order.
    """
    return {name: _checksum(array) for name, array in arrays.items()}


def _checksum(array: Array) -> Array:
    width = array.dtype.itemsize * 8
    if array.dtype == jnp.bool_:
        bits = array.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits * (jnp.uint32(2) * place + jnp.uint32(1)), dtype=jnp.uint32)


def _compare(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raise StorageError that lists the leaves in which a checkpoint differs from the state to be restored."""
    differences = [f"{name} is missing" for name in wanted if name not in saved]
    differences += [f"{name} is not part of this run" for name in saved if name not in wanted]
    differences += [
        f"{name} has shape {tuple(saved[name].shape)}, not {tuple(leaf.shape)}"
        for name, leaf in wanted.items()
        if name in saved and tuple(saved[name].shape) != tuple(leaf.shape)
    ]
    differences += [
        f"{name} is {saved[name].dtype}, not {leaf.dtype}"
        for name, leaf in wanted.items()
        if name in saved and saved[name].dtype != leaf.dtype
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
