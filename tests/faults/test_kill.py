"""Runs that are killed and started again end with the losses and weights of one that was not, to the bit.

KALEIDO_KILLS=200 kills at that many random moments instead of a few.
"""

import contextlib
import os
import random
import signal
import time

from tests.faults.conftest import losses, weights
from tests.faults.points import POINTS

KILLS = int(os.environ.get("KALEIDO_KILLS", "6"))


def checkpoints(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").glob("*") if not path.name.startswith("."))


def assert_same(workdir, undisturbed):
    assert losses(workdir) == losses(undisturbed)
    found, wanted = weights(workdir), weights(undisturbed)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert checkpoints(workdir) == checkpoints(undisturbed)  # nothing half-written is left


def test_killed_at_every_named_point(launcher, smoke, undisturbed, tmp_path):
    """One run, killed once at each point on its way."""
    command = smoke(tmp_path)
    for point in POINTS:
        # The first time would be before anything is there to be lost, or in restoring.
        count = 2 if point in ("a batch is read", "a step begins", "saving begins", "arrays leave the device") else 1
        assert launcher.run(command, kill=(point, count)) == -signal.SIGKILL, (point, launcher.said)
        assert len([name for name in checkpoints(tmp_path) if not name.isdigit()]) <= 1
    assert launcher.run(command) == 0, launcher.said
    assert_same(tmp_path, undisturbed)


def test_killed_at_random_moments(launcher, smoke, undisturbed, tmp_path):
    moments = random.Random(0)
    command, killed, number = smoke(tmp_path / "0"), 0, 0
    while killed < KILLS:
        launcher.output.write_text("")
        process = launcher.start(command)
        time.sleep(moments.uniform(0.2, 6.0))
        with contextlib.suppress(ProcessLookupError):  # it was over before
            os.kill(process, signal.SIGKILL)
        status = launcher.status()
        killed += status == -signal.SIGKILL
        if status == 0:
            assert_same(tmp_path / f"{number}", undisturbed)
            number += 1
            command = smoke(tmp_path / f"{number}")
    assert launcher.run(command) == 0, launcher.said
    assert_same(tmp_path / f"{number}", undisturbed)
