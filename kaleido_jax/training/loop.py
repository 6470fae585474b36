"""The training loop: from a run to checkpoints, metrics, pictures, and a model folder.

Running it again continues it. A run that is stopped by a signal saves first; so does one that diverges.
"""

import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kaleido_jax.config import to_json
from kaleido_jax.errors import ExitCode, InputError, PeerLost, StorageError, UsageError, printable
from kaleido_jax.parallel import processes
from kaleido_jax.parallel.devices import most_used, peak_of
from kaleido_jax.parallel.flops import forward_operations
from kaleido_jax.porting import lora
from kaleido_jax.training import sheets
from kaleido_jax.training.clock import COMPILING, DATA, DRAWING, EVALUATING, SAVING, STEPS, Clock
from kaleido_jax.training.groups import GroupSource, SceneSource, losses_by_shots
from kaleido_jax.training.metrics import Metrics, Rate, bar, duration, report
from kaleido_jax.training.run import Run
from kaleido_jax.training.signals import Signals
from kaleido_jax.training.sources import CachedSource, Source, stream
from kaleido_jax.training.state import Batch, Packed, TrainState, parts_of, size
from kaleido_jax.training.step import EVALUATION_TIMES
from kaleido_jax.training.watchdog import Watchdog

FOREVER = 2**31 - 1


def train(run: Run, signals: Signals) -> ExitCode:
    """Train until the steps or the minutes are over, a signal arrives, or the loss is not finite any more."""
    if run.experiment.train.minutes and jax.process_count() > 1:
        raise UsageError("train.minutes is set, but several processes train, whose clocks differ; give train.steps")
    run.workdir.mkdir(parents=True, exist_ok=True)
    with _locked(run.workdir):
        return _train(run, signals)


def _train(run: Run, signals: Signals) -> ExitCode:
    if processes.is_first():
        (run.workdir / "config.json").write_text(json.dumps(to_json(run.experiment), indent=1))
    processes.everywhere(lambda: run.write_caches(lambda: signals.received), only_first=True)
    if signals.received:
        return signals.exit_code
    state, seconds = run.restore()
    run.checkpoints.check_room(state)
    board = run.workdir / "tensorboard" if run.experiment.train.tensorboard else None
    with Metrics(run.workdir / "metrics.jsonl", step=int(state.step), tensorboard=board) as metrics:
        training = Training(run, state, seconds, metrics)
        diverged = not training.go(signals)
        report(training.clock.summary())
        if signals.received:
            report(f"stopped by {signals.name} at step {training.step}; run the same command to continue")
            return signals.exit_code
        if diverged:
            report(f"stopped: {run.experiment.train.skipped_limit} steps in a row were not finite")
            return ExitCode.DIVERGED
        training.look_at_the_end()
    run.export(training.state, run.workdir / "model")
    if run.experiment.lora.rank:
        trained = run.lora(training.state)
        write = lambda: lora.write(run.workdir / "lora.safetensors", trained, overwrite=True)
        processes.everywhere(write, only_first=True)
    report(f"done: {training.step} steps, model in {run.workdir / 'model'}, compiled {run.programs.compiled}")
    return ExitCode.DONE


