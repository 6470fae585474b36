"""The training loop: from an experiment and a work directory to checkpoints, metrics, pictures, and a model folder.

Running it again continues it. A run that is stopped by a signal saves first; so does one that diverges.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax.bundle import Bundle, BundleConfig, Defaults, merge, parameters, save_bundle
from kaleido_jax.config import to_json
from kaleido_jax.data.latents import LatentCache, write_cache
from kaleido_jax.errors import ExitCode, UsageError
from kaleido_jax.models.text import Tokenizer, UMT5Encoder
from kaleido_jax.models.vae import WanVAE
from kaleido_jax.models.wan import WanTransformer
from kaleido_jax.training import sheets
from kaleido_jax.training.checkpoint import Checkpoints
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.metrics import Metrics, Rate, duration, report
from kaleido_jax.training.programs import Programs
from kaleido_jax.training.signals import Signals
from kaleido_jax.training.sources import CachedSource, Source, WorldSource, stream
from kaleido_jax.training.state import Batch, TrainState, create, size
from kaleido_jax.training.step import EVALUATION_TIMES, Networks

WORLD_BATCH = 16  # clips encoded at a time when a cache is written


class Run:
    """One experiment in one work directory: everything that is made once, before the first step."""

    def __init__(self, experiment: Experiment, workdir: str | Path, *, world: Any, vae: WanVAE, tokenizer: Tokenizer) -> None:
        if tokenizer.vocab_size > experiment.text.vocab_size:
            raise UsageError(
                f"text.vocab_size is {experiment.text.vocab_size}; the world's words need {tokenizer.vocab_size}"
            )
        self.experiment = experiment
        self.workdir = Path(workdir).absolute()
        self.world, self.vae, self.tokenizer = world, vae, tokenizer
        transformer = WanTransformer(experiment.transformer, nnx.Rngs(experiment.seed))
        text = UMT5Encoder(experiment.text, nnx.Rngs(experiment.seed + 1))
        self.networks = Networks(nnx.split(transformer)[0], nnx.split(text)[0])
        self.initial = create(experiment.optimizer, {"transformer": parameters(transformer), "text": parameters(text)})
        self.programs = Programs(experiment, self.networks, vae)
        self.checkpoints = Checkpoints(self.workdir / "checkpoints", keep=experiment.checkpoint.keep)

    def restore(self) -> tuple[TrainState, float]:
        """The newest state that verifies and the seconds trained so far, or the initial state and 0."""
        restored = self.checkpoints.restore(self.initial)
        if restored is None:
            return self.initial, 0.0
        step, state, metadata = restored
        report(f"continuing from step {step}")
        return state, float(metadata["seconds"])

    def save(self, state: TrainState, seconds: float) -> None:
        metadata = {"seconds": seconds, "experiment": to_json(self.experiment)}
        self.checkpoints.save(int(state.step), state, metadata)

    def export(self, state: TrainState, folder: str | Path, *, dtype: str = "float16") -> None:
        """Write the averaged weights as a model folder."""
        experiment, data, sampling = self.experiment, self.experiment.data, self.experiment.sampling
        config = BundleConfig(
            name=experiment.name,
            method=experiment.method,
            scheme=experiment.scheme,
            transformer=dataclasses.replace(experiment.transformer, dtype="float32"),
            vae=self.vae.config,
            text=experiment.text,
            defaults=Defaults(
                height=data.size,
                width=data.size,
                frames=data.frames,
                frames_per_second=sampling.frames_per_second,
                references=data.references,
                text_tokens=data.text_tokens,
                steps=sampling.steps,
                guidance=sampling.guidance,
                shift=sampling.shift,
            ),
        )
        bundle = Bundle(
            config=config,
            transformer=merge(self.networks.transformer, state.average["transformer"]),
            text=merge(self.networks.text, state.average["text"]),
            vae=self.vae,
            tokenizer=self.tokenizer,
        )
        save_bundle(folder, bundle, dtype=dtype)

    def write_caches(self, stopped: Callable[[], bool]) -> None:
        """Encode what the latent cache lacks; continues where it was stopped."""
        data = self.experiment.data
        for split, samples in (("heldout", data.heldout), ("train", data.samples)):
            began, first = time.monotonic(), [0]

            def progress(done: int, total: int) -> None:
                first[0] = first[0] or done
                seconds = time.monotonic() - began
                left = seconds * max(total - done, 0) / max(done - first[0] + 1, 1)
                report(f"encoded {done} of {total} {split} samples, about {duration(left)} left")

            write_cache(
                self.cache_folder(split),
                samples=samples,
                render=lambda seed: self.world.sample(seed, split=split),
                encode_videos=lambda videos: self._encode(videos),
                encode_pictures=lambda pictures: self._encode(pictures[:, None])[:, 0],
                fingerprint=self.fingerprint(),
                slots=data.references,
                progress=progress,
                stop=stopped,
            )

    def cache_folder(self, split: str) -> Path:
        folder = self.experiment.data.folder
        return (Path(folder) if folder else self.workdir / "latents") / split

    def fingerprint(self) -> str:
        """Changes with the VAE's weights and with what is rendered."""
        data = self.experiment.data
        total = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in parameters(self.vae).values())
        return f"world {data.size} x {data.size} x {data.frames}, vae {total:.6e}"

    def _encode(self, clips: np.ndarray) -> np.ndarray:
        """Latents of uint8 clips [n, f, h, w, 3], some at a time; the last ones are padded to the same program."""
        pieces = []
        for start in range(0, len(clips), WORLD_BATCH):
            piece = clips[start : start + WORLD_BATCH]
            padded = np.zeros((WORLD_BATCH, *clips.shape[1:]), np.uint8)
            padded[: len(piece)] = piece
            pieces.append(np.asarray(self.programs.encode(padded))[: len(piece)])
        return np.concatenate(pieces)

    def source(self, split: str) -> Source:
        experiment, data = self.experiment, self.experiment.data
        if split == "heldout":  # all references and every prompt: what is measured is the task itself
            data = dataclasses.replace(data, text_dropout=0.0, reference_subsets=0.0)
        if split == "heldout" or data.source == "latents":
            cache = LatentCache(self.cache_folder(split), data.heldout if split == "heldout" else data.samples)
            return CachedSource(cache, self.tokenizer, data, experiment.train.batch, experiment.seed)
        render = lambda seed: self.world.sample(seed, split=split)
        return WorldSource(render, self.tokenizer, data, experiment.train.batch, experiment.seed)

    def latents(self, batch: Batch) -> Batch:
        """A batch of pixels as a batch of latents."""
        count, slots = batch.references.shape[:2]
        pictures = batch.references.reshape(count * slots, 1, *batch.references.shape[2:])
        encoded = self.programs.encode(pictures)
        return dataclasses.replace(
            batch,
            video=self.programs.encode(batch.video),
            references=encoded.reshape(count, slots, *encoded.shape[2:]),
        )


