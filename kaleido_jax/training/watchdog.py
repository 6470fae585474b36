"""Ends a process that no longer gets on: a peer that hangs, a device, a loader, a disk that never answers."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from kaleido_jax.errors import ExitCode


class Watchdog:
    """While it is entered, a thread ends the process with PEER_LOST if `beat` is not called in time.

    The main thread may wait in a compiler, in a collective or for a file: nothing but another thread gets through then.
    What every thread was doing goes to standard error first. The other processes follow when they miss this one.

    Args:
      seconds: from one beat to the next; 0 waits for ever.
      patience: how many times as long the first beat and announced pauses may take.
    """

    def __init__(self, seconds: float, *, patience: float = 6.0) -> None:
        self.seconds, self._patience = seconds, patience
        self._what, self._deadline = "start", float("inf")
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def beat(self, what: str, *, pause: bool = False) -> None:
        """What begins now. pause: it is known to take longer than usual, such as compiling or saving."""
        limit = self.seconds * (self._patience if pause else 1.0)
        self._what, self._deadline = what, time.monotonic() + limit if limit else float("inf")

    def _watch(self) -> None:
        while not self._left.wait(min(1.0, self.seconds / 10)):
            if time.monotonic() > self._deadline:
                faulthandler.dump_traceback(all_threads=True)
                print(
                    f"kaleido: {self._what} has not ended in time; this process or one that it waits for hangs. "
                    "Start all processes again: they go on from the newest checkpoint.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(ExitCode.PEER_LOST)

    def __enter__(self) -> "Watchdog":
        self.beat("the first step", pause=True)
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
