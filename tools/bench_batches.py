"""How fast a run's batches are read, beside what its step takes of them and what a torch DataLoader reads.

    python tools/bench_batches.py configs/miniature.py --out docs/bench

Reads cached latents of random numbers with the world's prompts. Both loaders read the same samples by the same
functions, each process or thread of theirs a batch at a time; both are timed after the first batch of each process.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax import config
from kaleido_jax.data.latents import write_cache
from kaleido_jax.testing.benchmark import save_report
from kaleido_jax.training.miniature import prepare
from kaleido_jax.training.run import Run
from kaleido_jax.training.sources import CachedSource, stream


def write_random(run: Run, samples: int) -> None:
    """Latents of the run's training samples that are random, where its VAE would take minutes."""
    data, vae, random = run.experiment.data, run.vae.config, np.random.default_rng(0)
    height, width = (side // vae.spatial_factor for side in data.picture)
    normal = lambda *shape: random.standard_normal((*shape, height, width, vae.z_dim), np.float32)
    write_cache(
        run.cache_folder("train"),
        samples=samples,
        render=lambda seed: run.world.sample(seed),
        encode_videos=lambda videos: normal(len(videos), vae.latent_frames(data.frames)),
        encode_pictures=lambda pictures: normal(len(pictures)),
        fingerprint=run.fingerprint(),
        slots=data.references,
    )


class Batches:
    """The batches of a source, as a map-style data set of torch: one asks for steps, and gets arrays."""

    def __init__(self, source: CachedSource, steps: int) -> None:
        self.source, self.steps = source, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        return {name: value for name, value in vars(self.source.batch(step)).items() if value is not None}


def torch_batches(source: CachedSource, steps: int, workers: int) -> Iterator[Any]:
    """The same batches by torch's DataLoader, as tensors."""
    from torch.utils.data import DataLoader

    context = "spawn" if workers else None  # jax has threads, which a fork would tear apart
    ahead = {"prefetch_factor": 4} if workers else {}
    return iter(
        DataLoader(
            Batches(source, steps), batch_size=None, num_workers=workers, multiprocessing_context=context, **ahead
        )
    )


def samples_per_second(batches: Iterator[Any], size: int, steps: int, workers: int) -> float:
    """Of the batches after each worker's first."""
    for _ in range(max(1, workers)):
        next(batches)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return steps * size / (time.perf_counter() - began)


def step_rate(run: Run, source: CachedSource, steps: int) -> float:
    """Samples a second of the training step alone, on one batch."""
    state, batch, share = run.restore()[0], source.batch(0), jnp.asarray(0.5, jnp.float32)
    for number in range(steps + 1):
        if number == 1:
            began = time.perf_counter()
        state, _ = jax.block_until_ready(run.programs.train(state, batch, share))
    return steps * source.size / (time.perf_counter() - began)


def measure(run: Run, *, steps: int, train_steps: int, workers: list[int]) -> dict[str, Any]:
    """Samples a second: of the run's step, of its loader and of torch's by the number of processes."""
    source = run.source("train")
    assert isinstance(source, CachedSource)
    found: dict[str, Any] = {"step": step_rate(run, source, train_steps), "loader": {}, "torch": {}}
    for count in workers:
        room = steps + 2 * max(1, count)
        with closing(stream(source, 0, room, count)) as batches:
            found["loader"][str(count)] = samples_per_second(batches, source.size, steps, count)
        found["torch"][str(count)] = samples_per_second(torch_batches(source, room, count), source.size, steps, count)
    fastest = max(found["loader"].values())
    return found | {
        "loader / step": fastest / found["step"],
        "loader / torch": fastest / max(found["torch"].values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=200, help="batches that are read")
    parser.add_argument("--train-steps", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="a folder for the numbers as JSON")
    parser.add_argument("--machine", default="", help="what machine this is and what else it does, for the JSON")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    overrides = [*options.overrides, f"data.samples={options.samples}", "data.source=latents"]
    experiment = config.override(config.load(options.config), overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(experiment, Path(folder))
        write_random(run, options.samples)
        found = measure(run, steps=options.steps, train_steps=options.train_steps, workers=options.workers)
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.out:
        print(save_report(options.out, "batches", options.machine, {"config": options.config, "samples/s": found}))


if __name__ == "__main__":
    main()
