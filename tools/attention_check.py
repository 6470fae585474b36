"""Compile attention's kernels at production sizes for chips that need not be there, and check what they take.

    python tools/attention_check.py v5e:2x2 v5p:2x2x1 v6e:2x2 tpu7x:2x2x1   # needs the tpu extra
    python tools/attention_check.py h100 a100 rtx4090                       # needs the cuda extra
    python tools/attention_check.py here                                    # runs the kernels of this machine's device

For each target and each of its kernels: forward and gradient at 75,600 tokens x 40 heads x 128 (Wan 14B, 81 frames at
720p), the same with five references of 3,600 tokens that do not read the video, and 262,144 tokens in a batch of 4 with
a mask and packed samples of every row; the mask is data, not a constant; for the Triton kernels also float32, whose
blocks take twice the shared memory. It fails if a program does not compile, holds no kernel, or takes more temporary
memory than 1.25 times (forward) or 3 times (gradient) the bytes of q, k, v and the output.

`--forms v5p:2x2x1` compiles attention over four chips instead, by Ulysses, as a ring and as both, and fails if the
program has other collectives than its form, or a ring in which kernels wait for transfers: in the scheduled program a
kernel is called between the start of a transfer and its end, but for the last one of the keys' gradients.

`here` compares output, log-sum-exp and gradients with the reference in float32, in several shapes, types and masks,
and the gradients of two runs bit by bit; without an accelerator it interprets all kernels, in one small shape.
"""

import argparse
import functools
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import compile_check  # before jax, whose platform it sets

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import gradient
from compile_check import GIB
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax.attention import attention, sharded_attention
from kaleido_jax.masks import TokenMask

VIDEO, REFERENCE, HEADS, HEAD_DIM = 75_600, 3_600, 40, 128
KERNELS = {"tpu": ("pallas_tpu",), "gpu": ("pallas_gpu", "pallas_triton")}
CALLS = "tpu_custom_call|mosaic_gpu|triton"  # what the compiled text calls kernels
LIMITS = {"forward": 1.25, "gradient": 3.0}  # temporary bytes / bytes of q, k, v and the output
# GPUs that are described by what differs from the H100's description: less shared memory, above all.
GPUS = {
    "a100": {
        "major": 8,
        "minor": 0,
        "core_count": 108,
        "shared_memory_per_block_optin": 166912,
        "shared_memory_per_core": 167936,
        "fpus_per_core": 64,
        "device_description_str": '"NVIDIA A100-SXM4-80GB"',
    },
    "rtx4090": {
        "major": 8,
        "minor": 9,
        "core_count": 128,
        "shared_memory_per_block_optin": 101376,
        "shared_memory_per_core": 102400,
        "threads_per_core_limit": 1536,
        "device_memory_size": 25757220864,
        "device_description_str": '"NVIDIA GeForce RTX 4090"',
    },
}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


# By the number of neighbours that exchange heads: the collectives of a program over four chips, and how many transfers
# of its ring may wait. Ulysses: q, k, v and the output, or q, k, v and their gradients (the sum's cotangent is one
# everywhere); the bits are gathered by an all-reduce. Ring: keys, values and bits; in the backward pass twice, with the
# gradients of keys and values, whose last hop has nothing to hide behind; with two places the last hops of keys fall
# away, and the bits, which say whether there is anything to compute, are waited for.
FORMS: dict[int, dict[str, tuple[dict[str, int], int]]] = {
    4: {
        "forward": ({"all-reduce": 1, "all-to-all": 4}, 0),
        "gradient": ({"all-reduce": 1, "all-to-all": 6}, 0),
    },
    1: {
        "forward": ({"collective-permute": 3}, 0),
        "gradient": ({"collective-permute": 13}, 2),
    },
    2: {
        "forward": ({"all-reduce": 1, "all-to-all": 4, "collective-permute": 3}, 0),
        "gradient": ({"all-reduce": 1, "all-to-all": 6, "collective-permute": 7}, 3),
    },
}