def train(run: Run, signals: Signals) -> ExitCode:
    """Train until the steps or the minutes are over, a signal arrives, or the loss is not finite any more."""
    experiment, config = run.experiment, run.experiment.train
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / "config.json").write_text(json.dumps(to_json(experiment), indent=1))
    run.write_caches(lambda: signals.received)
    if signals.received:
        return signals.exit_code
    state, earlier = run.restore()
    heldout = run.source("heldout")
    source = run.source("train")
    began = time.monotonic()
    seconds = lambda: earlier + time.monotonic() - began
    first = int(state.step)
    report(
        f"training {size(state.parameters):,} parameters from step {first} on {jax.devices()[0].device_kind}, "
        + (f"for {config.minutes:g} min" if config.minutes else f"to step {config.steps}")
    )
    metrics, rate = Metrics(run.workdir / "metrics.jsonl", step=first), Rate()
    pending: list[tuple[int, dict[str, Any]]] = []
    done, exit_code, window = first, ExitCode.DONE, time.monotonic()
    progress = lambda: min(1.0, seconds() / (60 * config.minutes) if config.minutes else done / config.steps)

    def flush() -> bool:
        """Write the pending steps down; whether the run goes on."""
        nonlocal window
        if not pending:
            return True
        values = jax.device_get([value for _, value in pending])
        rate.add(time.monotonic() - window, len(pending))
        for (number, _), value in zip(pending, values):
            line = {name: item.item() for name, item in value.items()}
            metrics.write(number, line | {"seconds": seconds(), "steps_per_second": rate.steps_per_second})
        share = progress()
        left = (60 * config.minutes - seconds()) if config.minutes else (config.steps - done) / rate.steps_per_second
        mean = float(np.mean([value["loss"] for value in values]))
        report(f"step {done}: loss {mean:.4f}, {rate.steps_per_second:.2f} steps/s, {share:.1%}, {duration(left)} left")
        pending.clear()
        window = time.monotonic()
        return values[-1]["skipped_in_a_row"] < config.skipped_limit

    limit = 2**31 - 1 if config.minutes else config.steps
    with _closing(stream(source, first, limit, experiment.data.workers)) as batches:
        while progress() < 1.0 and not signals.received:
            batch = next(batches)
            if source.pixels:
                batch = run.latents(batch)
            state, values = run.programs.train(state, batch, jnp.asarray(progress(), jnp.float32))
            if pending:
                jax.block_until_ready(pending[-1][1]["loss"])  # one step ahead of the device, not more
            done += 1
            pending.append((done, values))
            due = lambda every: done % every == 0
            if (due(config.log_every) or done == first + 1) and not flush():
                report(f"stopping: {config.skipped_limit} steps in a row were not finite")
                exit_code = ExitCode.DIVERGED
                break
            if due(config.evaluate_every):
                flush()
                evaluate(run, state, heldout, metrics, done)
            if due(config.sample_every):
                flush()
                draw_sheet(run, state, heldout, done)
            if due(experiment.checkpoint.every):
                flush()
                run.save(state, seconds())
            if not pending:
                window = time.monotonic()
    flush()
    if done > first:
        run.save(state, seconds())
    if signals.received:
        report(f"stopped by {signals.name} at step {done}; everything is saved, run the same command to continue")
        return signals.exit_code
    if exit_code == ExitCode.DONE and done > first:
        if done % config.evaluate_every:
            evaluate(run, state, heldout, metrics, done)
        if done % config.sample_every:
            draw_sheet(run, state, heldout, done)
    metrics.close()
    if exit_code == ExitCode.DONE:
        run.export(state, run.workdir / "model")
        report(f"done: {done} steps, model in {run.workdir / 'model'}, compiled {run.programs.compiled}")
    return exit_code


