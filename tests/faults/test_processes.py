"""Two processes that train together, by gloo: they give what one gives, and neither outlives the other."""

import os
import signal
import socket
import time

import numpy as np
import pytest

from kaleido_jax.errors import ExitCode
from tests.faults.conftest import Launcher, losses

STEPS = 8


@pytest.fixture(scope="module")
def launchers(tmp_path_factory):
    pair = [Launcher(tmp_path_factory.mktemp(f"process{rank}")) for rank in range(2)]
    yield pair
    for launcher in pair:
        launcher.close()


@pytest.fixture(scope="module")
def command(smoke):
    return lambda folder: [
        *smoke(folder, train__steps=STEPS),
        "mesh.fsdp=2",
        "train.evaluate_every=4",
        "data.workers=0",
    ]


def start(launchers, arguments):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    for launcher in launchers:
        launcher.output.write_text("")
    return [
        launcher.start([*arguments, "--distributed", f"{address},2,{rank}"], devices=1)
        for rank, launcher in enumerate(launchers)
    ]


def wait_for_step(folder, step, launchers):
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline, [launcher.said for launcher in launchers]
        time.sleep(0.02)


def test_two_processes_train_as_one_and_survive_losing_each_other(launcher, launchers, command, tmp_path):
    """Killed, stopped, and finished: losses are those of one process with as many devices."""
    arguments = command(tmp_path / "two")
    long = [*arguments, "train.steps=100000", "optimizer.final_fraction=1.0", "optimizer.warmup_steps=1"]

    processes = start(launchers, long)
    wait_for_step(tmp_path / "two", 8, launchers)  # by then a checkpoint has been finished
    os.kill(processes[1], signal.SIGKILL)
    began = time.monotonic()
    first, second = (launcher.status() for launcher in launchers)
    assert time.monotonic() - began < 60
    assert second == -signal.SIGKILL
    assert first in (ExitCode.PEER_LOST, -signal.SIGABRT), launchers[0].said
    assert "lost another one" in launchers[0].said or "coordination service" in launchers[0].said.lower()

    processes = start(launchers, long)
    wait_for_step(tmp_path / "two", 11, launchers)
    os.kill(processes[1], signal.SIGTERM)  # one is told; both stop at one step
    assert [launcher.status() for launcher in launchers] == [ExitCode.PREEMPTED] * 2, [x.said for x in launchers]
    assert "continuing from step" in launchers[0].said
    stopped = max(losses(tmp_path / "two"))

    flat = ["optimizer.final_fraction=1.0", "optimizer.warmup_steps=1", f"train.steps={stopped + 2}"]
    start(launchers, [*arguments, *flat])
    assert [launcher.status() for launcher in launchers] == [0, 0], [x.said for x in launchers]
    assert (tmp_path / "two" / "model" / "transformer.safetensors").is_file()

    assert launcher.run([*command(tmp_path / "one"), *flat], devices=2) == 0, launcher.said
    found, wanted = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert list(found) == list(wanted) == list(range(1, stopped + 3))
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-6)


def test_a_process_whose_peer_hangs_is_ended_by_its_watchdog(launchers, command, tmp_path):
    """The stopped one's threads do not beat either; the other one's step has not ended in time.

    Nothing but steps: while it saves or evaluates, a process waits longer than jax does for a sign of life.
    """
    endless = ["train.steps=100000", "train.evaluate_every=100000", "checkpoint.every=100000"]
    processes = start(launchers, [*command(tmp_path), *endless, "train.stall_seconds=10"])
    wait_for_step(tmp_path, 3, launchers)
    os.kill(processes[1], signal.SIGSTOP)
    assert launchers[0].status() == ExitCode.PEER_LOST, launchers[0].said
    assert "has not ended in time" in launchers[0].said and "Thread" in launchers[0].said
    os.kill(processes[1], signal.SIGKILL)
    assert launchers[1].status() == -signal.SIGKILL
