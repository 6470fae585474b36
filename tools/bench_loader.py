"""Samples per second of the procedural world: drawn on the fly, and read back from an ArrayRecord data set.

    python tools/bench_loader.py --samples 512 --batch 16 --workers 0 1 2

Prints one line a source and worker count. The data set is written into a temporary folder (or `--directory`, where it
stays).
"""

import argparse
import contextlib
import tempfile
import time

from kaleido_jax.data.loader import Bucket, batches, iterate, stored_source, world_batches
from kaleido_jax.data.subject_world.subject_world_dataset_builder import SubjectWorldConfig, build


def samples_per_second(dataset, samples: int, batch: int, workers: int) -> float:
    """Measured after each worker's first batch: starting processes and reading photographs does not count."""
    with contextlib.closing(iterate(dataset, workers=workers)) as iterator:
        for _ in range(max(workers, 1)):
            next(iterator)
        start = time.perf_counter()
        rounds = max(samples // batch, 1)
        for _ in range(rounds):
            next(iterator)
        return rounds * batch / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 96), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--directory")
    options = parser.parse_args()
    height, width = options.size
    with contextlib.ExitStack() as stack:
        directory = options.directory or stack.enter_context(tempfile.TemporaryDirectory())
        config = SubjectWorldConfig(
            name="benchmark",
            height=height,
            width=width,
            frames=options.frames,
            samples=(options.samples, 1),
        )
        start = time.perf_counter()
        folder = build(directory, config)
        print(f"writing ArrayRecord: {options.samples / (time.perf_counter() - start):.0f} samples/s")
        bucket = Bucket(height=height, width=width, frames=options.frames)
        for name, dataset in (
            ("on the fly", world_batches(options.batch, (bucket,))),
            ("ArrayRecord, shuffled", batches(stored_source(folder), options.batch, seed=0)),
        ):
            for workers in options.workers:
                rate = samples_per_second(dataset, options.samples, options.batch, workers)
                print(f"{name}, {workers} workers: {rate:.0f} samples/s")


if __name__ == "__main__":
    main()