def mask_shapes(tokens: int, *, rows: int = 1, samples: bool = False) -> TokenMask:
    bits = jax.ShapeDtypeStruct((rows, tokens), jnp.uint32)
    sample = jax.ShapeDtypeStruct((rows, tokens), jnp.int32) if samples else None
    return TokenMask(bits, bits, q_sample=sample, k_sample=sample, width=2)


def devices_of(target: str) -> tuple[list[Any], str]:
    """The chips of a target that this machine need not have, and the platform to lower for."""
    if target not in GPUS:
        return compile_check.devices_of(target)
    config = pathlib.Path(__file__).with_name("h100.textproto").read_text()
    for field, value in GPUS[target].items():
        config = re.sub(rf"\b{field}: (\"[^\"]*\"|[\d.]+)", f"{field}: {value}", config, count=1)
    name = {"topology_name": "1x1x1", "topology": "1x1x1", "target_config": config}
    return topologies.get_topology_desc(platform="cuda", **name).devices, "cuda"


def problem(tokens: int, mask: TokenMask | None, *, batch=1, heads=HEADS, dtype: Any = jnp.bfloat16) -> tuple[Any, ...]:
    x = jax.ShapeDtypeStruct((batch, tokens, heads, HEAD_DIM), dtype)
    return x, x, x, mask


def problems(backend: str) -> dict[str, tuple[Any, ...]]:
    references = VIDEO + 5 * REFERENCE
    made = {
        f"{VIDEO} tokens, no mask": problem(VIDEO, None),
        f"{references} tokens, references": problem(references, mask_shapes(references)),
        "262144 tokens, masks of 4 rows": problem(2**18, mask_shapes(2**18, rows=4, samples=True), batch=4, heads=2),
    }
    if backend == "pallas_triton":
        made[f"{VIDEO} tokens, float32"] = problem(VIDEO, mask_shapes(VIDEO, samples=True), dtype=jnp.float32)
    return made


def compile_for(platform: str, function: Callable, shapes: Any, sharding: Callable) -> Any:
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf))
    traced = jax.jit(function).trace(*jax.tree.map(place, shapes))
    return traced.lower(lowering_platforms=(platform,)).compile()


def check_one_chip(devices: list[Any], platform: str, backend: str) -> bool:
    mesh = Mesh(np.array(devices[:1]), ("tokens",))
    everywhere = lambda leaf: NamedSharding(mesh, PartitionSpec())
    attend = functools.partial(attention, backend=backend)
    fine = True
    for name, shapes in problems(backend).items():
        size = 4 * shapes[0].size * shapes[0].dtype.itemsize
        for kind, function in (("forward", attend), ("gradient", gradient(attend))):
            start = time.perf_counter()
            try:
                with jax.set_mesh(mesh):
                    compiled = compile_for(platform, function, shapes, everywhere)
            except Exception as error:  # compilers raise what they like
                fine = False
                print(f"{backend:13} {name + ', ' + kind:46} DOES NOT COMPILE: {str(error)[:1000]}", flush=True)
                continue
            temporary = compiled.memory_analysis().temp_size_in_bytes
            kernels = len(re.findall(CALLS, compiled.as_text()))
            good = temporary <= LIMITS[kind] * size and kernels > 0
            fine &= good
            print(
                f"{backend:13} {name + ', ' + kind:46} {time.perf_counter() - start:6.1f} s "
                f"{temporary / GIB:7.2f} GiB temporary, {temporary / size:5.3f} of q, k, v and output"
                f"{'' if good else '   TOO MUCH, OR NO KERNEL'}",
                flush=True,
            )
    return fine


