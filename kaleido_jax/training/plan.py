"""What a training step takes of chips that need not be there: memory, operations, traffic and time.

The step is the real one, compiled for the target. Operations are counted in its jaxpr, traffic in the compiled text;
times follow from rates that `parallel.chips` gives with their sources.
"""

import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import TokenLayout
from kaleido_jax.methods.method import Method, losses
from kaleido_jax.methods.registry import create as create_method
from kaleido_jax.models.text import UMT5Encoder
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import MeshConfig, batch_shardings, shardings
from kaleido_jax.parallel.chips import Chip
from kaleido_jax.parallel.collectives import Traffic, traffic
from kaleido_jax.parallel.flops import attend_without_products, count, dense_attend
from kaleido_jax.parallel.partition import bytes_per_device
from kaleido_jax.training import low_rank, step
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.state import Batch, create, joined

# How often attention's two products are computed in a step: once forward, two and a half times backward, which makes
# the scores again, and once more where nothing of it is kept.
ATTENTION_ROUNDS = {"everything": 3.5, "products": 3.5, "attention": 3.5, "offloaded": 3.5, "nothing": 4.5}
# VAEs by the number of their latent channels, where an experiment names no folder.
_VAES = {16: VAEConfig.wan2_1, 48: VAEConfig.wan2_2}
_IMAGE_TOKENS = 257  # of CLIP's ViT-H/14, for a network with an image branch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything is for one step; bytes and traffic are those of one device.

    tokens: of a sample's sequence. model_flops: three times the forward pass. computed_flops: what is really computed,
    of which attention_flops in self-attention. seconds: of the bound that kernels' rates imply, of the traffic along
    each axis of the mesh, and the estimate. mfu: model_flops by the peak, for the bound and for the estimate.
    """

    name: str
    target: str
    devices: int
    mesh: str
    batch: int
    tokens: int
    bytes: dict[str, int]
    memory: int
    model_flops: int
    computed_flops: int
    attention_flops: int
    traffic: dict[str, dict[str, float]]
    seconds: dict[str, float]
    mfu: dict[str, float]
    limit: str
    assumptions: list[str]
    advice: list[str]
    compile_seconds: float

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.memory

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"total": self.total, "fits": self.fits}


@dataclasses.dataclass(frozen=True)
class _Step:
    """The training step of an experiment with the shapes of what it takes."""

    experiment: Experiment
    method: Method
    networks: step.Networks
    layout: TokenLayout
    state: Any
    batch: Batch
    frozen: Any

    @property
    def function(self) -> Any:
        return functools.partial(
            step.train_step,
            networks=self.networks,
            experiment=self.experiment,
            method=self.method,
            layout=self.layout,
        )


def plan(experiment: Experiment, devices: list[Any], chip: Chip, *, target: str, quick: bool = False) -> Plan:
    """The plan of a training step on devices of one kind. Compiles it, which takes from seconds to minutes.

    quick: with the least effort that the TPU's compiler knows; the temporary memory is then an upper bound.

    Raises:
      UsageError: the mesh does not divide devices, batch or heads.
    """
    filled = experiment.mesh.filled(len(devices))
    mesh = filled.make(devices)
    shares = filled.data * filled.fsdp * experiment.train.accumulate
    if experiment.train.batch % shares:
        raise UsageError(
            f"train.batch is {experiment.train.batch}; mesh.data times mesh.fsdp times train.accumulate, {shares}, "
            "must divide it"
        )
    check(experiment.transformer, filled)
    made = abstract_step(experiment)
    began = time.monotonic()
    text, sizes = _compile(made, mesh, chip.platform, quick)
    seconds = time.monotonic() - began
    return _made_of(made, filled, mesh, chip, target, sizes, traffic(text, mesh), seconds)


def check(transformer: WanConfig, mesh: MeshConfig) -> None:
    """Raises UsageError unless the mesh divides the heads."""
    if transformer.heads % mesh.tensor:
        raise UsageError(f"mesh.tensor is {mesh.tensor}; it must divide the {transformer.heads} heads")


def abstract_step(experiment: Experiment) -> _Step:
    """The training step of an experiment, with shapes for all that it takes."""
    method = create_method(experiment.method, experiment.scheme, experiment.options)
    data, transformer = experiment.data, experiment.transformer
    if transformer.out_channels not in _VAES:
        raise UsageError(f"transformer.out_channels is {transformer.out_channels}; plans know latents of 16 and 48")
    vae = _VAES[transformer.out_channels]()
    shots = data.shots if method.data == "scene" else 1
    prompts = 1 + shots if method.data == "scene" else 1
    slots = 0 if method.data == "scene" else data.references
    clip = vae.latent_frames(data.reference_frames) if method.data == "group" else 1
    latents = (shots * vae.latent_frames(data.frames), *(side // vae.spatial_factor for side in data.picture))

    def empty() -> Batch:
        zeros = lambda *sizes, dtype=jnp.int32: jnp.zeros((experiment.train.batch, *sizes), dtype)
        embedded = lambda: zeros(prompts * data.text_tokens, transformer.text_dim, dtype=jnp.bfloat16)
        return Batch(
            video=zeros(*latents, vae.z_dim, dtype=jnp.float32),
            references=zeros(slots, clip, *latents[1:], vae.z_dim, dtype=jnp.float32),
            reference_counts=zeros(),
            subject_share=zeros(*latents, dtype=jnp.float32),
            subjects=zeros(slots),
            text=embedded() if data.text_embeddings else zeros(prompts, data.text_tokens),
            text_lengths=zeros(prompts),
            indices=zeros(),
            reference_frames=zeros(slots),
            rejected=zeros(*latents, vae.z_dim, dtype=jnp.float32) if experiment.preference.pairs else None,
            image=zeros(_IMAGE_TOKENS, transformer.image_dim, dtype=jnp.bfloat16) if transformer.image_dim else None,
        )

    batch = jax.eval_shape(empty)
    pt, ph, pw = transformer.patch
    grid = (latents[0] // pt, latents[1] // ph, latents[2] // pw)
    layout = method.layout(grid, [(clip, *grid[1:])] * slots, texts=(data.text_tokens,) * prompts)
    graphs, weights = {}, {}
    made = {"transformer": lambda: WanTransformer(transformer, nnx.Rngs(0))}
    if not data.text_embeddings:
        made["text"] = lambda: UMT5Encoder(experiment.text, nnx.Rngs(0))
    for name, make in made.items():
        graphs[name], weights[name] = abstract(make)
    frozen: dict[str, Any] = {}
    if experiment.lora.rank:
        base = lambda: low_rank.base(made["transformer"](), experiment.lora)
        graphs["untuned"] = abstract(base)[0]
        graphs["transformer"] = abstract(lambda: low_rank.attach(base(), experiment.lora))[0]
        kept = functools.partial(low_rank.frozen, experiment.lora, transformer.dtype)
        frozen = weights | {"transformer": jax.eval_shape(kept, weights["transformer"])}
        weights = {"transformer": _factors(experiment)}
    if method.decodes:
        graphs["vae"], frozen["vae"] = abstract(lambda: WanVAE(vae, nnx.Rngs(0)))
    state = jax.eval_shape(functools.partial(create, experiment.optimizer), weights)
    return _Step(experiment, method, step.Networks(**graphs), layout, state, batch, frozen)


def _factors(experiment: Experiment) -> dict[str, Any]:
    rank, made = experiment.lora.rank, {}
    for name, (layers, inputs, outputs) in low_rank.changed_kernels(experiment.transformer, experiment.lora).items():
        made[f"{name}.low_rank.a"] = jax.ShapeDtypeStruct((layers, inputs, rank), jnp.float32)
        made[f"{name}.low_rank.b"] = jax.ShapeDtypeStruct((layers, rank, outputs), jnp.float32)
    return made


def _compile(made: _Step, mesh: Mesh, platform: str, quick: bool = False) -> tuple[str, dict[str, int]]:
    """The compiled step's text ("" if it does not fit), and the bytes of one device by kind."""
    places = shardings(made.state, mesh), batch_shardings(made.batch, mesh), shardings(made.frozen, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = (
        placed(made.state, places[0]),
        placed(made.batch, places[1]),
        jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere),
        placed(made.frozen, places[2]),
    )
    program = jax.jit(made.function, donate_argnums=0, out_shardings=(places[0], everywhere))
    text, temporary = compile_for(platform, program, arguments, mesh, quick)
    size = lambda name: bytes_per_device(getattr(made.state, name), getattr(places[0], name))
    known = {"weights": size("parameters"), "average": size("average"), "moments": size("moments")}
    known["weights"] += bytes_per_device(made.frozen, places[2])
    return text, known | {"batch": bytes_per_device(made.batch, places[1]), "temporary": temporary}


