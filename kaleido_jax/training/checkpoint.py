"""Checkpoints that are either whole or not there: orbax for the arrays, our own manifest for the truth.

A checkpoint is a folder named after its step; until its manifest is on disk it has a name that nothing lists. The
manifest also has a checksum of every array that the devices compute, whatever mesh it lies on: what is restored is what
was on the devices, not only what reached the disk. Where several processes save, each writes and hashes its own share.
"""

import functools
import json
import shutil
import threading
import time
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
PATIENCE = 600.0  # seconds


class Checkpoints:
    """The checkpoints of one run, in one folder; they are written while the run goes on."""

    def __init__(self, folder: str | Path, *, keep: int = 2, keep_every: int = 0) -> None:
        if keep < 1 or keep_every < 0:
            raise ValueError(
                f"checkpoint.keep must be at least 1 and checkpoint.keep_every 0, got {keep} and {keep_every}"
            )
        self.folder = Path(folder).absolute()
        self.keep, self.keep_every = keep, keep_every
        self._background: _Background | None = None

    def steps(self) -> list[int]:
        """Steps that have a manifest, oldest first. Reads the disk each time, on every process for itself."""
        return [step for step, whole in self._found() if whole]

    def _found(self) -> list[tuple[int, bool]]:
        """(step, whether it has a manifest) of everything that is called like a step."""
        if not self.folder.is_dir():
            return []
        named = (path for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir())
        return sorted((int(path.name), (path / MANIFEST).is_file()) for path in named)

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
        """Write a checkpoint and wait until it is on the disk, see `begin`."""
        self.begin(step, state, metadata)
        self.finish()

    def begin(self, step: int, state: Any, metadata: Mapping[str, Any]) -> None:
        """Start to write the pytree of arrays and the JSON metadata, then the manifest; old checkpoints are dropped.

        Returns as soon as the host has its copy of the arrays, which may then be donated. The checkpoint is listed when
        it is whole. The newest `keep` stay, and those of every `keep_every`-th step.

        Raises StorageError when it, or the one begun before, could not be written; those before stay as they were.
        """
        self.finish()
        final = self.folder / f"{step:08d}"
        if processes.agreed((final / MANIFEST).is_file()):
            return
        partial = self.folder / f"{step:08d}{PARTIAL}"
        arrays = _flat(state)
        sums = checksums(arrays)
        writer = ocp.StandardCheckpointer()

        def make_room() -> None:
            half = [self.folder / f"{found:08d}" for found, whole in self._found() if not whole]
            self._clean(*half, *self.folder.glob(f"*{PARTIAL}"))  # what killed runs left behind
            for left in self.folder.glob(f"*{HASHES}*"):
                left.unlink()
            partial.mkdir(parents=True)
            (partial / METADATA).write_text(json.dumps(dict(metadata), indent=1))

        try:
            for action, by_one in ((make_room, True), (lambda: writer.save(partial / ARRAYS, arrays), False)):
                processes.everywhere(functools.partial(self._storing, step, action), only_first=by_one)
        except StorageError:
            self._drop(partial)
            raise
        complete = functools.partial(self._complete, writer, step, partial, final, sums)
        self._background = _Background(functools.partial(self._storing, step, complete))

    @property
    def failed(self) -> bool:
        """Whether this process knows that the checkpoint begun last could not be written; `finish` says why."""
        return self._background is not None and self._background.failed

    def finish(self) -> None:
        """Wait until the checkpoint begun last is on the disk. Raises StorageError when it could not be written."""
        if self._background is None:
            return
        background, self._background = self._background, None
        try:
            processes.everywhere(background.join)
        except StorageError:
            self._drop(*self.folder.glob(f"*{PARTIAL}"))
            raise

    def _complete(
        self, writer: ocp.StandardCheckpointer, step: int, partial: Path, final: Path, sums: Mapping[str, Array]
    ) -> None:
        """What is done in the background, where processes meet by files alone: the devices are training."""
        with writer:
            writer.wait_until_finished()
        index, count = processes.share()
        entries = file_entries(partial, (index, count))
        if index:
            own = self.folder / f"{step:08d}{HASHES}{index}"
            temporary = own.with_name(f".{own.name}")
            temporary.write_text(json.dumps(entries))
            temporary.replace(own)
            return
        for other in (self.folder / f"{step:08d}{HASHES}{i}" for i in range(1, count)):
            _wait_for(other)
            entries |= json.loads(other.read_text())
            other.unlink()
        values = {name: int(value) for name, value in jax.device_get(sums).items()}
        write_manifest(partial, entries, step=step, checksums=values)
        partial.rename(final)
        sync(self.folder)
        for old in self.steps()[: -self.keep]:
            if not self.keep_every or old % self.keep_every:
                self._clean(self.folder / f"{old:08d}")

    def _drop(self, *folders: Path) -> None:
        if processes.is_first():
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

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
        while (candidate := processes.agreed(max((step for step, _ in self._found()), default=-1))) >= 0:
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


class _Background:
    """Something that a thread does; its error is kept until somebody waits for it."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action, self._error = action, None
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._action()
        except Exception as error:
            self._error = error

    @property
    def failed(self) -> bool:
        return self._error is not None

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _wait_for(path: Path) -> None:
    """Wait until another process has written a file. Raises StorageError after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not path.is_file():
        if time.monotonic() > deadline:
            raise StorageError(f"{path} was not written within {PATIENCE:g} s; do all processes see this folder?")
        time.sleep(0.02)


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
