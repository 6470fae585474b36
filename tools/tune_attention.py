"""Find the block sizes that are fastest on this machine's device, and write them to the table that attention reads.

    python tools/tune_attention.py

Each kernel of the device runs with each of its candidates, dense and with references that do not read the video; the
least sum of times wins. Candidates that do not compile, or do not fit the device, are left out. Where the device has
several backends, the one whose forward and backward pass take the least time is written down as the fastest, which
"auto" is from then on. The table's other devices stay as they are. Without an accelerator kernels are interpreted: for
tests of this tool, with `--table`.
"""

import argparse
import functools
import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from attention_cases import HEAD_DIM, Case, cases

from kaleido_jax.attention import block_sizes
from kaleido_jax.attention.reference import Visibility
from kaleido_jax.testing.benchmark import fastest

BACKENDS = {"tpu": ("pallas_tpu",), "gpu": ("pallas_gpu", "pallas_triton")}
# By backend and kernel: what to try. Sizes as in the kernels' BlockSizes.
CANDIDATES: dict[str, dict[str, list[tuple[int, ...]]]] = {
    "pallas_tpu": {
        "forward": list(itertools.product((256, 512, 1024), (512, 1024, 2048))),
        "backward": list(itertools.product((256, 512, 1024), (256, 512, 1024))),
    },
    "pallas_gpu": {
        "forward": [(128, 2), (64, 2), (64, 4), (192, 2)],
        "query gradient": [(64, 2), (64, 3), (128, 2)],
        "key gradient": [(64, 2), (64, 3), (128, 2)],
    },
    "pallas_triton": {
        "forward": [(128, 64, 8), (128, 64, 4), (128, 32, 4), (64, 64, 4), (128, 128, 8)],
        "backward": [(64, 64, 4), (64, 32, 4), (128, 64, 8), (32, 64, 4)],
    },
}


def programs(backend: str, kernel: str, sizes: tuple[int, ...], case: Case, interpret: bool) -> Callable[[], object]:
    """Runs one kernel with these sizes on a problem; of a backward pass the other kernel keeps its own."""
    module = importlib.import_module(f"kaleido_jax.attention.{backend}")
    q, k, v = case.inputs(jnp.bfloat16)
    row = lambda x: jnp.asarray(x).reshape(1, -1)
    visibility = None if case.mask is None else Visibility(row(case.mask.reads), row(case.mask.groups), None, None)
    scale = HEAD_DIM**-0.5
    chosen: Any = module.BlockSizes(*sizes)
    if kernel == "forward":
        run = jax.jit(functools.partial(module.forward, scale=scale, sizes=chosen, interpret=interpret))
        return lambda: run(q, k, v, visibility)
    if kernel == "query gradient":
        chosen = (chosen, module.KEY_GRADIENT)
    elif kernel == "key gradient":
        chosen = (module.QUERY_GRADIENT, chosen)
    lse = jnp.zeros((1, case.heads, case.tokens), jnp.float32)
    run = jax.jit(functools.partial(module.backward, scale=scale, sizes=chosen, interpret=interpret))
    return lambda: run(q, k, v, visibility, q, lse, q, lse)


def best(
    backend: str,
    kernel: str,
    candidates: Iterable[tuple[int, ...]],
    problems: list[Case],
    repeats: int,
    interpret: bool,
) -> tuple[tuple[int, ...], float] | None:
    """The candidate with the least sum of times over the problems, and these seconds; None if none compiles."""
    totals: dict[tuple[int, ...], float] = {}
    for sizes in candidates:
        try:
            runs = {case.name: programs(backend, kernel, sizes, case, interpret) for case in problems}
            totals[sizes] = sum(fastest(runs, repeats).values())
        except Exception as error:  # too much shared memory, too many registers: compilers raise what they like
            print(f"{backend} {kernel} {sizes}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
            continue
        print(f"{backend} {kernel} {sizes}: {1e3 * totals[sizes]:.3f} ms", flush=True)
    return min(totals.items(), key=lambda item: item[1]) if totals else None


def passes(seconds: dict[str, float]) -> float | None:
    """Of a forward and a backward pass, from the best times of a backend's kernels; None if one of them is missing.

    A gradient's kernel is timed within the whole backward pass: the least of these times has the better of two sizes.
    """
    backward = [time for kernel, time in seconds.items() if kernel != "forward"]
    return seconds["forward"] + min(backward) if backward and "forward" in seconds else None


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=block_sizes.TABLE, help="where the table is")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sides of pictures by this")
    parser.add_argument("--backend", default="", help="only this one")
    parser.add_argument("--most", type=int, default=100, help="candidates of a kernel to try")
    args = parser.parse_args(words)
    platform, kind = jax.default_backend(), jax.devices()[0].device_kind
    backends = [name for name in BACKENDS.get(platform, tuple(CANDIDATES)) if args.backend in ("", name)]
    dense, *others = cases(args.shrink)
    problems = [dense, *(case for case in others if case.name.startswith("unidirectional"))]
    table = json.loads(args.table.read_text()) if args.table.exists() else {}
    seconds: dict[str, dict[str, float]] = {}
    for backend in backends:
        for kernel, candidates in CANDIDATES[backend].items():
            interpret = platform not in BACKENDS
            found = best(backend, kernel, candidates[: args.most], problems, args.repeats, interpret)
            if found is not None:
                table.setdefault(kind, {}).setdefault(backend, {})[kernel] = list(found[0])
                seconds.setdefault(backend, {})[kernel] = found[1]
    if len(backends) > 1 and (whole := {backend: both for backend in seconds if (both := passes(seconds[backend]))}):
        table[kind]["fastest"] = min(whole, key=lambda backend: whole[backend])
    args.table.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    print(f"{args.table}: {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
