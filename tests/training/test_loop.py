"""Whole runs: what they write, that they continue to the same bits, and how they end."""

import dataclasses
import json
import signal
from pathlib import Path

import av
import jax
import numpy as np
import pytest

from kaleido_jax.bundle import load_bundle, parameters
from kaleido_jax.errors import ExitCode, UsageError
from kaleido_jax.training.loop import train
from kaleido_jax.training.miniature import prepare
from kaleido_jax.training.signals import Signals


class StopAfter(Signals):
    """As if SIGTERM arrived in the step after which so many lines are written."""

    def __init__(self, metrics: Path, stop: int) -> None:
        super().__init__()
        self._metrics, self._stop = metrics, stop

    @property
    def received(self) -> bool:
        if self._metrics.is_file() and len(self._metrics.read_text().splitlines()) >= self._stop:
            self._number = signal.SIGTERM
        return super().received


@pytest.fixture
def run_in(prepared, tmp_path):
    """Train in a folder of the test with the session's compiled programs; overrides are fields of `train`."""

    def go(name: str, signals: Signals | None = None, every: int = 100, **overrides):
        experiment = dataclasses.replace(
            prepared.experiment,
            train=dataclasses.replace(prepared.experiment.train, **overrides),
            checkpoint=dataclasses.replace(prepared.experiment.checkpoint, every=every),
        )
        run = prepared.with_experiment(experiment, tmp_path / name)
        return run, train(run, signals or Signals())

    return go


