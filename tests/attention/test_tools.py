"""The programs that measure attention, on problems so small that they take seconds."""

import importlib
import json
import pathlib

import numpy as np
import pytest

TOOLS = pathlib.Path(__file__).resolve().parent.parent.parent / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def test_fractions_are_those_of_the_dense_mask(tool):
    for case in tool("attention_cases").cases(shrink=16):
        if case.mask is None:
            assert case.visible == 1.0 and case.visited(16, 16) == (1.0, 0.0)
            continue
        dense = np.asarray(case.mask.dense())[0]
        np.testing.assert_allclose(case.visible, dense.mean())
        visited, partial = case.visited(16, 16)
        assert case.visible <= visited and 0 <= partial <= visited


def test_the_benchmark_reports_every_program_and_says_what_is_missing(tool, tmp_path, capsys):
    words = ["--shrink", "16", "--repeats", "1", "--only", "documents", "--out", str(tmp_path), "--machine", "a test"]
    assert tool("bench_attention").main(words) == 0
    (path,) = tmp_path.glob("attention-cpu-*.json")
    report = json.loads(path.read_text())
    problem = report["problems"]["documents of block-causal video"]
    for kind in ("forward", "forward and gradients"):
        assert {"reference", "jax.nn xla", "torch sdpa"} <= set(problem[kind])
        assert problem[kind]["reference"]["milliseconds"] > 0
    assert problem["forward"]["torch flex_attention"] == "is for GPUs"
    assert report["device"] == "cpu" and 0 < problem["f"] < 1
    assert "TFLOP/s" in capsys.readouterr().out


def test_nothing_begins_once_the_time_is_over(tool, capsys):
    assert tool("bench_attention").main(["--shrink", "16", "--seconds", "-1", "--repeats", "1"]) == 0
    assert "ms" not in capsys.readouterr().out


def test_the_tuner_writes_the_fastest_and_keeps_other_devices(tool, tmp_path, monkeypatch):
    table, tune = tmp_path / "table.json", tool("tune_attention")
    table.write_text('{"other": {"pallas_tpu": {"forward": [512, 1024]}}}')
    seconds = {(64, 64, 4): 2.0, (128, 64, 8): 3.0}
    monkeypatch.setattr(tune, "CANDIDATES", {"pallas_triton": {"forward": [(7, 7, 7), *seconds]}})
    ran = []

    def fastest(runs, repeats):
        for run in runs.values():
            ran.append(run())
        return dict.fromkeys(runs, seconds[tuple(sizes)])

    programs = tune.programs

    def remember(backend, kernel, candidate, *rest):
        sizes[:] = candidate
        return programs(backend, kernel, candidate, *rest)

    sizes: list[int] = []
    monkeypatch.setattr(tune, "programs", remember)
    monkeypatch.setattr(tune, "fastest", fastest)
    assert tune.main(["--shrink", "16", "--table", str(table), "--repeats", "1"]) == 0
    written = json.loads(table.read_text())
    assert written["cpu"] == {"pallas_triton": {"forward": [64, 64, 4]}}
    assert written["other"] == {"pallas_tpu": {"forward": [512, 1024]}}
    assert len(ran) >= 4  # two candidates on two problems, and perhaps the one without a time