def placed(tree: Any, where: Any) -> Any:
    """Shapes that lie where a tree of shardings says."""
    shape = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(shape, tree, where)


def compile_for(platform: str, program: Any, arguments: tuple, mesh: Mesh, quick: bool = False) -> tuple[str, int]:
    """The text of a jitted function compiled for a mesh ("" if it does not fit), and a device's temporary bytes."""
    options = {"exec_time_optimization_effort": -1.0} if quick and platform == "tpu" else None
    with jax.set_mesh(mesh):
        lowered = program.trace(*arguments).lower(lowering_platforms=(platform,))
        try:
            compiled = lowered.compile(options)
            return compiled.as_text(), int(compiled.memory_analysis().temp_size_in_bytes)
        except jax.errors.JaxRuntimeError as error:  # the compilers of TPUs give up on what does not fit
            needed = re.search(r"total memory required for HLO temporaries \(([\d.]+)([MG])\)", str(error))
            if needed is None:
                raise
            return "", int(float(needed[1]) * {"M": 2**20, "G": 2**30}[needed[2]])


def forward_flops(made: _Step) -> tuple[int, int]:
    """(all, self-attention's) operations of one forward pass over the whole batch."""
    experiment = made.experiment
    patch = experiment.transformer.patch
    times = jax.ShapeDtypeStruct((experiment.train.batch, made.method.draws(made.layout)), jnp.float32)

    def forward(attend: Any, parameters: Any, batch: Batch, times: jax.Array) -> jax.Array:
        network = functools.partial(
            merge(made.networks.transformer, parameters["transformer"]), attend=attend, remat=False
        )
        encoder = step.encoder_of(made.networks, parameters)
        condition = step.condition_of(batch, encoder)
        noise = jnp.zeros(batch.video.shape, jnp.float32)
        fixed = {"layout": made.layout, "patch": patch, "decode": lambda latents: latents}
        return losses(made.method, network, batch.video, noise, times, condition, **fixed)

    weights = joined(made.frozen, made.state.parameters)
    counted = lambda attend: count(functools.partial(forward, attend), weights, made.batch, times)
    everything = counted(dense_attend)
    return everything, everything - counted(attend_without_products)