def evaluate(run: Run, state: TrainState, heldout: Source, metrics: Metrics, step: int) -> None:
    """The averaged weights' loss on held-out samples, at fixed times and noise."""
    assert isinstance(heldout, CachedSource)
    losses = np.concatenate(
        [np.asarray(run.programs.evaluate(state.average, heldout.batch(i))) for i in range(heldout.batches_per_epoch)]
    )
    columns = {f"heldout_loss_at_{time:g}": float(x) for time, x in zip(EVALUATION_TIMES, losses.mean(axis=0))}
    mean = float(losses.mean())
    metrics.write(step, {"loss": mean, "heldout": 1} | columns)
    report(f"step {step}: held-out loss {mean:.4f}")


def draw_sheet(run: Run, state: TrainState, heldout: Source, step: int) -> None:
    """A picture of what the averaged weights make of held-out references and prompts."""
    pictures = run.experiment.sampling.pictures
    batch = sheets.first_samples(heldout, pictures)
    empty = run.tokenizer.encode([""], run.experiment.data.text_tokens)
    key = jax.random.fold_in(jax.random.key(run.experiment.seed), step)
    latents = run.programs.generate(state.average, batch, empty, key)
    decode = lambda x: np.asarray(run.programs.decode(x))
    path = run.workdir / "samples" / f"{step:08d}.png"
    sheets.write(
        path,
        references=[decode(batch.references[:, i : i + 1])[:, 0] for i in range(batch.references.shape[1])],
        counts=np.asarray(batch.reference_counts),
        generated=decode(latents),
        truth=decode(batch.video),
    )
    report(f"step {step}: wrote {path}")


@contextmanager
def _closing(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()  # pyright: ignore[reportAttributeAccessIssue]
