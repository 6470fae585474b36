"""What the benchmarks under tools/ share: timing in turns, and reports as JSON."""

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "flax", "torch", "diffusers")


def fastest(
    runs: Mapping[str, Callable[[], object]], repeats: int, announce: Callable[[str], None] | None = None
) -> dict[str, float]:
    """Seconds of the fastest of several runs of each, taken in turns after one run that does not count.

    Turns, so that what else the machine does falls on all alike; the first run compiles. announce: is told what runs
    next, outside the time.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for attempt in range(repeats + 1):
        for name, run in runs.items():
            if announce:
                announce(name)
            began = time.perf_counter()
            jax.block_until_ready(run())
            if attempt:
                times[name].append(time.perf_counter() - began)
    return {name: min(values) for name, values in times.items()}


def threads() -> int:
    """How many threads XLA takes on the CPU; PyTorch is to be given as many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def save_report(folder: Path, name: str, machine: str, report: Mapping[str, Any], *, device: str = "cpu") -> Path:
    """Writes the numbers, the machine in words, and the versions measured.

    To `folder`/`name`-cpu-`threads`-cores.json, or to `folder`/`name`-`device`.json for a device other than "cpu".
    """
    words = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = folder / (f"{name}-cpu-{threads()}-cores.json" if words == "cpu" else f"{name}-{words}.json")
    versions = {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "threads": threads(), "versions": versions} | report
    path.write_text(json.dumps(_rounded(content), indent=1) + "\n")
    return path


def _version(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _rounded(value: Any) -> Any:
    """Numbers with four digits: more of them would be noise."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value
