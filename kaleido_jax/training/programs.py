"""The compiled programs of a run: one of each kind for every bucket, compiled ahead of time and counted."""

import functools
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Key

from kaleido_jax.bundle import merge, parameters
from kaleido_jax.diffusion import guidance, samplers
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import TokenLayout
from kaleido_jax.methods.method import Condition, Method, velocity
from kaleido_jax.models.vae import WanVAE
from kaleido_jax.parallel import batch_shardings, place
from kaleido_jax.training import step
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.metrics import report
from kaleido_jax.training.state import Batch, Packed, Parameters, TrainState, joined, parts_of
from kaleido_jax.typing import AnyArray, Array, Float


class Programs:
    """Compiles each program the first time that its bucket is seen. `compiled` counts the buckets of every kind."""

    def __init__(self, experiment: Experiment, method: Method, networks: step.Networks, vae: WanVAE) -> None:
        self._experiment, self._method = experiment, method
        self._networks = networks
        self._vae, self._vae_parameters = nnx.split(vae)[0], parameters(vae)
        self._compiled: dict[Hashable, Any] = {}
        self.frozen: Parameters = {}  # that stay as they are beside those of the state, where not all are trained
        mesh = experiment.mesh.make()
        self.mesh = mesh if mesh.size > 1 else None  # that every step runs on; None for a device alone
        shares = mesh.shape["data"] * mesh.shape["fsdp"] * experiment.train.accumulate
        if experiment.train.batch % shares:
            raise UsageError(
                f"train.batch is {experiment.train.batch}; mesh.data times mesh.fsdp times train.accumulate, {shares}, "
                "must divide it"
            )
        if experiment.transformer.heads % mesh.shape["tensor"]:
            raise UsageError(
                f"mesh.tensor is {mesh.shape['tensor']}; it must divide the {experiment.transformer.heads} heads"
            )

    @property
    def compiled(self) -> dict[str, int]:
        kinds = [key[0] for key in self._compiled]  # pyright: ignore[reportIndexIssue]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def train(self, state: TrainState, batch: Batch | Packed, progress: Array) -> tuple[TrainState, dict[str, Array]]:
        """One training step; the state is donated."""
        return self._run("train", step.train_step, (state, batch, progress, self.frozen), batch, donate=(0,))

    def evaluate(self, weights: Parameters, batch: Batch) -> Array:
        """Losses [b, times] of held-out samples."""
        return self._run("evaluate", step.evaluation_losses, (joined(self.frozen, weights), batch), batch)

    def generate(self, weights: Parameters, batch: Batch, empty: Batch, key: Key[Array, ""]) -> Array:
        """One sample's latents for each entry of the batch; `empty` is the batch with what guidance leaves out."""
        return self._run("generate", generate, (joined(self.frozen, weights), batch, empty, key), batch)

    def encode(self, pixels: AnyArray) -> Array:
        """Latents [b, f, h, w, z] of uint8 clips [b, f, h, w, 3]."""
        return self._coded("encode", encode_pixels, self._whole(pixels, np.uint8))

    def decode(self, latents: AnyArray) -> Array:
        """uint8 clips of latents."""
        return self._coded("decode", decode_latents, self._whole(latents, np.float32))

    def _whole(self, x: AnyArray, dtype: Any) -> Array:
        """An array on one device: the VAE's programs know no mesh."""
        return jax.device_put(x if self.mesh is None else np.asarray(x)).astype(dtype)

    def _coded(self, kind: str, function: Callable, x: Array) -> Array:
        function = functools.partial(function, graph=self._vae)
        key = (kind, x.shape, x.dtype)
        if key not in self._compiled:
            self._compile(key, jax.jit(function), (self._vae_parameters, x))
        return self._compiled[key](self._vae_parameters, x)

    def _run(
        self, kind: str, function: Callable, arguments: tuple, batch: Batch | Packed, donate: tuple[int, ...] = ()
    ) -> Any:
        layouts = tuple(self.layout(part) for part in parts_of(batch))
        layout = layouts if isinstance(batch, Packed) else layouts[0]
        video = parts_of(batch)[0].video
        bound = functools.partial(
            function, networks=self._networks, experiment=self._experiment, method=self._method, layout=layout
        )
        key = (kind, layout, video.shape[0], str(video.dtype))
        if self.mesh is None:
            # By a call of its own, so that transfers that nobody asked for can be forbidden.
            arguments = tuple(jax.device_put(x) if isinstance(x, Batch | Packed) else x for x in arguments)
            if key not in self._compiled:
                self._compile(key, jax.jit(bound, donate_argnums=donate), arguments)
            return self._compiled[key](*arguments)
        arguments = tuple(self._spread(x) for x in arguments)
        if key not in self._compiled:
            # A donated state comes back where it was, which lets the device write over it. All else is for the host.
            everywhere = NamedSharding(self.mesh, PartitionSpec())
            results = everywhere
            if donate:
                results = (*(jax.tree.map(lambda leaf: leaf.sharding, arguments[i]) for i in donate), everywhere)
            with jax.set_mesh(self.mesh):
                program = jax.jit(bound, donate_argnums=donate, out_shardings=results)
                self._compile(key, program, arguments)
        return self._compiled[key](*arguments)

    def _spread(self, tree: Any) -> Any:
        """A batch divided over the mesh; of what else is here alone, a copy for every device of every process."""
        if isinstance(tree, Batch | Packed):
            return place(tree, batch_shardings(tree, self.mesh))
        if jax.process_count() == 1:
            return tree
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def put(leaf: Array) -> Array:
            if not leaf.is_fully_addressable:
                return leaf
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(place(jax.random.key_data(leaf), everywhere))
            return place(leaf, everywhere)

        return jax.tree.map(put, tree)

    def _compile(self, key: tuple, program: Any, arguments: tuple) -> None:
        began = time.monotonic()
        self._compiled[key] = program.lower(*arguments).compile()
        report(f"compiled {key[0]} number {self.compiled[key[0]]} in {time.monotonic() - began:.1f} s")

    def layout(self, batch: Batch) -> TokenLayout:
        """The bucket of a batch of latents."""
        pt, ph, pw = self._experiment.transformer.patch
        _, frames, height, width, _ = batch.video.shape
        slots, long = batch.references.shape[1], batch.references.shape[2] if batch.references.ndim == 6 else 1
        prompts = batch.text_lengths.shape[1] if batch.text_lengths.ndim == 2 else 1
        embedded = self._networks.text is None  # [b, m, d], all prompts one after another
        words = batch.text.shape[1] // prompts if embedded else batch.text.shape[-1]
        return self._method.layout(
            (frames // pt, height // ph, width // pw),
            [(-(-long // pt), height // ph, width // pw)] * slots,
            texts=(words,) * prompts,
        )


def encode_pixels(
    weights: dict[str, Array], pixels: Array, *, graph: nnx.GraphDef[WanVAE]
) -> Float[Array, "b f h w z"]:
    """Normalised latents of uint8 clips."""
    return merge(graph, weights).encode(pixels.astype(jnp.float32) / 127.5 - 1.0)


def decode_latents(weights: dict[str, Array], latents: Array, *, graph: nnx.GraphDef[WanVAE]) -> Array:
    """uint8 clips of normalised latents."""
    video = merge(graph, weights).decode(latents.astype(jnp.float32))
    return jnp.round((video + 1.0) * 127.5).astype(jnp.uint8)


def generate(
    weights: Parameters,
    batch: Batch,
    empty: Batch,
    key: Key[Array, ""],
    *,
    networks: step.Networks,
    experiment: Experiment,
    method: Method,
    layout: TokenLayout,
) -> Float[Array, "b f h w z"]:
    """Euler from noise to latents, guided as the method says; `empty` is the batch of the branch without a prompt."""
    patch, sampling = experiment.transformer.patch, experiment.sampling
    transformer = merge(networks.transformer, weights["transformer"])
    text = step.encoder_of(networks, weights)
    rule = method.guidance(sampling.guidance)
    conditions = [step.condition_of(batch if b.text == "prompt" else empty, text) for b in rule.branches]

    def follow(x: Array, time: Array, condition: Condition) -> Array:
        times = jnp.broadcast_to(time, (x.shape[0], method.draws(layout)))
        return velocity(method, transformer, x, times, condition, layout=layout, patch=patch)

    noise = jax.random.normal(key, batch.video.shape, jnp.float32)
    steps = samplers.euler(sampling.steps, sampling.shift)
    return samplers.sample_scan(guidance.guided(follow, conditions, rule), noise, steps)
