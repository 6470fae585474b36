"""What a terminal shows while a video is made."""

import sys
import time
from types import TracebackType
from typing import Any

import tqdm


class Terminal:
    """A progress callback: a line for what takes a while, a bar with the time left for what has many steps."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._began = 0.0

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if total > 1:
            if self._bar is None:
                self._bar = tqdm.tqdm(
                    total=total, desc=f"kaleido: {what}", unit="step", file=sys.stderr, dynamic_ncols=True
                )
            self._bar.update(done - self._bar.n)
            if done == total:
                self._bar.close()
                self._bar = None
        elif done == 0:
            self._began = time.monotonic()
            print(f"kaleido: {what} (kept for the next run) ... ", end="", file=sys.stderr, flush=True)
        else:
            print(f"{time.monotonic() - self._began:.1f} s", file=sys.stderr, flush=True)
