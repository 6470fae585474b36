"""Time and memory of the real `kaleido generate` at its default size, from a cold start and from a warm compile cache.

    python tools/bench_generate.py --out outputs/bench

Each run is a process of its own on two cores. Cold is an empty compile cache; warm is the cache that the cold run left.
Prints the figures as ratios of their limits, and ends with 1 if one is exceeded.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from kaleido_jax.testing.benchmark import save_report

COMMAND = [sys.executable, "-c", "from kaleido_jax.cli import program; program()"]
LIMITS = {"cold": 90.0, "warm": 30.0}  # seconds
MEMORY_LIMIT = 2.0  # GB, the peak resident memory of the process
PROMPT = "a red cat walks to the left"


def run(folder: Path, name: str, model: str) -> tuple[float, float]:
    """(seconds, GB at the peak) of one run of the command in `folder`."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    request = ["generate", "--reference", "a.png", "--reference", "b.png", "--prompt", PROMPT]
    began = time.monotonic()
    with open(folder / f"{name}.log", "wb") as log:
        child = subprocess.Popen(
            [*COMMAND, *request, "--model", model, "--out", f"{name}.mp4"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"kaleido generate ended with {child.returncode}:\n{(folder / f'{name}.log').read_text()}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kilobytes elsewhere
    return time.monotonic() - began, usage.ru_maxrss * unit / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="miniature", help="a model's name or folder (default: miniature)")
    parser.add_argument("--out", type=Path, help="a folder for the numbers as JSON")
    parser.add_argument("--machine", default="", help="what machine this is and what else it does, for the JSON")
    args = parser.parse_args()
    model = str(Path(args.model).resolve()) if os.path.isdir(args.model) else args.model
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    random, exceeded, report = np.random.default_rng(0), False, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("a.png", "b.png"):
            Image.fromarray(random.integers(0, 256, (120, 160, 3), dtype=np.uint8)).save(folder / name)
        for name, limit in LIMITS.items():
            seconds, memory = run(folder, name, model)
            print(f"{name}: {seconds:5.1f} s ({seconds / limit:.2f} of {limit:.0f} s), ", end="")
            print(f"{memory:.2f} GB ({memory / MEMORY_LIMIT:.2f} of {MEMORY_LIMIT:.0f} GB)")
            report[name] = {"seconds": seconds, "limit, seconds": limit, "GB": memory, "limit, GB": MEMORY_LIMIT}
            exceeded |= seconds > limit or memory > MEMORY_LIMIT
    if args.out:
        print(save_report(args.out, "generate", args.machine, {"model": args.model} | report))
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