def waiting_transfers(text: str) -> tuple[int, int]:
    """How many transfers of a ring there are in a scheduled program, and how many without a kernel meanwhile.

    Meanwhile: between a transfer's start and end a kernel is called, or a branch or loop that calls one.
    """
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = computations.setdefault(found[1], [])
        lines.append(line)

    @functools.cache
    def holds(name: str) -> bool:
        return any(works(line) for line in computations[name][1:])

    def works(line: str) -> bool:
        if "tpu_custom_call" in line:
            return True
        lists = re.findall(r"(?:computations?|calls|body)=(?:\{([^}]*)\}|([^,\s]+))", line)
        called = re.findall(r"[\w.-]+", " ".join(" ".join(found) for found in lists))
        return any(holds(name) for name in called if name in computations)

    total = waiting = 0
    for lines in computations.values():
        begun: dict[str, int] = {}
        for place, line in enumerate(lines):
            if found := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = .* collective-permute-start\(", line):
                begun[found[1]] = place
            elif found := re.search(r" collective-permute-done\(.*?%?(collective-permute-start[\w.-]*)\)", line):
                total += 1
                waiting += not any(works(between) for between in lines[begun[found[1]] : place])
    return total, waiting


def check_forms(devices: list[Any], platform: str) -> bool:
    mesh = Mesh(np.array(devices[:4]), ("tokens",))
    divide = lambda leaf: NamedSharding(mesh, PartitionSpec(None, "tokens"))
    shapes = problem(VIDEO, mask_shapes(VIDEO))
    fine = True
    for ulysses, kinds in FORMS.items():
        attend = functools.partial(sharded_attention, axis="tokens", ulysses=ulysses)
        for kind, function in (("forward", attend), ("gradient", gradient(attend))):
            start = time.perf_counter()
            with jax.set_mesh(mesh):
                compiled = compile_for(platform, function, shapes, divide)
            text = compiled.as_text()
            counts = {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}
            counts = {name: count for name, count in counts.items() if count}
            wanted, may_wait = kinds[kind]
            transfers, waiting = waiting_transfers(text)
            good = counts == wanted and waiting <= may_wait and "tpu_custom_call" in text
            fine &= good
            print(
                f"{f'4 chips, ulysses={ulysses}, {kind}':46} {time.perf_counter() - start:6.1f} s "
                f"{compiled.memory_analysis().temp_size_in_bytes / GIB:7.2f} GiB temporary, {counts}, {waiting} of "
                f"{transfers} transfers wait{'' if good else f'   EXPECTED {wanted}, at most {may_wait} that wait'}",
                flush=True,
            )
    return fine


class Case(NamedTuple):
    queries: int
    keys: int
    heads: int
    key_heads: int
    head_dim: int
    dtype: str
    masked: bool


CASES = (
    Case(1000, 1337, 4, 2, 128, "bfloat16", True),
    Case(1024, 1024, 2, 2, 128, "bfloat16", False),
    Case(1500, 700, 8, 1, 64, "float16", True),
    Case(333, 4000, 2, 2, 40, "bfloat16", True),
    Case(257, 300, 2, 1, 64, "float32", True),
)
INTERPRETED = (Case(70, 130, 2, 1, 40, "bfloat16", True),)
# Relative L2: probabilities are rounded to the type's 8 or 11 bits; float32 sums in another order.
TOLERANCES = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}


