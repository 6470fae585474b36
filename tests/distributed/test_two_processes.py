"""Two processes of two devices each give what one process gives: `jax.distributed` over gloo, on this machine."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from kaleido_jax.testing import relative_error
from tests.distributed.worker import arguments, forward

WORKER = pathlib.Path(__file__).with_name("worker.py")
ROOT = WORKER.parent.parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_workers(folder: pathlib.Path, count: int) -> list[dict]:
    """What each process reports; a process that fails or hangs fails the test with its output."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    address = f"127.0.0.1:{free_port()}"
    commands = [[sys.executable, str(WORKER), address, str(count), str(rank), str(folder)] for rank in range(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    workers = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    try:
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, output in zip(workers, outputs):
        assert worker.returncode == 0, output[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


def test_two_processes_equal_one(tmp_path: pathlib.Path):
    reports = run_workers(tmp_path, 2)
    # Each of the four devices adds the square of its own number: 0 + 1 + 4 + 9.
    assert [report["sum"] for report in reports] == [14.0, 14.0]
    assert [report["devices"] for report in reports] == [[2, 4], [2, 4]]

    # The batch lies over the processes and the parameters over the devices of each: sums are taken in another order,
    # which in float32 moves single values by a few units in the last place, 1e-7 of the norm.
    expected = np.asarray(jax.jit(forward)(*arguments()))
    assert relative_error(np.load(tmp_path / "velocity.npy"), expected) < 1e-5