def _made_of(
    made: _Step,
    config: MeshConfig,
    mesh: Mesh,
    chip: Chip,
    target: str,
    sizes: dict[str, int],
    sent: Traffic,
    compile_seconds: float,
) -> Plan:
    experiment, devices = made.experiment, mesh.devices.size
    forward, attention = forward_flops(made)
    progress = jax.ShapeDtypeStruct((), jnp.float32)
    computed = count(made.function, made.state, made.batch, progress, made.frozen)
    attention = int(attention * ATTENTION_ROUNDS[experiment.train.keep])
    times = Times.of(computed, attention, 3 * forward, sent, mesh, chip, host=_to_host(experiment, config, made.layout))
    result = Plan(
        name=experiment.name,
        target=target,
        devices=devices,
        mesh=str(config),
        batch=experiment.train.batch,
        tokens=made.layout.tokens("visual"),
        bytes=sizes,
        memory=int(chip.memory),
        model_flops=3 * forward,
        computed_flops=computed,
        attention_flops=attention,
        traffic=times.traffic,
        seconds=times.seconds,
        mfu=times.mfu,
        limit=times.limit,
        assumptions=assumptions(chip),
        advice=[],
        compile_seconds=compile_seconds,
    )
    return dataclasses.replace(result, advice=_advice(result, experiment, config))


