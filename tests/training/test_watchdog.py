"""A process whose main thread no longer gets on is ended by another one, and says where it was."""

import subprocess
import sys

from kaleido_jax.errors import ExitCode

STUCK = """
import time
from kaleido_jax.training.watchdog import Watchdog

with Watchdog({seconds}) as watchdog:
    for step in range(5):
        watchdog.beat(f"step {{step}}")
        time.sleep(0.05)
    watchdog.beat("step 5", pause={pause})
    time.sleep({sleep})
print("gone on")
"""


def run(seconds: float, sleep: float, pause: bool = False) -> subprocess.CompletedProcess:
    script = STUCK.format(seconds=seconds, sleep=sleep, pause=pause)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_what_hangs_is_ended_with_the_stacks_of_all_threads():
    found = run(seconds=4, sleep=50)
    assert found.returncode == ExitCode.PEER_LOST
    assert "step 5 has not ended in time" in found.stderr and "gone on" not in found.stdout
    assert 'File "<string>"' in found.stderr and "in _watch" in found.stderr


def test_an_announced_pause_and_no_limit_may_take_longer():
    for found in (run(seconds=2, sleep=3, pause=True), run(seconds=0, sleep=1)):
        assert (found.returncode, found.stdout) == (0, "gone on\n"), found.stderr
