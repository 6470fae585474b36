"""Measure unattended: the work in a process of its own, which is started again without what hung or killed it.

Kernels that were never run on a device may wait forever, or end the process with an error that no handler sees; a long
measurement must not be lost to one of them. The worker keeps a journal of what it begins and what it has finished. The
supervisor watches the journal, ends a worker that has begun something and written nothing for too long, notes what that
was as failed, and starts another worker, which goes on behind what is finished and leaves out what failed.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Journal:
    """Lines of JSON in a file: what was begun, what failed and why, and the results of what is finished."""

    def __init__(self, path: Path):
        self.path = path

    def _write(self, **line: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # the last one may be cut short
        return [line for line in lines if kind in line]

    def begin(self, *what: str) -> None:
        self._write(begin=what)

    def fail(self, what: Sequence[str], reason: str) -> None:
        self._write(fail=what, reason=reason)

    def finish(self, name: str, result: Any) -> None:
        self._write(finish=name, result=result)

    def begun(self) -> list[str] | None:
        """What was begun last; None if nothing was."""
        lines = self._lines("begin")
        return lines[-1]["begin"] if lines else None

    def failed(self, *what: str) -> str | None:
        """Why this failed; None if it did not."""
        return next((line["reason"] for line in self._lines("fail") if line["fail"] == list(what)), None)

    def finished(self) -> dict[str, Any]:
        return {line["finish"]: line["result"] for line in self._lines("finish")}


def supervise(command: Sequence[str], journal: Journal, *, seconds: float, patience: float, starts: int = 6) -> bool:
    """Runs the command until it ends by itself, which is True, or `seconds` are over, or it was started too often.

    patience: seconds without a line in the journal after which a worker hangs.
    """
    over = time.monotonic() + seconds
    for _ in range(starts):
        journal.path.touch()
        before = len(journal.path.read_text())
        worker = subprocess.Popen(command, start_new_session=True)
        reason = _watch(worker, journal.path, over, patience)
        if reason is None:
            return True
        grown = len(journal.path.read_text()) > before
        what = journal.begun()
        if time.monotonic() >= over or what is None or not grown:
            return False
        journal.fail(what, reason)
        print(f"{', '.join(what)}: {reason}; going on without it", flush=True)
    return False


def _watch(worker: subprocess.Popen, path: Path, over: float, patience: float) -> str | None:
    """None once the worker has ended well; why not, once it has ended otherwise or been ended."""
    size, since = -1, time.monotonic()
    while True:
        try:
            code = worker.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            return None if code == 0 else f"the process ended with {code}"
        now = time.monotonic()
        if path.stat().st_size != size:
            size, since = path.stat().st_size, now
        if now > over or now - since > patience:
            os.killpg(worker.pid, signal.SIGKILL)  # compilers' processes as well
            worker.wait()
            return "the time was over" if now > over else f"nothing happened for {patience:.0f} s"
