"""Which mesh and what to keep for the backward pass: closed formulas for every candidate, compiled plans of the best.

The formulas only choose what is compiled. They follow the step: weights, their average and two moments in float32,
gradients once more for each sum of parts; of every layer what `train.keep` keeps; and of traffic what the committed
plans (docs/bench/plans.md) showed for each parameter and token.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from kaleido_jax.errors import UsageError
from kaleido_jax.parallel.chips import Chip
from kaleido_jax.parallel.mesh import AXES, MeshConfig, factorisations
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.plan import ATTENTION_ROUNDS, Plan, abstract_step, forward_flops, plan

MOST_TENSOR, MOST_SEQUENCE, MOST_SAMPLES = 8, 32, 4
# Matrix products of a step in units of the forward pass's.
_PRODUCT_ROUNDS = {"everything": 3.0, "products": 3.0, "attention": 4.0, "offloaded": 4.0, "nothing": 4.0}
# Bytes that a device receives of a parameter in each part of a batch: gathered in both passes, and its gradient.
_GATHERED = {"tpu": 20.0, "cuda": 6.4, "cpu": 20.0}
# Tensors as large as a layer's input that a device receives of its tokens in a layer: q, k, v and the outcome are
# exchanged for heads and back, there once and in the backward pass two and a half times.
_EXCHANGED = 14.0
# What compiled steps take of temporary memory, by what the formula counts.
_TEMPORARY = 1.8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guess:
    """What the formulas say of one candidate; memory in bytes of a device, seconds of a step.

    waiting: the seconds of its traffic, most of which computing hides.
    """

    experiment: Experiment
    memory: float
    seconds: float
    waiting: float

    @property
    def words(self) -> str:
        """The overrides that make it."""
        train, mesh = self.experiment.train, self.experiment.mesh
        axes = " ".join(f"mesh.{name}={size}" for name, size in zip(AXES, mesh.shape))
        return f"{axes} train.accumulate={train.accumulate} train.keep={train.keep}"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of an experiment, whatever its mesh: parameters, tokens of a sample, operations of the batch's forward pass."""

    parameters: int
    tokens: int
    products: int
    attention: int


def sizes_of(experiment: Experiment) -> Sizes:
    made = abstract_step(experiment)
    everything, attention = forward_flops(made)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(made.state.parameters))
    return Sizes(parameters, made.layout.tokens("visual"), everything - attention, attention)


def candidates(experiment: Experiment, devices: int) -> Iterator[Experiment]:
    """The experiment on every mesh of so many devices that divides it, in few parts, with each train.keep."""
    batch, heads = experiment.train.batch, experiment.transformer.heads
    for shape in factorisations(devices, len(AXES)):
        data, fsdp, sequence, tensor = shape
        if batch % (data * fsdp) or heads % tensor or tensor > MOST_TENSOR or sequence > MOST_SEQUENCE:
            continue
        mesh = MeshConfig(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)
        own = batch // (data * fsdp)
        for samples, keep in itertools.product(range(1, min(MOST_SAMPLES, own) + 1), ATTENTION_ROUNDS):
            if own % samples == 0:
                train = dataclasses.replace(experiment.train, accumulate=own // samples, keep=keep)
                yield dataclasses.replace(experiment, mesh=mesh, train=train)


def guess(experiment: Experiment, sizes: Sizes, chip: Chip) -> Guess:
    """Memory and time of a step by the formulas."""
    train, wan = experiment.train, experiment.transformer
    data, fsdp, sequence, tensor = shape = experiment.mesh.shape
    shards, devices = fsdp * tensor, math.prod(shape)
    part = train.batch // (data * fsdp * train.accumulate)  # samples that a device has at a time
    tokens = part * sizes.tokens / sequence
    wide = 2.0 * tokens * wan.dim  # bytes of a layer's input
    inner = (7 + wan.ffn_dim / wan.dim) / tensor
    kept = {"nothing": 1.0, "attention": 1.0 + 1.0 / tensor, "products": 1.0 + inner, "everything": 2.0 + 2.0 * inner}
    kept["offloaded"] = 0.0
    gradients = 4.0 * sizes.parameters / shards * (1 + (train.accumulate > 1))
    at_work = wide * (4.0 + 2.0 * inner)
    memory = 16.0 * sizes.parameters / shards + _TEMPORARY * (
        gradients + wan.layers * wide * kept[train.keep] + at_work
    )

    products, attention = sizes.products * _PRODUCT_ROUNDS[train.keep], sizes.attention * ATTENTION_ROUNDS[train.keep]
    bound = (products / chip.product + attention / chip.attention) / (chip.peak * devices)
    reached = (products + attention) / (chip.peak * chip.reached * devices)
    others = lambda size: (size - 1) / size
    layers = wan.layers * train.accumulate * wide
    received = (
        2.0 * 4.0 * sizes.parameters / shards * others(data) * train.accumulate,
        _GATHERED[chip.platform] * sizes.parameters / tensor * others(fsdp) * train.accumulate,
        _EXCHANGED * layers * others(sequence),
        16.0 * layers * others(tensor),
    )
    waiting = sum(size / _rate(chip, shape, axis) for axis, size in enumerate(received))
    copied = 2.0 * layers * (1.0 + 1.0 / tensor) / chip.host if train.keep == "offloaded" else 0.0
    seconds = max(bound, reached, waiting, copied)
    return Guess(experiment=experiment, memory=memory, seconds=seconds, waiting=waiting + copied)


def _rate(chip: Chip, shape: tuple[int, ...], axis: int) -> float:
    """Bytes a second along an axis of the mesh."""
    return chip.link if not chip.node or math.prod(shape[axis:]) <= chip.node else chip.network


def search(
    experiment: Experiment,
    devices: list[Any],
    chip: Chip,
    *,
    target: str,
    compiled: int = 3,
    quick: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[tuple[Guess, Plan]]:
    """The candidates that were compiled, the best first: those that fit by their estimated time, then the others.

    Args:
      compiled: how many are compiled; different meshes come before the same one with another `train.keep`.
      report: told of each before it is compiled, which takes up to minutes.

    Raises:
      UsageError: no mesh divides devices, batch and heads.
    """
    possible = list(candidates(experiment, len(devices)))
    if not possible:
        raise UsageError(
            f"No mesh of {len(devices)} devices divides a batch of {experiment.train.batch} and "
            f"{experiment.transformer.heads} heads"
        )
    sizes = sizes_of(experiment)
    guesses = [guess(candidate, sizes, chip) for candidate in possible]
    # A formula that is a quarter off must not rule out what fits.
    fitting = [found for found in guesses if found.memory <= 1.25 * chip.memory]
    ranked = sorted(fitting, key=lambda found: (found.seconds, found.waiting))
    ranked = ranked or sorted(guesses, key=lambda found: found.memory)
    chosen, meshes = [], set()
    for found in ranked:
        if found.experiment.mesh not in meshes and len(chosen) < compiled:
            chosen.append(found)
            meshes.add(found.experiment.mesh)
    report(f"{len(guesses)} candidates, {len(fitting)} may fit; compiling {len(chosen)}")
    results = []
    for found in chosen:
        report(f"{found.words}: by formula {found.memory / 2**30:.1f} GiB, {found.seconds:.1f} s")
        results.append((found, plan(found.experiment, devices, chip, target=target, quick=quick)))
    return sorted(results, key=lambda pair: (not pair[1].fits, pair[1].seconds["estimate"], pair[1].total))
