"""A run of `configs/miniature_smoke.py` that was never disturbed, and a way to start others and kill them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from kaleido_jax.testing.tiny import save_untrained_vae

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "configs" / "miniature_smoke.py")
STEPS = 12


def pytest_collection_modifyitems(config, items):
    """Tests that start processes by the dozen run where this folder is asked for, not in passing."""
    if any("faults" in str(argument) for argument in config.args):
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and "smoke" in item.fixturenames:
            item.add_marker(pytest.mark.skip(reason="minutes of real runs; pytest tests/faults runs it"))


class Launcher:
    """Starts one run at a time; see launcher.py."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the sake of compile time
        environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        script = str(Path(__file__).with_name("launcher.py"))
        self._process = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        assert "ready" in self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        assert line, "the launcher has ended"
        return json.loads(line)

    def start(
        self,
        arguments: list[str],
        *,
        kill: tuple[str, int] | None = None,
        devices: int = 1,
        largest_file: int | None = None,
    ) -> int:
        """Start a run and return its process."""
        job = {"arguments": arguments, "output": str(self.output), "kill": kill, "devices": devices}
        job["largest_file"] = largest_file
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._answer()["pid"]

    def status(self) -> int:
        """How the run ended: an exit code, or minus a signal."""
        return self._answer()["status"]

    def run(self, arguments: list[str], **options) -> int:
        self.output.write_text("")
        self.start(arguments, **options)
        return self.status()

    @property
    def said(self) -> str:
        return self.output.read_text()

    def close(self) -> None:
        """Also ends a run that a failed test left behind."""
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def launcher(tmp_path_factory):
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """(workdir) -> the arguments of a run with a VAE that was never trained, and latents that all runs share."""
    vae = save_untrained_vae(tmp_path_factory.mktemp("vae"))
    latents = tmp_path_factory.mktemp("latents")

    def arguments(workdir: Path, **overrides) -> list[str]:
        fields = {
            "vae": vae,
            "data.folder": latents,
            "data.size": 32,
            "data.samples": 16,
            "data.heldout": 8,
            "transformer.in_channels": 4,
            "transformer.out_channels": 4,
            "transformer.layers": 1,
            "train.steps": STEPS,
            "train.log_every": 1,
            "train.evaluate_every": 6,
            "train.sample_every": 1000,
            "checkpoint.every": 2,
            "sampling.steps": 1,
            "sampling.pictures": 4,
        }
        fields |= {name.replace("__", "."): value for name, value in overrides.items()}
        return ["train", SMOKE, "--workdir", str(workdir), *(f"{name}={value}" for name, value in fields.items())]

    return arguments


def losses(workdir: Path) -> dict[int, float]:
    """The loss of every step; a step that was trained twice stands there once."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [(line["step"], line["loss"]) for line in lines if "heldout" not in line]
    assert len(found) == len(dict(found))
    return dict(found)


def weights(workdir: Path) -> dict[str, bytes]:
    """The final checkpoint's arrays and the exported model, by name."""
    import orbax.checkpoint as ocp

    folder = workdir / "checkpoints" / f"{STEPS:08d}"
    with ocp.StandardCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(folder / "arrays").item_metadata
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for k, x in dict(shapes).items()}
        arrays = checkpointer.restore(folder / "arrays", target)
    found = {name: np.asarray(array).tobytes() for name, array in arrays.items()}
    return found | {path.name: path.read_bytes() for path in (workdir / "model").glob("*.safetensors")}


@pytest.fixture(scope="session")
def undisturbed(launcher, smoke, tmp_path_factory):
    """The folder of a run that went through, after a first one that filled the caches."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert launcher.run(smoke(workdir)) == 0, launcher.said
    return workdir
