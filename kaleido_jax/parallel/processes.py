"""Several processes that work on one program, by `jax.distributed`; with one process everything here does nothing.

What the processes decide, they decide alike: a file is there or not because the first process says so, and an error on
one is an error on all. A process that dies takes the others with it within a minute, so that all can be started again.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from kaleido_jax.errors import InputError, KaleidoError, PeerLost, StorageError, UsageError, printable
from kaleido_jax.manifest import DamagedCheckpoint

T = TypeVar("T")

# Seconds. jax's own are 300, 100 and 300: a run would wait minutes for a process that is gone.
START, HEARTBEAT, SHUTDOWN = 120, 30, 10


@contextlib.contextmanager
def joined(where: str | None) -> Iterator[None]:
    """Within it, this process is one of those that `where` names.

    Args:
      where: None: it is alone. "auto": as Slurm, Open MPI, GKE or a TPU's own metadata say. "ADDRESS,COUNT,INDEX": of
        the first process as host:port, how many there are, and which one this is, from 0.

    Raises:
      UsageError: `where` cannot be read, or no cluster is found. PeerLost: another process has gone.
    """
    if where is None:
        yield
        return
    options = {} if where == "auto" else _parse(where)
    limits = {"heartbeat_timeout_seconds": HEARTBEAT, "shutdown_timeout_seconds": SHUTDOWN}
    try:
        jax.distributed.initialize(**options, initialization_timeout=START, **limits)
    except ValueError as error:
        raise UsageError(f"--distributed {where}: {error}; write ADDRESS,COUNT,INDEX") from error
    except jax.errors.JaxRuntimeError as error:
        raise PeerLost(f"not all processes came together within {START} s: {_first_line(error)}") from error
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise PeerLost(
            f"process {jax.process_index()} of {jax.process_count()} lost another one ({_first_line(error)}); start "
            "all again, and they go on from the newest checkpoint"
        ) from error
    jax.distributed.shutdown()


def _parse(where: str) -> dict[str, str | int]:
    address, *numbers = where.split(",")
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers) or ":" not in address:
        raise UsageError(f"--distributed is {printable(where)!r}; write auto, or ADDRESS,COUNT,INDEX as host:1234,8,0")
    count, index = map(int, numbers)
    if not index < count:
        raise UsageError(f"--distributed names process {index} of {count}; they are counted from 0")
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _first_line(error: Exception) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0], 160)


def is_first() -> bool:
    """Whether this process is the one that writes what only one may write."""
    return jax.process_index() == 0


def share() -> tuple[int, int]:
    """Which process this is, from 0, and of how many."""
    return jax.process_index(), jax.process_count()


def agreed(value: int) -> int:
    """The first process's value, on all of them."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def everywhere(action: Callable[[], T], *, only_first: bool = False) -> T | None:
    """What `action` returns, once it has ended on all processes; an error on one of them is an error on all.

    Args:
      only_first: only the first process does it; the others return None.

    Raises:
      KaleidoError: what the action raised here, or one of the same class where it failed on another process.
    """
    result, failed = None, None
    try:
        if is_first() or not only_first:
            result = action()
    except KaleidoError as error:
        failed = error
    if jax.process_count() > 1:
        code = 0 if failed is None else 1 + next(i for i, kind in enumerate(_KINDS) if isinstance(failed, kind))
        codes = np.asarray(multihost_utils.process_allgather(np.int32(code)))
        if failed is None and codes.max():
            raise _KINDS[codes.max() - 1](f"process {int(codes.argmax())} failed in this; see what it reports")
    if failed is not None:
        raise failed
    return result


_KINDS = (DamagedCheckpoint, StorageError, InputError, UsageError, KaleidoError)