def lines(run):
    return [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return {line["step"]: line["loss"] for line in lines(run) if "heldout" not in line}


def final(run):
    step, state, _ = run.checkpoints.restore(run.initial)
    return step, state


def test_a_run_writes_metrics_checkpoints_pictures_and_a_model(run_in, prepared, capsys):
    run, code = run_in("whole")
    assert code == ExitCode.DONE
    told = capsys.readouterr().err
    assert (
        "[#############.......] 66.7% step 4: loss " in told and "[####################] 100.0% step 6: loss " in told
    )
    assert list(losses(run)) == [1, 2, 3, 4, 5, 6]
    assert all(line["loss"] > 0 for line in lines(run))
    for line in lines(run):
        if "heldout" not in line:
            assert line["loss_of_video"] == pytest.approx(line["loss"], rel=1e-5)
            # Four samples in five buckets of time: their mean is the loss.
            buckets = [value for name, value in line.items() if name.startswith("loss_at_")]
            assert buckets and min(buckets) - 1e-6 <= line["loss"] <= max(buckets) + 1e-6
            assert 0 < line["mfu"] < 1 and line["memory_gib"] > 0.1 and 0 <= line["loader_wait"] <= 1
            assert line["samples_per_second"] == pytest.approx(4 * line["steps_per_second"], rel=1e-4)
    heldout = [line for line in lines(run) if "heldout" in line]
    assert [line["step"] for line in heldout] == [6]
    samples = run.workdir / "samples"
    assert sorted(path.name for path in samples.iterdir()) == ["00000006.mp4", "00000006.png"]
    with av.open(str(samples / "00000006.mp4")) as video:  # two samples of five frames, the truth below
        assert [(frame.height, frame.width) for frame in video.decode(video=0)] == [(64, 64)] * 5

    model = load_bundle(run.workdir / "model")
    assert model.config.transformer == prepared.experiment.transformer
    assert (model.config.defaults.height, model.config.defaults.frames) == (32, 5)
    step, state = final(run)
    assert step == 6
    kernel = model.transformer.head.projection.kernel[...]
    np.testing.assert_array_equal(
        kernel, np.asarray(state.average["transformer"]["head.projection.kernel"]).astype(np.float16).astype(np.float32)
    )
    ids, lengths = model.tokenizer.encode(["a cat moves to the left"], 16)
    assert lengths[0] == 7 and model.tokenizer.unknown_id not in ids


def test_stopping_twice_gives_the_same_bits(run_in):
    """4 + 1 + 1 steps equal 6: losses, parameters, average and moments. The rate is a share of all 6 throughout."""
    whole, _ = run_in("whole")
    for stop in (4, 5):
        parts, code = run_in("parts", StopAfter(whole.workdir.with_name("parts") / "metrics.jsonl", stop), log_every=1)
        assert code == ExitCode.PREEMPTED
        assert final(parts)[0] == stop
    parts, code = run_in("parts")
    assert code == ExitCode.DONE
    assert losses(parts) == losses(whole)
    for x, y in zip(jax.tree.leaves(final(whole)[1]), jax.tree.leaves(final(parts)[1]), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_finished_run_does_not_train_again(run_in):
    run_in("again")
    run, code = run_in("again")
    assert code == ExitCode.DONE
    assert list(losses(run)) == [1, 2, 3, 4, 5, 6]


def test_lines_after_the_restored_step_are_dropped(run_in):
    run, _ = run_in("cut", steps=4, every=3)
    for step in (4,):
        folder = run.checkpoints.folder / f"{step:08d}"
        (folder / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="set aside"):
        run, code = run_in("cut", steps=4)
    assert code == ExitCode.DONE
    assert list(losses(run)) == [1, 2, 3, 4]
    assert len([line for line in lines(run) if "heldout" not in line]) == 4


def test_minutes_end_a_run_by_the_clock(run_in):
    run, code = run_in("clock", minutes=0.02, steps=1)
    assert code == ExitCode.DONE
    assert len(losses(run)) >= 2
    assert lines(run)[-2]["learning_rate"] < 0.9 * run.experiment.optimizer.learning_rate


def test_a_diverged_run_saves_and_says_so(run_in, prepared, monkeypatch):
    original = prepared.source("train").batch(0)
    video = np.full_like(np.asarray(original.video), np.nan)
    monkeypatch.setattr(
        "kaleido_jax.training.sources.CachedSource.batch", lambda *_: dataclasses.replace(original, video=video)
    )
    run, code = run_in("nan", skipped_limit=4, steps=50)
    assert code == ExitCode.DIVERGED
    step, state = final(run)
    assert step == int(state.skipped) == 4
    for line in lines(run):
        assert line["samples"] == prepared.source("train").names(line["step"] - 1)
        assert len(set(line["samples"])) == prepared.experiment.train.batch
    for x, y in zip(jax.tree.leaves(state.parameters), jax.tree.leaves(prepared.initial.parameters), strict=True):
        np.testing.assert_array_equal(x, y)


def test_buckets_compile_once_each(run_in, prepared):
    for name in ("one", "two"):
        run_in(name)
    compiled = prepared.programs.compiled
    assert (compiled["train"], compiled["evaluate"], compiled["generate"]) == (1, 1, 1)


def test_a_step_writes_over_its_state_and_moves_nothing_that_was_not_asked_for(run_in, prepared, monkeypatch):
    """The state's memory is used again, and from the second step on every transfer is one that the code names."""
    from kaleido_jax.training.loop import Training

    steps, advance = [], Training.advance

    def guarded(training, batch):
        before = training.state
        with jax.transfer_guard("disallow" if training.step > training.first else "allow"):
            advance(training, batch)
        steps.append(all(leaf.is_deleted() for leaf in jax.tree.leaves(before.moments)))

    monkeypatch.setattr(Training, "advance", guarded)
    run_in("guarded")
    assert len(steps) == 6 and all(steps)
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(prepared.initial))
    (program,) = (program for key, program in prepared.programs._compiled.items() if key[0] == "train")
    assert program.memory_analysis().alias_size_in_bytes == state


def test_signals_are_remembered_and_handlers_restored():
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals:
        assert not signals.received
        signal.raise_signal(signal.SIGTERM)
        assert signals.received and signals.exit_code == ExitCode.PREEMPTED
    assert signal.getsignal(signal.SIGTERM) == before
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.exit_code == ExitCode.INTERRUPTED
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_stage_starts_from_the_model_of_the_first(run_in, prepared, tmp_path):
    first, _ = run_in("first", steps=2)
    experiment = dataclasses.replace(prepared.experiment, vae="", start_from=str(first.workdir / "model"))
    second = prepare(experiment, tmp_path / "second")
    model = load_bundle(first.workdir / "model")
    for part, module in (("transformer", model.transformer), ("text", model.text)):
        for name, value in parameters(module).items():
            np.testing.assert_array_equal(second.initial.parameters[part][name], value)
            np.testing.assert_array_equal(second.initial.average[part][name], value)
    assert int(second.initial.step) == 0
    np.testing.assert_array_equal(parameters(second.vae)["quant_conv.bias"], parameters(model.vae)["quant_conv.bias"])

    larger = dataclasses.replace(experiment.transformer, layers=3)
    with pytest.raises(UsageError, match=r"start_from .* transformer .*layers=2.*layers=3"):
        prepare(dataclasses.replace(experiment, transformer=larger), tmp_path / "third")
