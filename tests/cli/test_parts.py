"""A file of prompts shared out over jobs, and which share is whose."""

import argparse
import importlib.util
import json
import pathlib
import sys

import pytest

from kaleido_jax.cli import generate
from kaleido_jax.cli.main import parser_of
from kaleido_jax.cli.parts import part, part_of_cluster

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "generate_on_mesh.py"


def test_a_part_is_counted_from_1():
    assert part("2/8") == (1, 8)
    for wrong in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a part such as 2/8"):
            part(wrong)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, "4/8"),
        ({"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, "2/4"),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "2"}, "1/2"),
        ({"SLURM_PROCID": "3"}, None),
    ],
)
def test_clusters_say_which_part(environment, wanted):
    assert part_of_cluster(environment) == wanted


def jobs(folder, *words):
    args = parser_of("generate").parse_args(["--prompts", str(folder / "requests.jsonl"), "--out", "videos", *words])
    return [job.out.name for job in generate._jobs(args)]


def test_every_line_is_in_one_part_and_keeps_its_name(tmp_path):
    lines = [json.dumps({"prompt": f"video {i}", "references": ["a.png"]}) for i in range(5)]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    assert jobs(tmp_path, "--part", "1/2") == ["0001.mp4", "0003.mp4", "0005.mp4"]
    assert jobs(tmp_path, "--part", "2/2") == ["0002.mp4", "0004.mp4"]
    assert len(jobs(tmp_path)) == 5


def test_a_host_runs_its_share_again_if_that_can_help(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("generate_on_mesh", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    ran, codes = [], []

    def run(command, check):
        ran.append(command)
        return argparse.Namespace(returncode=codes.pop(0))

    monkeypatch.setattr(tool.subprocess, "run", run)
    words = ["requests.jsonl", "--out", "videos", "--mesh", "data=2", "--tries", "3", "--seed", "4"]
    for given, wanted in (([70, 0], 0), ([65], 65), ([70, 70, 70], 70)):
        codes[:] = given
        ran.clear()
        assert tool.main(words) == wanted and len(ran) == len(given)
    assert ran[0][0] == sys.executable
    args = parser_of("generate").parse_args(ran[0][ran[0].index("generate") + 1 :])
    assert (args.part, args.mesh, str(args.out), args.seed) == ((1, 2), "data=2", "videos", 4)