@dataclasses.dataclass(frozen=True)
class Times:
    """What follows from rates: bytes by axes and kind, seconds by what takes them, MFU, and what limits the program."""

    traffic: dict[str, dict[str, float]]
    seconds: dict[str, float]
    mfu: dict[str, float]
    limit: str

    @classmethod
    def of(
        cls,
        computed: int,
        attention: int,
        model: int,
        sent: Traffic,
        mesh: Mesh,
        chip: Chip,
        *,
        host: float = 0.0,
    ) -> "Times":
        """Of a program that computes so many operations on all devices, of which some in attention.

        model: operations that MFU counts. host: bytes that a device moves to the host's memory and back.
        """
        by_axes: dict[str, dict[str, float]] = {}
        for (axes, kind), size in sent.bytes.items():
            by_axes.setdefault(axes, {})[kind] = size
        peak = chip.peak * mesh.devices.size
        bound = (computed - attention) / (peak * chip.product) + attention / (peak * chip.attention)
        seconds = {"bound": bound}
        for axes, kinds in by_axes.items():
            seconds[f"traffic along {axes}"] = sum(kinds.values()) / _rate(chip, mesh, axes)
        waiting = sum(value for name, value in seconds.items() if name.startswith("traffic"))
        if host:
            seconds["to the host and back"] = host / chip.host
        copying = seconds.get("to the host and back", 0.0)
        reached = computed / (peak * chip.reached)
        seconds["estimate"] = max(reached, waiting, copying, bound)
        mfu = {name: model / (peak * seconds[name]) for name in ("bound", "estimate")}
        limits = {
            "the devices' network": waiting,
            "copies to the host": copying,
            f"kernels of attention, {chip.attention:.0%} of the peak": attention / (peak * chip.attention),
            "computing": reached,
        }
        limit = max(limits, key=lambda name: limits[name])
        return cls(by_axes, seconds, mfu, limit)


def assumptions(chip: Chip) -> list[str]:
    """What `Times` takes for granted, in words."""
    return [
        f"peak {chip.peak / 1e12:.0f} TFLOP/s a device in bfloat16",
        f"kernels reach {chip.product:.0%} of it in products and {chip.attention:.0%} in attention (bound)",
        f"whole programs reach {chip.reached:.0%} of it by what they compute, as published ones do (estimate)",
        f"links of {chip.link / 1e9:.0f} GB/s into a device are used to the full, and wait for nothing else",
    ]


def _to_host(experiment: Experiment, mesh: MeshConfig, layout: TokenLayout) -> float:
    """Bytes that a device moves to its host and back in a step: each layer's input and what attention made of it."""
    if experiment.train.keep != "offloaded":
        return 0.0
    wan, samples = experiment.transformer, experiment.train.batch / (mesh.data * mesh.fsdp)
    tokens = samples * layout.tokens("visual") / mesh.sequence
    width = wan.dim * (1 + 1 / mesh.tensor) * jnp.dtype(wan.dtype).itemsize
    return 2 * wan.layers * tokens * width


def _rate(chip: Chip, mesh: Mesh, axes: str) -> float:
    """Bytes a second into a device from its neighbours along these axes."""
    if not chip.node:
        return chip.link
    first = min(mesh.axis_names.index(name) for name in axes.split("+"))
    span = math.prod(mesh.devices.shape[first:])
    return chip.link if span <= chip.node else chip.network


def _advice(result: Plan, experiment: Experiment, mesh: MeshConfig) -> list[str]:
    """What to change where the step does not fit, in the order in which it costs least."""
    if result.fits:
        return []
    advice, train = [], experiment.train
    state = sum(result.bytes[kind] for kind in ("weights", "average", "moments"))
    samples = train.batch // (mesh.data * mesh.fsdp * train.accumulate)
    if state > result.memory // 2:
        advice.append(f"weights, average and moments take {state / 2**30:.1f} GiB: raise mesh.fsdp or mesh.tensor")
    if train.keep not in ("nothing", "offloaded"):
        advice.append(f"train.keep=nothing makes more again in the backward pass (it is {train.keep})")
    if train.keep != "offloaded":
        advice.append("train.keep=offloaded keeps what the backward pass reads in the host's memory")
    if samples > 1:
        advice.append(
            f"train.accumulate={train.accumulate * 2} halves the {samples} samples that a device has at a time"
        )
    else:
        advice.append(
            f"mesh.sequence={mesh.sequence * 2} halves a device's tokens; mesh.data or mesh.fsdp give way to it"
        )
    return advice
