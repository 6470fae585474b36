"""The programs that measure attention, on problems so small that they take seconds."""

import importlib
import json
import pathlib

import numpy as np
import pytest

from kaleido_jax.testing.supervise import Journal

TOOLS = pathlib.Path(__file__).resolve().parent.parent.parent / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def test_fractions_are_those_of_the_dense_mask(tool):
    dense, documents, *methods = tool("attention_cases").cases(shrink=16)
    assert dense.visible == 1.0 and dense.visited(16, 16) == (1.0, 0.0)
    visited, partial = documents.visited(16, 16)
    assert documents.visible < visited < 1 and 0 < partial <= visited
    for case in (documents, *methods):
        if case.mask is not None:
            visible = (case.mask.reads[:, None] & case.mask.groups[None]) != 0
            if case.mask.q_sample is not None:
                visible &= case.mask.q_sample[:, None] == case.mask.k_sample[None]
                visible &= case.mask.q_sample[:, None] >= 0
            np.testing.assert_allclose(case.visible, visible.mean())


def test_the_benchmark_reports_every_program_and_says_what_is_missing(tool, tmp_path, capfd):
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
    assert "TFLOP/s" in capfd.readouterr().out


def test_nothing_begins_once_the_time_is_over_and_what_failed_is_left_out(tool, tmp_path, capsys):
    bench, journal = tool("bench_attention"), Journal(tmp_path / "journal")
    bench.work(bench.arguments(["--shrink", "16", "--over", "1"]), journal)
    results = journal.finished()
    assert set(results.pop("names")) == set(results) - {"device"} and "ms" not in capsys.readouterr().out
    assert results["dense, 64 tokens"] == "not measured: the time was over"
    journal = Journal(tmp_path / "another")
    journal.fail(["dense, 64 tokens", "making it"], "the process ended with -6")
    bench.work(bench.arguments(["--shrink", "16", "--over", "1e12", "--only", "dense, 64"]), journal)
    assert journal.finished()["dense, 64 tokens"] == "the process ended with -6"


def test_the_reference_is_measured_beside_products(tool):
    report = tool("bench_attention").beside_products(64, 1)
    for kind in ("forward", "forward and gradients"):
        rates = report[kind]
        assert rates["reference / product"] == rates["reference, TFLOP/s"] / rates["product, TFLOP/s"] > 0


def test_the_tuner_writes_the_fastest_and_keeps_other_devices(tool, tmp_path, monkeypatch):
    table, tune = tmp_path / "table.json", tool("tune_attention")
    table.write_text('{"other": {"pallas_tpu": {"forward": [512, 1024]}}}')
    slow, fast, broken = (128, 64, 8), (64, 64, 4), (7, 7, 7)
    triton = {"forward": [broken, slow, fast], "backward": [slow]}
    monkeypatch.setattr(tune, "CANDIDATES", {"pallas_triton": triton, "pallas_gpu": {"forward": [slow]}})
    programs = tune.programs

    def stubs(backend, kernel, sizes, case, interpret):
        if sizes == broken:
            raise ValueError("too much shared memory")
        return programs(backend, kernel, sizes, case, interpret) if sizes == fast else lambda: slow

    def fastest(runs, repeats):
        results = [run() for run in runs.values()]
        return dict.fromkeys(runs, 3.0 if results[0] is slow else 2.0)

    monkeypatch.setattr(tune, "programs", stubs)
    monkeypatch.setattr(tune, "fastest", fastest)
    assert tune.main(["--shrink", "16", "--table", str(table), "--repeats", "1"]) == 0
    assert json.loads(table.read_text()) == {
        "cpu": {  # pallas_gpu has no backward pass here, and so is not the fastest
            "pallas_triton": {"forward": [64, 64, 4], "backward": [128, 64, 8]},
            "pallas_gpu": {"forward": [128, 64, 8]},
            "fastest": "pallas_triton",
        },
        "other": {"pallas_tpu": {"forward": [512, 1024]}},
    }


SCHEDULED = """
%visible (p: f32[4]) -> f32[4] {
  ROOT %kernel = f32[4]{0} custom-call(%p), custom_call_target="tpu_custom_call"
}

%nothing (p.1: f32[4]) -> f32[4] {
  ROOT %copy = f32[4]{0} copy(%p.1)
}

ENTRY %main (p.2: f32[4], c: pred[]) -> f32[4] {
  %collective-permute-start = (f32[4]{0}, f32[4]{0}) collective-permute-start(%p.2), channel_id=1
  %conditional = f32[4]{0} conditional(%c, %p.2, %p.2), branch_computations={%visible, %nothing}
  %collective-permute-done = f32[4]{0} collective-permute-done(%collective-permute-start)
  %collective-permute-start.1 = (f32[4]{0}, f32[4]{0}) collective-permute-start(%conditional), channel_id=2
  %copy.1 = f32[4]{0} copy(%collective-permute-done)
  ROOT %collective-permute-done.1 = f32[4]{0} collective-permute-done(%collective-permute-start.1)
}
"""


def test_a_transfer_waits_where_no_kernel_runs_meanwhile(tool):
    assert tool("attention_check").waiting_transfers(SCHEDULED) == (2, 1)
