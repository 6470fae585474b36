"""The programs that measure saving and loading, on a tiny run."""

import importlib
import pathlib

import numpy as np
import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def test_steps_after_saves_are_timed(prepared, tmp_path, tool):
    bench = tool("bench_checkpoint")
    run = prepared.with_experiment(prepared.experiment, tmp_path)
    shapes = lambda batch: {name: np.shape(value) for name, value in vars(batch).items() if value is not None}
    batch = bench.random_batch(run)
    assert shapes(batch) == shapes(prepared.source("train").batch(0))
    found = bench.measure(run, batch, saves=2, every=2)
    assert run.checkpoints.steps() == [3, 7]
    assert found["state_megabytes"] > 0.1 and found["save_waits"] > 0
    assert found["ratio"] == found["step_after_save"] / found["step"] > 0


def test_torch_reads_the_same_batches(prepared, tool):
    bench = tool("bench_batches")
    source = prepared.source("train")
    for step, batch in enumerate(bench.torch_batches(source, 3, 0)):
        for name, value in batch.items():
            np.testing.assert_array_equal(value, getattr(source.batch(step), name))
    found = bench.measure(prepared, steps=3, train_steps=2, workers=[0])
    assert found["loader / step"] == found["loader"]["0"] / found["step"] > 0
    assert found["loader / torch"] == found["loader"]["0"] / found["torch"]["0"] > 0
