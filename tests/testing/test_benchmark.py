"""Timing in turns, and reports that say where they come from."""

import json

from kaleido_jax.testing import benchmark


def test_runs_take_turns_and_the_first_does_not_count(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def run(name, seconds):
        def once():
            order.append(name)
            now[0] += seconds.pop(0)

        return once

    times = benchmark.fastest({"a": run("a", [0.5, 3.0, 2.0]), "b": run("b", [9.0, 4.0, 5.0])}, repeats=2)
    assert order == ["a", "b"] * 3
    assert times == {"a": 2.0, "b": 4.0}


def test_a_report_names_the_machine_and_the_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "threads", lambda: 2)
    path = benchmark.save_report(tmp_path / "new", "wan", "two cores", {"seconds": {"ours": 1.23456, "runs": 3}})
    assert path == tmp_path / "new" / "wan-cpu-2-cores.json"
    report = json.loads(path.read_text())
    assert report["machine"] == "two cores" and report["threads"] == 2
    assert report["seconds"] == {"ours": 1.235, "runs": 3}
    assert set(report["versions"]) == {"python", *benchmark.PACKAGES}


def test_a_report_of_another_device_is_named_after_it(tmp_path):
    path = benchmark.save_report(tmp_path, "attention", "", {}, device="NVIDIA H100 80GB HBM3")
    assert path == tmp_path / "attention-nvidia-h100-80gb-hbm3.json"


def test_threads_are_those_the_process_may_use():
    assert benchmark.threads() >= 1
