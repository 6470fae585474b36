"""Compile the models for accelerators that need not be there, and print what each program takes of the chip.

    python tools/compile_check.py v5e:2x2 v5p:2x2x1 v6e:2x2   # needs the tpu extra
    python tools/compile_check.py h100                        # needs the cuda extra

Every program runs on one chip, in bfloat16, with the reference attention: Wan's 1.3B model in full and a few layers of
the 14B one (the layers are scanned, so more of them add parameters and nothing else to a forward pass), at 480p, 33
frames and three references, and the gradient of the flow matching loss with every layer recomputed; and a forward pass
of a few layers of FLUX.1 at 1024 x 1024 pixels. It fails if a program does not compile or does not fit the chip's
memory. `--quick` compiles TPU programs with the least optimisation effort: six times faster, and the temporary memory
it prints is up to half above what the program takes in earnest.
"""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # the host's; the programs are compiled for another
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax.methods import kaleido, text_to_image
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.models.wan import WanConfig, WanTransformer

GIB = 2**30
# Memory of one chip in GiB.
MEMORY = {"v5e": 16, "v5p": 95, "v6e": 32, "tpu7x": 96, "h100": 79}
VIDEO, REFERENCES, TEXT = (9, 30, 52), 3, 512  # 33 frames of 480 x 832 pixels: patches of 16 x 16 in time steps of 4


def devices_of(target: str) -> tuple[list[Any], str]:
    """The chips of a target that this machine need not have, and the platform to lower for."""
    if target == "h100":
        config = pathlib.Path(__file__).with_name("h100.textproto").read_text()
        name = {"topology_name": "1x1x1", "topology": "1x1x1", "target_config": config}
        return topologies.get_topology_desc(platform="cuda", **name).devices, "cuda"
    return topologies.get_topology_desc(platform="tpu", topology_name=target).devices, "tpu"


def programs() -> dict[str, tuple[Callable, tuple]]:
    """Functions with the shapes of their arguments."""
    small = dataclasses.replace(WanConfig.t2v_1_3b(), dtype="bfloat16")
    large = dataclasses.replace(WanConfig.t2v_14b(), dtype="bfloat16", layers=4)
    named = {"Wan 1.3B": small, "Wan 14B, 4 of 40 layers": large}
    made = {}
    for name, config in named.items():
        made[f"{name}: forward"] = wan(config, gradient=False)
        made[f"{name}: gradient"] = wan(config, gradient=True)
    few = dataclasses.replace(FluxConfig.dev(), dtype="bfloat16", double_layers=2, single_layers=4)
    return made | {"FLUX.1, 6 of 57 layers: forward": flux(few)}


def flux(config: FluxConfig) -> tuple[Callable, tuple]:
    layout = text_to_image.layout((1, 64, 64), text_tokens=TEXT)
    table = jax.eval_shape(functools.partial(text_to_image.table, layout), np.array([0.5], np.float32))
    graphdef, parameters = nnx.split(nnx.eval_shape(lambda: FluxTransformer(config, nnx.Rngs(0))))
    half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    parameters = jax.tree.map(lambda leaf: half(*leaf.shape), parameters)
    tokens = half(1, layout.tokens("visual"), math.prod(config.patch) * config.channels)
    guidance = jax.ShapeDtypeStruct((1,), jnp.float32)

    def forward(parameters, tokens, table, text, pooled, guidance):
        return nnx.merge(graphdef, parameters)(tokens, table, text, pooled, layout=layout, guidance=guidance)

    return forward, (parameters, tokens, table, half(1, TEXT, config.text_dim), half(1, config.pooled_dim), guidance)


def wan(config: WanConfig, *, gradient: bool) -> tuple[Callable, tuple]:
    layout = kaleido.layout(VIDEO, [(1, *VIDEO[1:])] * REFERENCES, text_tokens=TEXT)
    counts, lengths, times = np.array([REFERENCES]), np.array([TEXT]), np.array([0.5], np.float32)
    table = jax.eval_shape(
        lambda times: kaleido.table(layout, times=times, reference_counts=counts, text_lengths=lengths), times
    )
    graphdef, parameters = nnx.split(nnx.eval_shape(lambda: WanTransformer(config, rngs=nnx.Rngs(0))))
    half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    parameters = jax.tree.map(lambda leaf: half(*leaf.shape), parameters)
    tokens = half(1, layout.tokens("visual"), math.prod(config.patch) * config.in_channels)
    text = half(1, TEXT, config.text_dim)

    def forward(parameters, tokens, table, text):
        return nnx.merge(graphdef, parameters)(tokens, table, text, layout=layout, remat=gradient)

    if not gradient:
        return forward, (parameters, tokens, table, text)

    def loss(parameters, tokens, table, text, target):
        velocity = forward(parameters, tokens, table, text).astype(jnp.float32)
        return jnp.mean(jnp.square(velocity - target))

    target = jax.ShapeDtypeStruct((1, math.prod(VIDEO), math.prod(config.patch) * config.out_channels), jnp.float32)
    return jax.value_and_grad(loss), (parameters, tokens, table, text, target)


def check(target: str, *, quick: bool) -> bool:
    """Compiles every program for one target and prints a line for each; whether all compiled and fit."""
    devices, platform = devices_of(target)
    options = {"exec_time_optimization_effort": -1.0} if quick and platform == "tpu" else None
    memory = MEMORY[target.partition(":")[0]]
    print(f"\n{target}: {devices[0].device_kind}, {memory} GiB a chip")
    print(f"{'program':42} {'compile':>8} {'arguments':>10} {'output':>10} {'temporary':>10}")
    here = NamedSharding(Mesh(np.array(devices[:1]), ("data",)), PartitionSpec())
    fine = True
    for name, (function, shapes) in programs().items():
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
        start = time.perf_counter()
        try:
            compiled = jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).compile(options)
        except jax.errors.JaxRuntimeError as error:
            fine = False
            print(f"{name:42} does not compile: {str(error)[:2000]}")
            continue
        seconds, sizes = time.perf_counter() - start, compiled.memory_analysis()
        parts = (sizes.argument_size_in_bytes, sizes.output_size_in_bytes, sizes.temp_size_in_bytes)
        fits = sum(parts) - sizes.alias_size_in_bytes <= memory * GIB
        fine &= fits
        columns = " ".join(f"{part / GIB:6.2f} GiB" for part in parts)
        print(f"{name:42} {seconds:6.1f} s {columns}{'' if fits else '   DOES NOT FIT'}", flush=True)
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "targets", nargs="+", metavar="TARGET", help=f"one of {', '.join(MEMORY)}; a TPU with its shape"
    )
    parser.add_argument("--quick", action="store_true", help="least optimisation effort (TPU)")
    arguments = parser.parse_args()
    targets = arguments.targets
    unknown = [target for target in targets if target.partition(":")[0] not in MEMORY]
    if unknown:
        parser.error(f"unknown target {unknown[0]!r}; known: {', '.join(MEMORY)}")
    results = [check(target, quick=arguments.quick) for target in targets]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
