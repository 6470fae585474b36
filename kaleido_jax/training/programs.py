"""The compiled programs of a run: one of each kind for every bucket, compiled ahead of time and counted."""

import functools
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Key

from kaleido_jax.bundle import merge, parameters
from kaleido_jax.diffusion import guidance, samplers
from kaleido_jax.layout import TokenLayout, patchify, unpatchify
from kaleido_jax.methods import kaleido
from kaleido_jax.models.vae import WanVAE
from kaleido_jax.training import step
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.metrics import report
from kaleido_jax.training.state import Batch, Parameters, TrainState
from kaleido_jax.typing import AnyArray, Array, Float


class Programs:
    """Compiles each program the first time that its bucket is seen. `compiled` counts the buckets of every kind."""

    def __init__(self, experiment: Experiment, networks: step.Networks, vae: WanVAE) -> None:
        self._experiment = experiment
        self._networks = networks
        self._vae, self._vae_parameters = nnx.split(vae)[0], parameters(vae)
        self._compiled: dict[Hashable, Any] = {}

    @property
    def compiled(self) -> dict[str, int]:
        kinds = [key[0] for key in self._compiled]  # pyright: ignore[reportIndexIssue]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def train(self, state: TrainState, batch: Batch, progress: Array) -> tuple[TrainState, dict[str, Array]]:
        """One training step; the state is donated."""
        return self._run("train", step.train_step, (state, batch, progress), batch, donate=(0,))

    def evaluate(self, weights: Parameters, batch: Batch) -> Array:
        """Losses [b, times] of held-out samples."""
        return self._run("evaluate", step.evaluation_losses, (weights, batch), batch)

    def generate(
        self, weights: Parameters, batch: Batch, empty: tuple[AnyArray, AnyArray], key: Key[Array, ""]
    ) -> Array:
        """One sample's latents for each entry of the batch; `empty` is the empty prompt's (ids, length)."""
        return self._run("generate", generate, (weights, batch, empty, key), batch)

    def encode(self, pixels: AnyArray) -> Array:
        """Latents [b, f, h, w, z] of uint8 clips [b, f, h, w, 3]."""
        return self._coded("encode", encode_pixels, jnp.asarray(pixels, jnp.uint8))

    def decode(self, latents: AnyArray) -> Array:
        """uint8 clips of latents."""
        return self._coded("decode", decode_latents, jnp.asarray(latents, jnp.float32))

    def _coded(self, kind: str, function: Callable, x: Array) -> Array:
        function = functools.partial(function, graph=self._vae)
        return self._call((kind, x.shape, x.dtype), function, (self._vae_parameters, x))

    def _run(self, kind: str, function: Callable, arguments: tuple, batch: Batch, donate: tuple[int, ...] = ()) -> Any:
        layout = self.layout(batch)
        bound = functools.partial(function, networks=self._networks, experiment=self._experiment, layout=layout)
        key = (kind, layout, batch.video.shape[0], str(batch.video.dtype))
        return self._call(key, bound, arguments, donate)

    def _call(self, key: tuple, function: Callable, arguments: tuple, donate: tuple[int, ...] = ()) -> Any:
        if key not in self._compiled:
            began = time.monotonic()
            self._compiled[key] = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
            report(f"compiled {key[0]} number {self.compiled[key[0]]} in {time.monotonic() - began:.1f} s")
        return self._compiled[key](*arguments)

    def layout(self, batch: Batch) -> TokenLayout:
        """The bucket of a batch of latents."""
        pt, ph, pw = self._experiment.transformer.patch
        _, frames, height, width, _ = batch.video.shape
        return kaleido.layout(
            (frames // pt, height // ph, width // pw),
            [(1, height // ph, width // pw)] * batch.references.shape[1],
            text_tokens=batch.text.shape[1],
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
    empty: tuple[Array, Array],
    key: Key[Array, ""],
    *,
    networks: step.Networks,
    experiment: Experiment,
    layout: TokenLayout,
) -> Float[Array, "b f h w z"]:
    """Euler from noise to latents, guided by text with the references kept in both branches."""
    patch, sampling = experiment.transformer.patch, experiment.sampling
    transformer = merge(networks.transformer, weights["transformer"])
    text = merge(networks.text, weights["text"])
    ids, lengths = (jnp.broadcast_to(x, like.shape) for x, like in zip(empty, (batch.text, batch.text_lengths)))
    pictures = patchify_each(batch.references.astype(jnp.float32), patch)
    rule = guidance.text_guidance(sampling.guidance)
    conditions = []
    for branch in rule.branches:
        words, words_lengths = (batch.text, batch.text_lengths) if branch.text == "prompt" else (ids, lengths)
        conditions.append((text(words, words_lengths), words_lengths, batch.reference_counts, batch.subjects, pictures))

    def velocity(x: Array, time: Array, condition: tuple) -> Array:
        context, words_lengths, counts, subjects, pictures = condition
        times = jnp.broadcast_to(time, (x.shape[0],))
        table = kaleido.table(
            layout,
            times=times,
            reference_counts=counts,
            subjects=subjects,
            text_lengths=words_lengths,
            scheme=experiment.scheme,
        )
        return transformer(jnp.concatenate([pictures, x], axis=1), table, context, layout=layout)

    grid = layout.segments[-2].grid
    noise = patchify(jax.random.normal(key, batch.video.shape, jnp.float32), patch)
    steps = samplers.euler(sampling.steps, sampling.shift)
    tokens = samplers.sample_scan(guidance.guided(velocity, conditions, rule), noise, steps)
    return unpatchify(tokens, grid, patch)


def patchify_each(references: Float[Array, "b r h w z"], patch: tuple[int, int, int]) -> Float[Array, "b n p"]:
    """Tokens of references, each patched as a clip of its own one frame."""
    return jnp.concatenate([patchify(references[:, i : i + 1], patch) for i in range(references.shape[1])], axis=1)
