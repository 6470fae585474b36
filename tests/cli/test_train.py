"""`kaleido train` as a user runs it: overrides, exporting, and a real SIGTERM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kaleido_jax.bundle import load_bundle
from kaleido_jax.cli.main import main
from kaleido_jax.errors import ExitCode
from kaleido_jax.testing.tiny import save_untrained_vae

SMOKE = str(Path(__file__).parents[2] / "configs" / "miniature_smoke.py")


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """The smoke config with a VAE that was never trained, small enough to encode at once."""
    folder = save_untrained_vae(tmp_path_factory.mktemp("vae"))
    return [
        f"vae={folder}",
        f"data.folder={tmp_path_factory.mktemp('latents')}",
        "data.size=32",
        "data.samples=16",
        "data.heldout=8",
        "transformer.in_channels=4",
        "transformer.out_channels=4",
        "train.evaluate_every=1000",
        "train.sample_every=1000",
        "sampling.steps=2",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([SMOKE, "train.stpes=4"], ["train.stpes", "did you mean train.steps?"]),
        ([SMOKE, "train.steps=few"], ["train.steps=few", "100"]),
        ([SMOKE, "train.batch=0"], ["train.batch must be at least 1"]),
        (["configs/miniature_smok.py"], ["there is no config file"]),
        ([SMOKE, "vae=nowhere"], ["nowhere is not a model folder"]),
        ([SMOKE, "--export", "model"], ["no checkpoint"]),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, words, overrides, tmp_path, capsys):
    extra = overrides if "--export" in arguments else []
    code = main(["train", *arguments[:1], "--workdir", str(tmp_path), *arguments[1:], *extra])
    assert code in (ExitCode.USAGE, ExitCode.BAD_INPUT)
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for word in words:
        assert word in message


def test_sigterm_saves_and_the_same_command_continues(overrides, tmp_path):
    """A real process stopped by a real signal, then continued to the end, then exported."""
    command = [sys.executable, "-c", "from kaleido_jax.cli import program; program()"]
    command += [
        "train",
        SMOKE,
        "--workdir",
        str(tmp_path / "run"),
        *overrides,
        "train.steps=100000",
        "train.log_every=1",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 3):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no step within four minutes"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.PREEMPTED, errors
    assert "run the same command to continue" in errors
    stopped = len(metrics.read_text().splitlines())

    arguments = ["train", SMOKE, "--workdir", str(tmp_path / "run"), *overrides]
    assert main([*arguments, "--export", str(tmp_path / "early")]) == ExitCode.DONE
    assert load_bundle(tmp_path / "early").config.name == "miniature-smoke"
    assert main([*arguments, f"train.steps={stopped + 2}", "train.log_every=1"]) == ExitCode.DONE
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "heldout" not in line] == list(range(1, stopped + 3))
    assert (tmp_path / "run" / "model" / "transformer.safetensors").is_file()