def random_problem(case: Case, batch: int = 2) -> tuple[tuple[Any, ...], tuple[Any, ...], TokenMask | None]:
    """q, k and v, cotangents of output and log-sum-exp, and a mask with rows that read nothing and two samples."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), case.dtype)
    queries, keys = (batch, case.queries, case.heads), (batch, case.keys, case.key_heads)
    inputs = draw(*queries, case.head_dim), draw(*keys, case.head_dim), draw(*keys, case.head_dim)
    cotangents = draw(*queries, case.head_dim), draw(batch, case.heads, case.queries).astype(jnp.float32)
    if not case.masked:
        return inputs, cotangents, None
    group = lambda tokens: np.sort(rng.integers(0, 4, (batch, tokens)), axis=1).astype(np.uint32)
    reads, groups = np.uint32(1) << group(case.queries), np.uint32(1) << group(case.keys)
    reads[:, case.queries // 2 :] |= 1
    reads[:, 10:20] = 0
    sample = lambda tokens: np.where(np.arange(tokens) < tokens - 40, 0, 1).astype(np.int32)
    return inputs, cotangents, TokenMask(reads, groups, q_sample=sample(case.queries), k_sample=sample(case.keys))


def results_of(inputs: Any, cotangents: Any, mask: Any, backend: str, interpret: bool) -> tuple[Any, ...]:
    """Output, log-sum-exp and the gradients of q, k and v."""

    @jax.jit
    def run(inputs, cotangents, mask):
        attend = functools.partial(attention, mask=mask, backend=backend, interpret=interpret, return_lse=True)
        results, transpose = jax.vjp(attend, *inputs)
        return (*results, *transpose(cotangents))

    return run(inputs, cotangents, mask)


def check_here() -> bool:
    """Whether the kernels of this machine's device agree with the reference, and with themselves."""
    platform = jax.default_backend()
    backends = KERNELS.get(platform, sum(KERNELS.values(), ()))
    interpret = platform not in KERNELS
    print(f"\nhere: {jax.devices()[0].device_kind}{', kernels interpreted' if interpret else ''}")
    fine = True
    for case in INTERPRETED if interpret else CASES:
        inputs, cotangents, mask = random_problem(case, batch=1 if interpret else 2)
        exact = jax.tree.map(lambda x: x.astype(jnp.float32), (inputs, cotangents))
        expected = results_of(*exact, mask, "reference", False)
        for backend in backends:
            if backend == "pallas_gpu" and case.dtype == "float32":
                continue
            results = results_of(inputs, cotangents, mask, backend, interpret)
            again = results if interpret else results_of(inputs, cotangents, mask, backend, interpret)
            errors = [relative_error(x, y) for x, y in zip(results, expected, strict=True)]
            same = all(bool(jnp.array_equal(x, y)) for x, y in zip(results, again, strict=True))
            good = max(errors) <= TOLERANCES[case.dtype] and same
            fine &= good
            print(
                f"{backend:13} {case.queries} x {case.keys} tokens, {case.heads}:{case.key_heads} heads x "
                f"{case.head_dim}, {case.dtype}{', mask' if case.masked else ''}: errors of out, lse, dq, dk, dv "
                f"{' '.join(f'{error:.1e}' for error in errors)}"
                f"{'' if same else ', NOT THE SAME TWICE'}{'' if good else '   WRONG'}",
                flush=True,
            )
    return fine


def relative_error(actual: Any, expected: Any) -> float:
    """In the L2 norm; a log-sum-exp of nothing counts as 0."""
    actual, expected = (np.where(x < -1e29, 0.0, x) for x in (np.asarray(actual, np.float64), np.asarray(expected)))
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    return float(error) if np.isfinite(error) else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "targets", nargs="+", metavar="TARGET", help="a TPU with its shape, such as v5p:2x2x1; h100; or here"
    )
    parser.add_argument("--forms", action="store_true", help="the forms over four chips, and not the kernels of one")
    args = parser.parse_args()
    targets = args.targets
    fine = True
    if "here" in targets:
        jax.config.update("jax_platforms", None)  # which compiling for others had set to the CPU
        fine &= check_here()
    for target in (target for target in targets if target != "here"):
        devices, platform = devices_of(target)
        print(f"\n{target}: {devices[0].device_kind}")
        backends = KERNELS["tpu" if platform == "tpu" else "gpu"]
        if args.forms:
            fine &= check_forms(devices, platform)
            continue
        for backend in backends[-1:] if target in GPUS else backends:  # GPUs before Hopper have Triton alone
            fine &= check_one_chip(devices, platform, backend)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
