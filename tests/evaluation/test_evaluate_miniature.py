"""tools/evaluate_miniature.py from a model folder to its table and sheet: the smallest model, with random weights."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.errors import UsageError
from kaleido_jax.testing.tiny import TINY_CONFIG, save_tiny_bundle

TOOLS = Path(__file__).resolve().parents[2] / "tools"


class NoWorkers:
    """In place of the processes that make and judge videos: none may be asked for anything."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, number, conditions):
        raise AssertionError(f"case {number} is measured again: {conditions}")


def test_a_model_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.syspath_prepend(TOOLS)  # the processes import the tool by its name
    for name in ("NPROC", "OPENBLAS_NUM_THREADS"):  # which it sets for them, here for this test alone
        monkeypatch.setenv(name, "1")
    tool = importlib.import_module("evaluate_miniature")
    model, out = save_tiny_bundle(tmp_path / "model"), tmp_path / "out"

    def run(*more: str) -> int:
        words = ["--model", str(model), "--out", str(out), "--cases", "1", "--steps", "1", "--workers", "1"]
        monkeypatch.setattr(sys, "argv", ["evaluate_miniature.py", *words, *more])
        return tool.main()

    assert run() == 0
    table = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in table.splitlines()] == [
        "| right", "|---|---|---|---|", "| identity", "| motion", "| scene", "| all three",
    ]  # fmt: skip
    lines = (out / "verdicts.jsonl").read_text()
    verdicts = [json.loads(line) for line in lines.splitlines()]
    assert [verdict["condition"] for verdict in verdicts] == [tool.REAL, tool.GIVEN, tool.WITHHELD]
    summary = json.loads((out / "summary.json").read_text())
    for verdict in verdicts:
        for question, share in summary["results"][verdict["condition"]].items():
            right = all(verdict["right"].values()) if question == "all three" else verdict["right"][question]
            assert (share["right"], share["total"]) == (right, 1)
    assert summary["settings"]["model"] == "tiny" and summary["settings"]["steps"] == 1
    asked = TINY_CONFIG.defaults
    for name in ("reference_given", "reference_withheld"):
        with Image.open(out / "videos" / f"00000.{name}.png") as strip:
            assert strip.size == (asked.frames * asked.width, asked.height)
            assert np.asarray(strip).std() > 0
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size[1] > asked.height

    # Started again, also after its last line was cut short, it takes what it knows and measures nothing.
    (out / "verdicts.jsonl").write_text(lines + '{"case": 1, "cond')
    monkeypatch.setattr(tool, "ProcessPoolExecutor", NoWorkers)
    assert run() == 0
    assert capsys.readouterr().out == table
    assert (out / "verdicts.jsonl").read_text() == lines

    assert run("--seed", "5") == UsageError.exit_code
    assert "another --out" in capsys.readouterr().err
