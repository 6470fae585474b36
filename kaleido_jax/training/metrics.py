"""What a run writes down: `metrics.jsonl`, one line a step, and a line on the terminal with the rate and time left.

Of several processes only the first writes.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from kaleido_jax.parallel import processes
from kaleido_jax.training.tensorboard import EventFile


class Metrics:
    """Appends lines to `metrics.jsonl`; on a resumed run, lines after the restored step are dropped first.

    The numbers go to an event file in the folder `tensorboard` too, if one is given.
    """

    def __init__(self, path: str | Path, *, step: int = 0, tensorboard: str | Path | None = None) -> None:
        self.path = Path(path)
        self._file, self._events = None, None
        if not processes.is_first():
            return
        kept = []
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError):
                    break  # a line cut short by a crash; nothing after it is of this run
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        temporary.replace(self.path)
        self._file = self.path.open("a", buffering=1)
        self._events = EventFile(tensorboard) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float | int | str | list[str]]) -> None:
        """One line: the step, then the values; floats to six significant digits except the loss, which is exact."""
        record = {"step": step} | {
            name: float(f"{value:.6g}") if isinstance(value, float) and name != "loss" else value
            for name, value in values.items()
        }
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        if self._events is not None:
            part = "heldout" if "heldout" in values else "train"
            numbers = {
                f"{part}/{k}": float(v) for k, v in values.items() if isinstance(v, int | float) and k != "heldout"
            }
            self._events.write(step, numbers)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._events):
            if file is not None:
                file.close()


class Rate:
    """Steps per second over a sliding window, so that compiling and evaluation do not blur it for long."""

    def __init__(self, window: int = 20) -> None:
        self._window = window
        self._durations: list[float] = []

    def add(self, seconds: float, steps: int = 1) -> None:
        self._durations = [*self._durations, *[seconds / steps] * steps][-self._window :]

    @property
    def steps_per_second(self) -> float:
        """0 before the first step."""
        return len(self._durations) / total if (total := sum(self._durations)) > 0 else 0.0


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s, or 12 s."""
    seconds = max(0, round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def bar(share: float, width: int = 20) -> str:
    """A share of 1 as [#####...............]."""
    return f"[{'#' * round(min(max(share, 0.0), 1.0) * width):.<{width}}]"


def report(message: str) -> None:
    """A line on standard error, with the time of day, of the first process alone."""
    if processes.is_first():
        print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