class Training:
    """A run in progress: its state, its clock, and the steps whose numbers were not yet written down."""

    def __init__(self, run: Run, state: TrainState, seconds: float, metrics: Metrics) -> None:
        self.run, self.config, self.state, self.metrics = run, run.experiment.train, state, metrics
        self.first = self.step = int(state.step)
        self.heldout, self.source = run.source("heldout"), run.source("train")
        self._rate, self.clock = Rate(), Clock(run.workdir / "clock.json")
        self._watchdog = Watchdog(self.config.stall_seconds)
        self._began = self._window = time.monotonic()
        self._earlier = seconds
        self._waited, self._workers = self.clock.spent.get(DATA, 0.0), run.experiment.data.workers
        self._shapes: list[Batch | Packed] = []  # of batches that there are programs for
        self._pending: list[tuple[int, dict[str, Any]]] = []
        mesh = run.programs.mesh
        self._devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
        self._peak, self._operations = peak_of(self._devices), 0.0  # a second; of a step, three forward passes
        self._samples = self.config.batch  # of a step
        ends = f"for {self.config.minutes:g} min" if self.config.minutes else f"to step {self.config.steps}"
        kind = jax.devices()[0].device_kind
        report(f"training {size(state.parameters):,} parameters from step {self.step} on {kind}, {ends}")

    @property
    def seconds(self) -> float:
        """Of training, over all restarts."""
        return self._earlier + time.monotonic() - self._began

    @property
    def progress(self) -> float:
        """The share of the run that is done."""
        done = self.seconds / (60 * self.config.minutes) if self.config.minutes else self.step / self.config.steps
        return min(1.0, done)

    def go(self, signals: Signals) -> bool:
        """Train to the end or to a signal, and save; False if it diverged."""
        finite, last = True, FOREVER if self.config.minutes else self.config.steps
        batches = stream(self.source, self.first, last, self.run.experiment.data.workers)
        with self._watchdog, _closing(batches) as batches:
            if self.step == 0 and isinstance(self.heldout, SceneSource):
                self.evaluate()  # how good single shots were before
            try:
                while finite and self.progress < 1.0 and not signals.stop_at(self.step):
                    finite = self._go_on(batches)
            except (InputError, PeerLost):  # of the data, or of what reads it: what was trained until then is whole
                if self.step > self.first and jax.process_count() == 1:
                    self.save()
                raise
            if self.step > self.first:
                self.save()
        return finite

    def _go_on(self, batches: Iterator[Batch | Packed]) -> bool:
        """The next step and what is due after it; False if it diverged."""
        config, finite = self.config, True
        with self.clock.spending(DATA):
            batch = next(batches)
        shapes = jax.tree.map(np.shape, batch)
        new, self._shapes = shapes not in self._shapes, [*self._shapes, shapes][-100:]
        self._watchdog.beat(f"step {self.step + 1}", pause=new)
        with self.clock.spending(COMPILING if new else STEPS):
            self.advance(batch)
        self._watchdog.beat(f"step {self.step + 1}")
        if self._due(config.log_every) or self.step == self.first + 1:
            finite = self.write_down()
        if self._due(config.evaluate_every):
            self.evaluate()
        if self._due(config.sample_every):
            self.draw_sheet()
        if self._due(self.run.experiment.checkpoint.every) or self._could_not_save():
            self.save(wait=False)
        return finite

    def advance(self, batch: Batch | Packed) -> None:
        """One step; waits for the step before it, so that the host is one ahead of the device and not more."""
        if isinstance(batch, Batch):  # packed ones are latents already
            batch = self.run.ready(batch, self.source)
        layouts = [self.run.programs.layout(part) for part in parts_of(batch)]
        wan, self._samples = self.run.experiment.transformer, self.config.batch * len(layouts)
        forward = sum(forward_operations(wan, own.tokens("visual"), own.tokens("text")) for own in layouts)
        self._operations = 3.0 * self.config.batch * forward
        share = jax.device_put(np.float32(self.progress))
        self.state, values = self.run.programs.train(self.state, batch, share)
        if self._pending:
            jax.block_until_ready(self._pending[-1][1]["loss"])
        self.step += 1
        self._pending.append((self.step, values))

    def write_down(self) -> bool:
        """Write the pending steps to the metrics and the terminal; False if too many in a row were not finite."""
        if not self._pending:
            return True
        values = jax.device_get([value for _, value in self._pending])
        window, waited = time.monotonic() - self._window, self.clock.spent.get(DATA, 0.0)
        self._rate.add(window, len(values))
        waiting = (waited - self._waited) / window  # what the loader lets the devices wait for
        self._waited = waited
        for (step, _), value in zip(self._pending, values):
            numbers = {name: item.item() for name, item in value.items()}
            absent = [name for name, x in numbers.items() if name.startswith("loss_at_") and math.isnan(x)]
            numbers = {name: x for name, x in numbers.items() if name not in absent}
            if numbers["skipped_in_a_row"]:
                numbers["samples"] = self.source.names(step - 1)
                report(f"step {step} was not finite and changed nothing; samples {', '.join(numbers['samples'])}")
            self.metrics.write(step, numbers | self._speed() | {"loader_wait": waiting})
        mean = float(np.mean([value["loss"] for value in values]))
        rate = self._rate.steps_per_second
        by_steps = (self.config.steps - self.step) / rate
        left = 60 * self.config.minutes - self.seconds if self.config.minutes else by_steps
        done = f"{bar(self.progress)} {self.progress:.1%}"
        report(f"{done} step {self.step}: loss {mean:.4f}, {rate:.2f} steps/s, {duration(left)} left")
        if waiting > 0.2 and self.step > self.first + 1:
            report(f"waited {waiting:.0%} of the time for data; give data.workers more than {self._workers} processes")
        self._pending.clear()
        self._window = time.monotonic()
        return bool(values[-1]["skipped_in_a_row"] < self.config.skipped_limit)

    def _speed(self) -> dict[str, float]:
        """How fast the run is, the share of the devices' peak that its model's operations take, and their memory."""
        rate = self._rate.steps_per_second
        return {
            "seconds": self.seconds,
            "steps_per_second": rate,
            "samples_per_second": rate * self._samples,
            "mfu": rate * self._operations / self._peak,
            "memory_gib": most_used(self._devices) / 2**30,
        }

    def save(self, *, wait: bool = True) -> None:
        """Write a checkpoint of this step; without `wait`, while the next ones are trained."""
        with self._pause(SAVING):
            self.run.save(self.state, self.seconds, wait=wait)
        self.clock.save()

    def _could_not_save(self) -> bool:
        """Several processes learn together that a checkpoint failed, when the next one is due."""
        return self.run.checkpoints.failed and jax.process_count() == 1

    def evaluate(self) -> None:
        """The averaged weights' loss on held-out samples, at fixed times and noise."""
        with self._pause(EVALUATING):
            assert isinstance(self.heldout, CachedSource | GroupSource | SceneSource)
            batches = [self.heldout.batch(i) for i in range(self.heldout.batches_per_epoch)]
            encoded = (self.run.ready(batch, self.heldout) for batch in batches)
            losses = [np.asarray(self.run.programs.evaluate(self.state.average, batch)) for batch in encoded]
            by_time = np.concatenate(losses).mean(axis=0)
            columns = {f"heldout_loss_at_{time:g}": float(x) for time, x in zip(EVALUATION_TIMES, by_time)}
            if isinstance(self.heldout, SceneSource):
                lengths = np.concatenate([np.asarray(batch.text_lengths) for batch in batches])
                columns |= losses_by_shots(np.concatenate(losses).mean(axis=1), lengths)
            self.metrics.write(self.step, {"loss": float(by_time.mean()), "heldout": 1} | columns)
            report(f"step {self.step}: held-out loss {by_time.mean():.4f}")

    def draw_sheet(self) -> None:
        """A picture of what the averaged weights make of held-out references and prompts."""
        with self._pause(DRAWING):
            path = self.run.workdir / "samples" / f"{self.step:08d}.png"
            draw_sheet(self.run, self.state, self.heldout, path)
            report(f"step {self.step}: wrote {path}")

    def look_at_the_end(self) -> None:
        """Evaluate and draw the last step, unless that was done already or nothing was trained."""
        if self.step > self.first and not self._due(self.config.evaluate_every):
            self.evaluate()
        if self.step > self.first and not self._due(self.config.sample_every):
            self.draw_sheet()

    def _due(self, every: int) -> bool:
        return self.step % every == 0

    @contextmanager
    def _pause(self, what: str) -> Iterator[None]:
        """Something that is not training: pending steps are written down first, and its time is not theirs."""
        with self.clock.spending(STEPS):
            self.write_down()
        self._watchdog.beat(f"{what} at step {self.step}", pause=True)
        with self.clock.spending(what):
            yield
        self._watchdog.beat(f"step {self.step + 1}")
        self._window = time.monotonic()


