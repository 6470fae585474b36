"""What a step of sampling takes of chips that need not be there: the sampler's program, compiled for them.

All branches of the guidance are one batch, divided by data and fsdp; tokens are divided by sequence, weights by fsdp
and tensor. The blocks' kernels lie in the dtype that they are multiplied in.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax.bundle import merge
from kaleido_jax.diffusion import samplers
from kaleido_jax.errors import UsageError
from kaleido_jax.methods.method import Condition, velocity
from kaleido_jax.parallel import batch_shardings, shardings
from kaleido_jax.parallel.chips import Chip
from kaleido_jax.parallel.collectives import traffic
from kaleido_jax.parallel.flops import attend_without_products, count, dense_attend
from kaleido_jax.parallel.partition import bytes_per_device
from kaleido_jax.pipeline.programs import sampler_step
from kaleido_jax.training import low_rank
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.plan import Plan, Times, abstract_step, assumptions, check, compile_for, placed


def sampling_plan(experiment: Experiment, devices: list[Any], chip: Chip, *, target: str, quick: bool = False) -> Plan:
    """The plan of one step of the sampler for one video, on the experiment's mesh. Compiles it.

    Its `batch` is the number of the guidance's branches, and its MFU counts one forward pass of each. Beside the
    seconds of a step stand those of all `sampling.steps`.

    Raises:
      UsageError: the mesh does not divide devices or heads, or the method samples scenes shot by shot.
    """
    one = dataclasses.replace(experiment.train, batch=1, accumulate=1)
    mesh_config = experiment.mesh.filled(len(devices))
    mesh = mesh_config.make(devices)
    made = abstract_step(dataclasses.replace(experiment, train=one))
    if made.method.data == "scene":
        raise UsageError(f"method is {experiment.method}; sampling is planned for videos, not for scenes of shots")
    check(experiment.transformer, mesh_config)
    branches = made.method.guidance(experiment.sampling.guidance).branches
    kernels = functools.partial(low_rank.frozen_as, experiment.transformer.dtype)
    weights = {"transformer": jax.eval_shape(kernels, made.state.parameters["transformer"])}
    fixed = {"layout": made.layout, "patch": experiment.transformer.patch}
    step = functools.partial(
        sampler_step,
        graphs={"transformer": made.networks.transformer},
        branches=branches,
        method=made.method,
        ulysses=experiment.mesh.ulysses,
        **fixed,
    )
    state, row, condition, scales = jax.eval_shape(lambda: _inputs(made, len(branches)))

    everywhere = NamedSharding(mesh, PartitionSpec())
    whole = lambda tree: placed(tree, jax.tree.map(lambda _: everywhere, tree))
    arguments = (
        placed(weights, shardings(weights, mesh)),
        whole(state),
        whole(row),
        placed(condition, batch_shardings(condition, mesh)),
        whole(scales),
    )
    began = time.monotonic()
    program = jax.jit(step, out_shardings=everywhere)
    text, temporary = compile_for(chip.platform, program, arguments, mesh, quick)
    seconds = time.monotonic() - began

    model, attention = _forward(made, weights, state, condition, fixed)
    computed = count(step, weights, state, row, condition, scales)
    times = Times.of(computed, attention, model, traffic(text, mesh), mesh, chip)
    steps = experiment.sampling.steps
    known = {
        "weights": bytes_per_device(weights, shardings(weights, mesh)),
        "condition": bytes_per_device(condition, batch_shardings(condition, mesh)),
        "temporary": temporary,
    }
    result = Plan(
        name=f"{experiment.name}, a step of sampling",
        target=target,
        devices=len(devices),
        mesh=str(mesh_config),
        batch=len(branches),
        tokens=made.layout.tokens("visual"),
        bytes=known,
        memory=int(chip.memory),
        model_flops=model,
        computed_flops=computed,
        attention_flops=attention,
        traffic=times.traffic,
        seconds=times.seconds | {f"all {steps} steps": steps * times.seconds["estimate"]},
        mfu=times.mfu,
        limit=times.limit,
        assumptions=assumptions(chip),
        advice=[],
        compile_seconds=seconds,
    )
    return dataclasses.replace(result, advice=_advice(result, mesh))


def _inputs(made: Any, rows: int) -> tuple[samplers.State, samplers.Steps, Condition, jax.Array]:
    """What a step takes beside the weights, of zeros: the sampler's state, its row, a row of conditions a branch."""
    batch, wan = made.batch, made.experiment.transformer
    state = samplers.start(jnp.zeros(batch.video.shape, jnp.float32))
    row = samplers.Steps(*[jnp.zeros((), jnp.float32)] * len(samplers.Steps._fields))
    prompts, slots = batch.text_lengths.shape[1], batch.references.shape[1]
    condition = Condition(
        text=jnp.zeros((rows, prompts * made.experiment.data.text_tokens, wan.text_dim), wan.dtype),
        text_lengths=jnp.zeros((rows, prompts), jnp.int32),
        references=[jnp.zeros((rows, *batch.references.shape[2:]), jnp.float32)] * slots,
        reference_frames=jnp.ones((rows, slots), jnp.int32),
        subjects=jnp.zeros((rows, slots), jnp.int32),
        image=None if batch.image is None else jnp.zeros((rows, *batch.image.shape[1:]), wan.dtype),
    )
    return state, row, condition, jnp.zeros((rows,), jnp.float32)


def _forward(made: Any, weights: Any, state: Any, condition: Condition, fixed: dict[str, Any]) -> tuple[int, int]:
    """(all, self-attention's) operations of one forward pass of all branches."""
    rows = condition.text.shape[0]

    def forward(attend: Any, weights: Any, video: jax.Array, condition: Condition) -> jax.Array:
        network = functools.partial(
            merge(made.networks.transformer, weights["transformer"]), attend=attend, remat=False
        )
        times = jnp.zeros((rows, made.method.draws(made.layout)), jnp.float32)
        return velocity(made.method, network, video, times, condition, **fixed)

    video = jax.ShapeDtypeStruct((rows, *state.x.shape[1:]), jnp.float32)
    counted = lambda attend: count(functools.partial(forward, attend), weights, video, condition)
    everything = counted(dense_attend)
    return everything, everything - counted(attend_without_products)


def _advice(result: Plan, mesh: Mesh) -> list[str]:
    """What to change where the step does not fit, in the order in which it costs least."""
    if result.fits:
        return []
    sizes, advice = mesh.shape, []
    if result.bytes["weights"] > result.memory // 2:
        size = result.bytes["weights"] / 2**30
        advice.append(f"the weights take {size:.1f} GiB: mesh.fsdp or mesh.tensor divides them")
    advice.append(f"mesh.sequence={2 * sizes['sequence']} halves a device's tokens; the other axes give way to it")
    return advice
