"""Where a run's time went, over all its restarts: steps, and everything that is none."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kaleido_jax.parallel import processes

STEPS, DATA, COMPILING, SAVING, EVALUATING, DRAWING = "steps", "data", "compiling", "saving", "evaluating", "drawing"


class Clock:
    """Seconds by what they went to, kept in a file that is written with every checkpoint.

    What a run did after its newest checkpoint and then lost, what it waited to be started again, and what a start takes
    is the rest of the time since the first start.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        try:
            stored = json.loads(self._path.read_text())
            self._started, self.spent = float(stored["started"]), dict(stored["spent"])
        except (OSError, ValueError, KeyError, TypeError):
            self._started, self.spent = time.time(), {}

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """What happens within it is counted as `what`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.spent[what] = self.spent.get(what, 0.0) + time.monotonic() - began

    def save(self) -> None:
        """Write the file, whole or not at all; of several processes the first does."""
        if processes.is_first():
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"started": self._started, "spent": self.spent}))
            temporary.replace(self._path)

    def summary(self) -> str:
        """One line: the share of all time since the first start that steps took, and what the rest went to."""
        wall = max(time.time() - self._started, 1e-9)
        rest = {name: seconds for name, seconds in self.spent.items() if name != STEPS}
        rest["starting and lost work"] = max(0.0, wall - sum(self.spent.values()))
        shares = [f"{name} {seconds / wall:.1%}" for name, seconds in sorted(rest.items(), key=lambda pair: -pair[1])]
        good = self.spent.get(STEPS, 0.0) / wall
        return f"goodput {good:.1%} of {wall:.0f} s since the first start; {', '.join(shares)}"
