"""Ctrl-C and SIGTERM that work at once, even while a compiler holds the main thread for half a minute."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from kaleido_jax.errors import ExitCode
from kaleido_jax.media.storage import remove_temporaries

GRACE_SECONDS = 1.5
_ENDINGS = {signal.SIGINT: ("Ctrl-C", ExitCode.INTERRUPTED), signal.SIGTERM: ("SIGTERM", ExitCode.TERMINATED)}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it, both signals unwind the program as usual; if that has not begun to work after a moment, a thread
    removes the temporary files and ends the process.

    Python runs its signal handlers between two instructions of the main thread, and a call into the compiler is one
    instruction. The byte that a signal writes to the wakeup descriptor gets through in any case.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    left = threading.Event()

    def watch() -> None:
        with reader:
            while number := reader.recv(1):
                if number[0] in _ENDINGS and not left.wait(GRACE_SECONDS):
                    name, code = _ENDINGS[signal.Signals(number[0])]
                    remove_temporaries()
                    print(f"\nkaleido: stopped by {name}.", file=sys.stderr, flush=True)
                    os._exit(code)

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(int(ExitCode.TERMINATED))

    def unraisable(event: "sys.UnraisableHookArgs") -> None:
        # A signal that lands in a garbage collection callback is lost there; the watcher ends the process.
        if not issubclass(event.exc_type, KeyboardInterrupt | SystemExit):
            hook(event)

    hook = sys.unraisablehook
    sys.unraisablehook = unraisable
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, terminate)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        left.set()
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
        writer.close()  # which ends the watcher
        watcher.join()
