"""SIGTERM and Ctrl-C as something the loop asks for between two steps, so that it can save before it ends.

Where several processes train, SIGTERM goes to jax's preemption service, with which they agree on the step to stop at.
"""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

from kaleido_jax.errors import ExitCode


class Signals:
    """While it is entered, the first signal is remembered; a second Ctrl-C ends the program at once."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def received(self) -> bool:
        return self._number is not None

    def stop_at(self, step: int) -> bool:
        """Whether to stop before this step; the same on every process, which all have to ask before every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self._number = signal.SIGTERM
        return self.received

    @property
    def name(self) -> str:
        return "" if self._number is None else "Ctrl-C" if self._number == signal.SIGINT else "SIGTERM"

    @property
    def exit_code(self) -> ExitCode:
        """Of a run that a signal ended, with everything saved."""
        return ExitCode.INTERRUPTED if self._number == signal.SIGINT else ExitCode.PREEMPTED

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ():
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._number = number
