"""What saving costs the steps that go on meanwhile.

    python tools/bench_checkpoint.py configs/miniature.py --out docs/bench

Trains on one batch of random latents. Every second time that `--every` steps have been made it saves without waiting;
the first step after a save is compared with the first one where nothing was saved.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax import config
from kaleido_jax.testing.benchmark import save_report
from kaleido_jax.training.miniature import prepare
from kaleido_jax.training.run import Run
from kaleido_jax.training.state import Batch


def random_batch(run: Run) -> Batch:
    """Random latents and prompts in the shapes of the run's first bucket; every reference is there."""
    data, size, vae = run.experiment.data, run.experiment.train.batch, run.vae.config
    random = np.random.default_rng(0)
    grid = (vae.latent_frames(data.frames), *(side // vae.spatial_factor for side in data.picture))
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    return Batch(
        video=normal(size, *grid, vae.z_dim),
        references=normal(size, data.references, *grid[1:], vae.z_dim),
        reference_counts=np.full(size, data.references, np.int32),
        subjects=np.tile(np.arange(data.references, dtype=np.int32), (size, 1)),
        subject_share=np.zeros((size, *grid), np.float32),
        text=np.ones((size, data.text_tokens), np.int32),
        text_lengths=np.full(size, data.text_tokens, np.int32),
        indices=np.arange(size, dtype=np.int32),
    )


def measure(run: Run, batch: Batch, *, saves: int, every: int) -> dict[str, float]:
    """In seconds the medians of a step, of the step after a save, and of what the loop waits for a save to begin."""
    state, _ = run.restore()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    share = jnp.asarray(0.5, jnp.float32)
    first: dict[bool, list[float]] = {True: [], False: []}
    waited = []

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        state, _ = jax.block_until_ready(run.programs.train(state, batch, share))
        return time.perf_counter() - began

    for _ in range(3):
        step()
    for number in range(2 * saves):
        saving = number % 2 == 0
        if saving:
            began = time.perf_counter()
            run.save(state, 0.0, wait=False)
            waited.append(time.perf_counter() - began)
        first[saving].append(step())
        for _ in range(every - 1):
            step()
        run.checkpoints.finish()
    normal, after = statistics.median(first[False]), statistics.median(first[True])
    return {
        "state_megabytes": size / 1e6,
        "saves": saves,
        "step": normal,
        "step_after_save": after,
        "ratio": after / normal,
        "save_waits": statistics.median(waited),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--saves", type=int, default=20)
    parser.add_argument("--every", type=int, default=2, help="steps from one save to where the next could be")
    parser.add_argument("--out", type=Path, help="a folder for the numbers as JSON")
    parser.add_argument("--machine", default="", help="what machine this is and what else it does, for the JSON")
    options = parser.parse_args()
    experiment = config.override(config.load(options.config), options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(experiment, Path(folder))
        found = measure(run, random_batch(run), saves=options.saves, every=options.every)
    for name, value in found.items():
        print(f"{name}: {value:.4g}")
    if options.out:
        command = " ".join([options.config, *options.overrides])
        print(save_report(options.out, "checkpoint", options.machine, {"config": command} | found))


if __name__ == "__main__":
    main()