def draw_sheet(run: Run, state: TrainState, heldout: Source, path: Any) -> None:
    """Write the contact sheet and the video of some held-out samples; their noise changes with the step."""
    batch = sheets.first_samples(heldout, run.experiment.sampling.pictures)
    batch = run.ready(batch, heldout)
    key = jax.random.fold_in(jax.random.key(run.experiment.seed), int(state.step))
    latents = run.programs.generate(state.average, batch, run.unconditional(batch), key)
    decode = lambda x: np.asarray(run.programs.decode(x))
    shots = run.experiment.data.shots if run.method.data == "scene" else 1
    scene = lambda x: np.concatenate([decode(shot) for shot in np.split(np.asarray(x), shots, axis=1)], axis=1)
    slots, pictures = range(batch.references.shape[1]), batch.references.ndim == 5
    sheets.write(
        path,
        references=[
            decode(batch.references[:, i : i + 1] if pictures else batch.references[:, i, :1])[:, 0] for i in slots
        ],
        counts=np.asarray(batch.reference_counts),
        generated=scene(latents),
        truth=scene(batch.video),
        frames_per_second=run.experiment.sampling.frames_per_second,
    )


@contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Raises StorageError where another run is at work; the lock goes with the process, however that ends."""

    def lock() -> int:
        descriptor = os.open(workdir / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(descriptor, 100).decode(errors="replace")
            os.close(descriptor)
            raise StorageError(
                f"{workdir} is in use by {printable(who)}; stop that run or take another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return descriptor

    descriptor = processes.everywhere(lock, only_first=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def _closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()  # pyright: ignore[reportAttributeAccessIssue]
