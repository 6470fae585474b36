"""The scripts in tools/launch/: what they would run, without a cluster."""

import os
import pathlib
import shlex
import subprocess

import pytest
import yaml

from kaleido_jax.cli.main import parser_of

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / "tools" / "launch"
RUN = ["configs/kaleido_14b_pretrain.py", "runs/a folder", "data.folder=encoded", "options=a=b,c=$HOME"]


def run(script: str, *words: str, code: int = 0, **environment: str) -> str:
    result = subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.returncode == code, result.stderr
    return result.stdout if code == 0 else result.stderr


def trained(words: list[str]) -> dict:
    """The command line of `kaleido train` as the program reads it."""
    place = next(i for i, word in enumerate(words) if word.endswith("kaleido"))
    assert words[place + 1] == "train"
    return vars(parser_of("train").parse_args(words[place + 2 :]))


def check(arguments: dict) -> None:
    assert (arguments["config"], arguments["workdir"], arguments["overrides"]) == (RUN[0], RUN[1], RUN[2:])
    assert arguments["distributed"] == "auto"


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.glob("*.sh")))
def test_scripts_are_whole_and_say_how_they_are_used(script):
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
    assert os.access(LAUNCH / script, os.X_OK)
    assert "usage: " in run(script, "alone", code=2)


def test_slurm():
    words = shlex.split(run("slurm.sh", *RUN, KALEIDO_DRY_RUN="1"))
    assert words[0] == "srun"
    check(trained(words))


@pytest.mark.parametrize(("codes", "status", "starts"), [("75 77 0", 0, 3), ("134 65", 65, 2), ("77 77 77", 77, 2)])
def test_slurm_starts_again_what_can_go_on(tmp_path, codes, status, starts):
    """A stand-in for srun ends with one code after the other."""
    (tmp_path / "codes").write_text(codes)
    (tmp_path / "srun").write_text(
        f'#!/bin/bash\nread -r code rest < {tmp_path}/codes\necho "$rest" > {tmp_path}/codes\n'
        f"echo >> {tmp_path}/starts\nexit $code\n"
    )
    (tmp_path / "sleep").write_text("#!/bin/bash\n")
    for name in ("srun", "sleep"):
        (tmp_path / name).chmod(0o755)
    restarts = "1" if status == 77 else "5"
    run("slurm.sh", *RUN, code=status, PATH=f"{tmp_path}:{os.environ['PATH']}", KALEIDO_RESTARTS=restarts)
    assert len((tmp_path / "starts").read_text().splitlines()) == starts


def test_tpu_vm(tmp_path):
    (tmp_path / "gcloud").write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" > {tmp_path}/words\n')
    (tmp_path / "gcloud").chmod(0o755)
    run("tpu_vm.sh", "pod", "us-east5-a", *RUN, PATH=f"{tmp_path}:{os.environ['PATH']}")
    words = (tmp_path / "words").read_text().split("\0")[:-1]
    assert words[:6] == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone"]
    subprocess.run(["bash", "-n", "-c", words[-1]], check=True)
    line = next(line for line in words[-1].splitlines() if " train " in line)
    check(trained(shlex.split(line.split("&&")[0])))


def test_gke():
    manifest = yaml.safe_load(run("gke.sh", "image:1", "kaleido", "tpu-v5p-slice", "4x4x4", "2", *RUN))
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 16, 16)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    check(trained([*container["command"], *container["args"]]))
