"""The process that jobs on untrusted or delicate media are forked from."""

import atexit
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

# What the memory of decoders and encoders begins with (see encoding.py); and one thread, because they fork.
ENVIRONMENT = {"MALLOC_PERTURB_": "165", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Helper:
    """A Python process with these arguments, started when it is first needed, and again when it has died."""

    def __init__(self, *arguments: str, bufsize: int = -1):
        self._command: Sequence[str] = (sys.executable, "-P", *arguments)  # -P keeps this folder off the module path
        self._bufsize = bufsize
        self._process: subprocess.Popen | None = None

    def started(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=self._bufsize,
                env={**os.environ, **ENVIRONMENT},
            )
            atexit.register(self.close)
        return self._process

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            self._process = None
