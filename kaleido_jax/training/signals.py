"""SIGTERM and Ctrl-C as something the loop asks for between two steps, so that it can save before it ends."""

import signal
from types import FrameType

from kaleido_jax.errors import ExitCode


class Signals:
    """While it is entered, the first signal is remembered; a second Ctrl-C ends the program at once."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, object] = {}

    @property
    def received(self) -> bool:
        return self._number is not None

    @property
    def name(self) -> str:
        return "" if self._number is None else "Ctrl-C" if self._number == signal.SIGINT else "SIGTERM"

    @property
    def exit_code(self) -> ExitCode:
        """Of a run that a signal ended, with everything saved."""
        return ExitCode.INTERRUPTED if self._number == signal.SIGINT else ExitCode.PREEMPTED

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._number = number
