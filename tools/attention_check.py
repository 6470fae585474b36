"""Compile attention's kernels at production sizes for TPUs that need not be there, and check what they take.

    python tools/attention_check.py v5e:2x2 v5p:2x2x1 v6e:2x2   # needs the tpu extra

For each target: forward and gradient at 75,600 tokens x 40 heads x 128 (Wan 14B, 81 frames at 720p), the same with five
references of 3,600 tokens that do not read the video, and 262,144 tokens in a batch of 4 with a mask and packed samples
of every row; the mask is data, not a constant. Then the forms over four chips, with the collectives in their programs.
It fails if a program does not compile, holds no kernel, takes more temporary memory than 1.25 times (forward) or 3
times (gradient) the bytes of q, k, v and the output, or has other collectives than its form.
"""

import argparse
import functools
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from compile_check import GIB, devices_of  # before jax, whose platform it sets

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax.attention import attention, sharded_attention
from kaleido_jax.masks import TokenMask

VIDEO, REFERENCE, HEADS, HEAD_DIM = 75_600, 3_600, 40, 128
LIMITS = {"forward": 1.25, "gradient": 3.0}  # temporary bytes / bytes of q, k, v and the output
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def mask_shapes(tokens: int, *, rows: int = 1, samples: bool = False) -> TokenMask:
    bits = jax.ShapeDtypeStruct((rows, tokens), jnp.uint32)
    sample = jax.ShapeDtypeStruct((rows, tokens), jnp.int32) if samples else None
    return TokenMask(bits, bits, q_sample=sample, k_sample=sample, width=2)


def problem(tokens: int, mask: TokenMask | None, *, batch: int = 1, heads: int = HEADS) -> tuple[Any, ...]:
    x = jax.ShapeDtypeStruct((batch, tokens, heads, HEAD_DIM), jnp.bfloat16)
    return x, x, x, mask


def problems() -> dict[str, tuple[Any, ...]]:
    references = VIDEO + 5 * REFERENCE
    return {
        f"{VIDEO} tokens, no mask": problem(VIDEO, None),
        f"{references} tokens, references": problem(references, mask_shapes(references)),
        "262144 tokens, masks of 4 rows": problem(2**18, mask_shapes(2**18, rows=4, samples=True), batch=4, heads=2),
    }


def gradient(attend: Callable) -> Callable:
    def total(q, k, v, mask):
        return attend(q, k, v, mask).astype(jnp.float32).sum()

    return jax.grad(total, argnums=(0, 1, 2))


def compile_for(platform: str, function: Callable, shapes: Any, sharding: Callable) -> Any:
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf))
    traced = jax.jit(function).trace(*jax.tree.map(place, shapes))
    return traced.lower(lowering_platforms=(platform,)).compile()


def check_one_chip(devices: list[Any], platform: str) -> bool:
    mesh = Mesh(np.array(devices[:1]), ("tokens",))
    everywhere = lambda leaf: NamedSharding(mesh, PartitionSpec())
    fine = True
    for name, shapes in problems().items():
        size = 4 * shapes[0].size * shapes[0].dtype.itemsize
        for kind, function in (("forward", attention), ("gradient", gradient(attention))):
            start = time.perf_counter()
            with jax.set_mesh(mesh):
                compiled = compile_for(platform, function, shapes, everywhere)
            temporary = compiled.memory_analysis().temp_size_in_bytes
            kernels = len(re.findall("tpu_custom_call", compiled.as_text()))
            good = temporary <= LIMITS[kind] * size and kernels > 0
            fine &= good
            print(
                f"{name + ', ' + kind:46} {time.perf_counter() - start:6.1f} s {temporary / GIB:7.2f} GiB temporary, "
                f"{temporary / size:5.3f} of q, k, v and output{'' if good else '   TOO MUCH, OR NO KERNEL'}",
                flush=True,
            )
    return fine


def check_forms(devices: list[Any], platform: str) -> bool:
    mesh = Mesh(np.array(devices[:4]), ("tokens",))
    # What moves tokens. The bit vectors of Ulysses are gathered besides, which the compiler may write as an all-reduce.
    expected = {4: {"all-to-all"}, 1: {"collective-permute"}, 2: {"all-to-all", "collective-permute"}}
    divide = lambda leaf: NamedSharding(mesh, PartitionSpec(None, "tokens"))
    shapes = problem(VIDEO, mask_shapes(VIDEO))
    fine = True
    for ulysses, wanted in expected.items():
        attend = functools.partial(sharded_attention, axis="tokens", ulysses=ulysses)
        for kind, function in (("forward", attend), ("gradient", gradient(attend))):
            start = time.perf_counter()
            with jax.set_mesh(mesh):
                compiled = compile_for(platform, function, shapes, divide)
            text = compiled.as_text()
            counts = {name: len(re.findall(rf" {name}(?:-start)?\(", text)) for name in COLLECTIVES}
            counts = {name: count for name, count in counts.items() if count}
            gathers = {"all-gather", "all-reduce"} if ulysses > 1 else set()
            good = set(counts) - gathers == wanted and "tpu_custom_call" in text
            fine &= good
            print(
                f"{f'4 chips, ulysses={ulysses}, {kind}':46} {time.perf_counter() - start:6.1f} s "
                f"{compiled.memory_analysis().temp_size_in_bytes / GIB:7.2f} GiB temporary, {counts}"
                f"{'' if good else f'   EXPECTED {sorted(wanted)}'}",
                flush=True,
            )
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="a TPU with its shape, such as v5p:2x2x1")
    fine = True
    for target in parser.parse_args().targets:
        devices, platform = devices_of(target)
        print(f"\n{target}: {devices[0].device_kind}")
        fine &= check_one_chip(devices, platform)
        fine &= check_forms(devices, platform)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
