"""What hangs or crashes does not end a measurement: with a worker that does both."""

import pathlib
import sys

from kaleido_jax.testing import supervise

WORKER = """
import os, sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
from supervise import Journal  # without jax, which takes long to import
journal = Journal(Path({path!r}))
for name in ("fine", "hangs", "crashes", "fine too"):
    if name in journal.finished() or journal.failed("programs", name):
        continue
    journal.begin("programs", name)
    if name == "hangs":
        time.sleep(60)
    if name == "crashes":
        os.abort()
    journal.finish(name, name.upper())
"""


def test_what_hangs_or_crashes_is_left_out_and_the_rest_is_measured(tmp_path):
    path = tmp_path / "journal"
    command = [sys.executable, "-c", WORKER.format(folder=str(pathlib.Path(supervise.__file__).parent), path=str(path))]
    journal = supervise.Journal(path)
    assert supervise.supervise(command, journal, seconds=120.0, patience=4.0)
    assert journal.finished() == {"fine": "FINE", "fine too": "FINE TOO"}
    assert journal.failed("programs", "hangs") == "nothing happened for 4 s"
    assert journal.failed("programs", "crashes") == "the process ended with -6"
    assert not supervise.supervise([sys.executable, "-c", "1 / 0"], journal, seconds=60.0, patience=9.0)  # no worker
