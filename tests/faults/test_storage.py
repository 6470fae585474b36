"""Damaged files and full disks: everything is found before it is used, and nothing that was saved is lost.

Single damages of every file, falling back and setting aside are in tests/training/test_checkpoint.py.
"""

import os
import pathlib
import random
import shutil
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.errors import ExitCode, StorageError
from kaleido_jax.manifest import DamagedCheckpoint, verify
from kaleido_jax.training.checkpoint import Checkpoints, checksums
from tests.faults.conftest import losses
from tests.faults.test_kill import assert_same, checkpoints

MUTATIONS = 1000


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Steps 1 and 2 of a small state."""
    folder = tmp_path_factory.mktemp("checkpoints")
    numbers = np.random.default_rng(0).normal(size=(3, 40, 50)).astype(np.float32)
    for step in (1, 2):
        state = {"a.kernel": jnp.asarray(numbers[0] * step), "b": {"c": jnp.asarray(numbers[1:]), "n": jnp.int32(step)}}
        Checkpoints(folder).save(step, state, {"seconds": float(step)})
    return folder


def mutate(folder, file, older, draw):
    """Damage one file of a checkpoint in one way; False if that changed nothing."""
    content = file.read_bytes()
    kind = draw.choice(["flip", "flip", "flip", "zeros", "truncate", "delete", "swap", "older", "extra", "link"])
    changed = bytearray(content)
    if kind == "flip":
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "zeros":
        start = draw.randrange(len(content))
        changed[start : start + 4096] = bytes(len(changed[start : start + 4096]))
    elif kind == "truncate":
        del changed[draw.randrange(len(content)) :]
    elif kind == "swap":
        other = draw.choice([path for path in folder.rglob("*") if path.is_file()])
        changed = other.read_bytes()
        other.write_bytes(content)
    elif kind == "older":
        source = older / file.relative_to(folder)
        changed = source.read_bytes() if source.is_file() else content
    elif kind == "extra":
        file.with_name("extra").write_bytes(content)
        return True
    if kind in ("delete", "link"):
        file.unlink()
        if kind == "link":
            target = folder.parent / "elsewhere"
            target.write_bytes(content)
            file.symlink_to(target)
        return True
    file.write_bytes(changed)
    return bytes(changed) != content


def test_a_thousand_mutations_of_any_file_are_all_found(written, tmp_path):
    draw, older = random.Random(0), written / "00000001"
    names = [path.relative_to(written / "00000002") for path in (written / "00000002").rglob("*") if path.is_file()]
    assert len(names) >= 6
    folder, missed, done = tmp_path / "00000002", [], 0
    while done < MUTATIONS:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(written / "00000002", folder)
        name = names[done % len(names)]  # every file in turn, the manifest too
        if not mutate(folder, folder / name, older, draw):
            continue
        done += 1
        try:
            verify(folder, step=2)
        except DamagedCheckpoint:
            continue
        if (folder / name).read_bytes().split() != (written / "00000002" / name).read_bytes().split():
            missed.append((name, done))  # white space in the manifest says nothing
    assert missed == []


def test_what_is_restored_is_what_was_on_the_devices(written, tmp_path):
    """Damage before the files were hashed: in memory, on the way, or by the library that writes."""
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    state = {"a.kernel": jnp.zeros((40, 50)), "b": {"c": jnp.zeros((2, 40, 50)), "n": jnp.int32(0)}}
    Checkpoints(folder).restore(state, step=2)
    shutil.rmtree(folder / "00000002" / "arrays")
    shutil.copytree(folder / "00000001" / "arrays", folder / "00000002" / "arrays")
    from kaleido_jax.manifest import file_entries, write_manifest

    said = verify(written / "00000002", step=2)
    (folder / "00000002" / "manifest.json").unlink()
    write_manifest(folder / "00000002", file_entries(folder / "00000002"), step=2, checksums=said["checksums"])
    with pytest.raises(DamagedCheckpoint, match=r"a\.kernel is not what was on the devices"):
        Checkpoints(folder).restore(state, step=2)


def test_a_checksum_counts_every_bit_and_its_place():
    numbers = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    arrays = {
        "float": numbers,
        "bits": numbers > 0,
        "half": numbers.astype(jnp.bfloat16),
        "whole": np.arange(6, dtype=np.int32),
        "one": np.float32(2),
    }
    sums = {name: int(value) for name, value in checksums(arrays).items()}
    odd = 2 * np.arange(35, dtype=np.uint64) + 1
    assert sums["float"] == int((numbers.view(np.uint32).ravel().astype(np.uint64) * odd).sum() % 2**32)
    for name in ("float", "half", "whole"):
        changed = arrays[name].copy()
        changed.view(np.uint8).reshape(-1)[5] ^= 4
        assert int(checksums(arrays | {name: changed})[name]) != sums[name]
    assert int(checksums(arrays | {"float": numbers[::-1].copy()})["float"]) != sums["float"]


def test_a_disk_that_is_too_small_is_found_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1_000_000))
    state = {"a": jnp.zeros((90_000,))}
    with pytest.raises(StorageError, match=r"0\.00 GB free; 3 checkpoints take 0\.00 GB"):
        Checkpoints(tmp_path, keep=2).check_room(state)
    Checkpoints(tmp_path, keep=1).check_room(state)


def test_a_disk_that_fills_up_ends_the_run_and_loses_nothing(launcher, smoke, undisturbed, tmp_path):
    command = smoke(tmp_path, checkpoint__retries=0)
    assert launcher.run([*command, "train.steps=4"]) == 0
    kept = checkpoints(tmp_path)
    assert launcher.run(command, largest_file=100_000) == ExitCode.STORAGE, launcher.said
    assert "checkpoint 6 could not be written" in launcher.said
    assert checkpoints(tmp_path) == kept
    assert launcher.run(command) == 0, launcher.said
    assert losses(tmp_path).keys() == losses(undisturbed).keys()


def test_sigterm_again_and_again(launcher, smoke, undisturbed, tmp_path):
    """While the first step is compiled, in a step, and while the first signal is being obeyed."""
    command, stopped = smoke(tmp_path), 0
    metrics = tmp_path / "metrics.jsonl"
    for lines in (0, 1, 6):
        launcher.output.write_text("")
        process = launcher.start(command)
        wait_for(
            lambda lines=lines: "training" in launcher.said and len(metrics.read_text().splitlines()) >= lines, 120
        )
        began = time.monotonic()
        for _ in range(3):
            os.kill(process, signal.SIGTERM)
            time.sleep(0.05)
        status = launcher.status()
        assert status in (ExitCode.PREEMPTED, ExitCode.DONE), launcher.said
        assert not lines or time.monotonic() - began < 30  # what Kubernetes grants; compiling cannot be interrupted
        stopped += status == ExitCode.PREEMPTED
    assert stopped >= 2
    assert launcher.run(command) == 0, launcher.said
    assert_same(tmp_path, undisturbed)


def children(process: int) -> list[int]:
    found = []
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            try:
                with open(f"/proc/{folder}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                with open(f"/proc/{folder}/cmdline") as file:
                    if int(fields[1]) == process and fields[0] != "Z" and "spawn_main" in file.read():
                        found.append(int(folder))
            except OSError:
                continue
    return found


def gone(process: int) -> bool:
    try:
        return " Z " in pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return True


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks processes up in /proc")
def test_loader_processes_die_with_the_run_and_the_run_ends_when_they_die(launcher, smoke, undisturbed, tmp_path):
    command = smoke(tmp_path)
    launcher.output.write_text("")
    metrics = tmp_path / "metrics.jsonl"
    trained = lambda: metrics.is_file() and metrics.read_text()
    process = launcher.start([*command, "data.workers=1", "train.steps=100000"])
    wait_for(trained, 240)
    (worker,) = children(process)
    os.kill(worker, signal.SIGKILL)
    began = time.monotonic()
    assert launcher.status() == ExitCode.PEER_LOST, launcher.said
    assert time.monotonic() - began < 30 and "a process of the loader died" in launcher.said
    metrics.unlink()
    process = launcher.start([*command, "data.workers=1", "train.steps=100000"])
    wait_for(trained, 240)
    (worker,) = children(process)
    os.kill(process, signal.SIGKILL)
    assert launcher.status() == -signal.SIGKILL
    wait_for(lambda: gone(worker), 10)
