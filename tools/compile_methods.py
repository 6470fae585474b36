"""Compile every method's recipe at its paper's scale for accelerators that need not be there.

    python tools/compile_methods.py --quick v5p:2x2x1   # needs the tpu extra
    python tools/compile_methods.py h100:1x1            # needs the cuda extra

Training steps of configs/ for one sample on one chip, everything of the step included: AnyID's 5B network with five
clips of 121 frames, ContextAnyone's 1.3B one in full, LCT's 14B one with nine shots. Layers are scanned, so those that
are left out change nothing but how often the loop runs. And one pass of CharaConsist on FLUX.1 [dev] at 1024 x 1024:
all layers, every step, background kept, the identity picture and four frames in lock-step. Whatever such a pass holds
beside weights, the identity picture's keys and values and the activations of all pictures among it, must be at most
4 GB. It fails if a program does not compile, does not fit the chip, or holds more.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"  # the host's; the programs are compiled for another

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax import config as configs
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.parallel.chips import Target
from kaleido_jax.parallel.target import devices_of
from kaleido_jax.training.plan import plan

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "configs"
# Recipes that train, with the layers that one chip can hold the state of.
LAYERS = {"anyid_5b": 4, "contextanyone_1_3b": 30, "lct_14b": 2}
PICTURES = "characonsist_flux_dev"
MOST = 4e9  # bytes
GB = 1e9


def train(name: str, target: Target, *, quick: bool) -> bool:
    """Compiles the step of a recipe; whether it fits."""
    experiment = configs.load(str(FOLDER / f"{name}.py"))
    transformer = experiment.transformer
    cut = dataclasses.replace(
        experiment,
        transformer=dataclasses.replace(transformer, layers=LAYERS[name]),
        train=dataclasses.replace(experiment.train, batch=1),
        mesh=MeshConfig(),
    )
    made = plan(cut, devices_of(target)[:1], target.chip, target=str(target), quick=quick)
    state, temporary = made.total - made.bytes["temporary"], made.bytes["temporary"]
    layers = f"{LAYERS[name]} of {transformer.layers} layers"
    print(
        f"{name:22} {layers:18} {made.tokens:8} tokens {made.compile_seconds:6.1f} s "
        f"{state / GB:7.2f} GB state {temporary / GB:7.2f} GB temporary{'' if made.fits else '   DOES NOT FIT'}",
        flush=True,
    )
    return made.fits


def pictures(target: Target, *, quick: bool) -> bool:
    """Compiles a pass of CharaConsist; whether what it holds beside weights and pictures is little enough."""
    recipe = configs.load(str(FOLDER / f"{PICTURES}.py"))
    function, shapes = recipe.abstract_pass()
    here = NamedSharding(Mesh(np.array(devices_of(target)[:1]), ("data",)), PartitionSpec())
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
    options = {"exec_time_optimization_effort": -1.0} if quick and target.chip.platform == "tpu" else None
    start = time.perf_counter()
    compiled = jax.jit(function).trace(*shapes).lower(lowering_platforms=(target.chip.platform,)).compile(options)
    seconds, sizes = time.perf_counter() - start, compiled.memory_analysis()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes[0].values())
    held = sizes.argument_size_in_bytes - weights + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    fine = held <= MOST and weights + held <= target.chip.memory
    layers = f"{recipe.transformer.double_layers + recipe.transformer.single_layers} layers"
    print(
        f"{PICTURES:22} {layers:18} {1 + recipe.at_once} pictures {seconds:9.1f} s {weights / GB:7.2f} GB weights "
        f"{held / GB:6.2f} GB all else{'' if fine else f'   MORE THAN {MOST / GB:.0f} GB, OR DOES NOT FIT'}",
        flush=True,
    )
    return fine


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="one chip is taken of it: v5p:2x2x1, v6e:2x2, h100:1x1")
    parser.add_argument("--quick", action="store_true", help="least optimisation effort (TPU)")
    parser.add_argument("--only", metavar="NAME", help=f"one of {', '.join((*LAYERS, PICTURES))}")
    arguments = parser.parse_args(words)
    target, names = Target.parse(arguments.target), (*LAYERS, PICTURES)
    if arguments.only and arguments.only not in names:
        parser.error(f"unknown recipe {arguments.only!r}; known: {', '.join(names)}")
    chosen = [name for name in names if arguments.only in (None, name)]
    print(f"one chip of {target}, {target.chip.memory / GB:.1f} GB")
    fine = [
        pictures(target, quick=arguments.quick) if name == PICTURES else train(name, target, quick=arguments.quick)
        for name in chosen
    ]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
