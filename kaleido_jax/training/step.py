"""One training step: noise the video, predict the velocity, follow the gradient; nothing changes if it is not finite.

Pure functions of (parameters, batch, random seed); what is static (layout, networks' graphs, config) is bound once for
each bucket, see `kaleido_jax.training.programs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from kaleido_jax.attention import ATTENTION_NAME
from kaleido_jax.bundle import merge
from kaleido_jax.diffusion import flow
from kaleido_jax.diffusion.preference import flow_dpo_loss
from kaleido_jax.layout import TokenLayout, patchify
from kaleido_jax.methods.method import Condition, Draw, Method, packed_loss_parts, total_of
from kaleido_jax.models.layers import KEEP_PRODUCTS, OFFLOADED, Remat
from kaleido_jax.models.text import UMT5Encoder
from kaleido_jax.models.vae import WanVAE
from kaleido_jax.models.wan import WanTransformer
from kaleido_jax.parallel import divided
from kaleido_jax.training import optimizer
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.state import Batch, Packed, Parameters, TrainState, joined, parts_of
from kaleido_jax.typing import Array, Float

# By TrainConfig.keep: what the backward pass of a layer makes again.
REMAT: Mapping[str, Remat] = {
    "everything": False,
    "products": KEEP_PRODUCTS,
    "attention": jax.checkpoint_policies.save_only_these_names(ATTENTION_NAME),
    "offloaded": OFFLOADED,
    "nothing": True,
}


@dataclass(frozen=True)
class Networks:
    """The graphs of the trained networks; static and hashable."""

    transformer: nnx.GraphDef[WanTransformer]
    text: nnx.GraphDef[UMT5Encoder] | None = None  # None: batches hold the output of an encoder that is not trained
    vae: nnx.GraphDef[WanVAE] | None = None  # whose decoder a method's loss needs
    untuned: nnx.GraphDef[WanTransformer] | None = None  # the transformer without a LoRA, where it has one


def encoder_of(networks: Networks, parameters: Parameters) -> UMT5Encoder | None:
    """The text encoder with its weights, where there is one."""
    return None if networks.text is None else merge(networks.text, parameters["text"])


def condition_of(batch: Batch, encoder: UMT5Encoder | None) -> Condition:
    """What a batch conditions the network on; its prompts are encoded one by one and laid one after another."""
    lengths = jnp.asarray(batch.text_lengths)
    text = jnp.asarray(batch.text)
    if encoder is not None:
        encoded = encoder(text.reshape(-1, text.shape[-1]), lengths.reshape(-1))
        text = encoded.reshape(text.shape[0], -1, encoded.shape[-1])
    references = jnp.asarray(batch.references).astype(jnp.float32)
    references = references if references.ndim == 6 else references[:, :, None]
    slots = references.shape[1]
    if batch.reference_frames is None:
        counts = jnp.asarray(batch.reference_counts)
        frames = (jnp.arange(slots, dtype=jnp.int32)[None] < counts[:, None]).astype(jnp.int32)
    else:
        frames = jnp.asarray(batch.reference_frames)
    return Condition(
        text=text,
        text_lengths=lengths.reshape(text.shape[0], -1),
        references=[references[:, i] for i in range(slots)],
        reference_frames=frames,
        subjects=jnp.asarray(batch.subjects),
        image=None if batch.image is None else jnp.asarray(batch.image).astype(jnp.float32),
    )


def sample_losses(
    parameters: Parameters,
    batch: Batch,
    times: Float[Array, "b draws"],
    noise: Float[Array, "b f h w z"],
    *,
    networks: Networks,
    experiment: Experiment,
    method: Method,
    layout: TokenLayout,
) -> dict[str, Float[Array, "b"]]:
    """What each kind of segment adds to the loss of every sample at the given times and noise."""
    fixed = {"networks": networks, "experiment": experiment, "method": method}
    return packed_losses(parameters, [(batch, times, noise)], [layout], **fixed)[0]


def packed_losses(
    parameters: Parameters,
    drawn: Sequence[tuple[Batch, Array, Array]],
    layouts: Sequence[TokenLayout],
    *,
    networks: Networks,
    experiment: Experiment,
    method: Method,
) -> list[dict[str, Float[Array, "b"]]]:
    """`sample_losses` of batches that lie side by side in sequences: drawn has each with its times and noise."""
    patch, encoder = experiment.transformer.patch, encoder_of(networks, parameters)
    build = lambda weights: partial(merge(networks.transformer, weights), remat=REMAT[experiment.train.keep])

    def draw(batch: Batch, times: Array, noise: Array, layout: TokenLayout) -> Draw:
        share = batch.subject_share.astype(jnp.float32)[..., None]
        return Draw(
            clean=batch.video.astype(jnp.float32),
            noise=noise,
            times=times,
            condition=condition_of(batch, encoder),
            layout=layout,
            emphasis=1.0 + experiment.flow.subject_emphasis * jnp.mean(patchify(share, patch), axis=-1),
        )

    return packed_loss_parts(
        method,
        divided(build, parameters["transformer"], ulysses=experiment.mesh.ulysses),
        [draw(*one, layout) for one, layout in zip(drawn, layouts, strict=True)],
        patch=patch,
        decode=None if networks.vae is None else partial(_decoded, networks.vae, parameters["vae"]),
    )


def _decoded(graph: nnx.GraphDef[WanVAE], weights: dict[str, Array], latents: Array) -> Array:
    """Pixels that are not clipped, so that there is a gradient everywhere."""
    vae = merge(graph, weights)
    return vae.reconstruct(vae.unnormalise(latents.astype(jnp.float32)))


def pair_losses(
    parameters: Parameters,
    frozen: Parameters,
    batch: Batch,
    times: Float[Array, "b draws"],
    noise: Float[Array, "b f h w z"],
    *,
    networks: Networks,
    experiment: Experiment,
    method: Method,
    layout: TokenLayout,
) -> Float[Array, "b"]:
    """The Flow-DPO loss of every preference pair; both clips have the same time and noise.

    The reference model is the network without its low-rank changes, on the frozen weights that it shares.
    """
    fixed = {"experiment": experiment, "method": method, "layout": layout}
    untuned = replace(networks, transformer=networks.untuned)
    errors = []
    for video in (batch.video, batch.rejected):
        one = replace(batch, video=video, rejected=None)
        errors.append(total_of(sample_losses(parameters, one, times, noise, networks=networks, **fixed)))
        reference = total_of(sample_losses(frozen, one, times, noise, networks=untuned, **fixed))
        errors.append(jax.lax.stop_gradient(reference))
    chosen, reference_chosen, rejected, reference_rejected = errors
    return flow_dpo_loss(chosen, rejected, reference_chosen, reference_rejected, experiment.preference.beta)


def train_step(
    state: TrainState,
    batch: Batch | Packed,
    progress: Float[Array, ""],
    frozen: Parameters,
    *,
    networks: Networks,
    experiment: Experiment,
    method: Method,
    layout: TokenLayout | tuple[TokenLayout, ...],
) -> tuple[TrainState, dict[str, Array]]:
    """The next state, and the step's loss, gradient norm, learning rate and whether it was skipped.

    `progress`, the share of the run that is done, sets the learning rate. `frozen` are the parameters that are not
    trained: those of the state stand beside them, and only they have gradients. A step whose loss or gradient is not
    finite changes neither parameters, average nor moments. Of packed batches, `layout` has that of each part; all
    samples count alike.
    """
    config = experiment.optimizer
    layouts = layout if isinstance(layout, tuple) else (layout,)
    fixed = {"networks": networks, "experiment": experiment, "method": method}

    def draw(batch: Batch, layout: TokenLayout) -> tuple[Batch, Array, Array]:
        keys = flow.sample_keys(experiment.seed, state.step, batch.indices)
        time_keys, noise_keys = jnp.unstack(jax.vmap(lambda key: jax.random.split(key, 2))(keys), axis=1)
        times = flow.sample_times(
            time_keys,
            draws=method.draws(layout),
            mean=experiment.flow.mean,
            std=experiment.flow.std,
            shift=experiment.flow.shift,
        )
        return batch, times, flow.sample_noise(noise_keys, batch.video.shape[1:])

    def loss_of(parameters: Parameters, drawn: list[tuple[Batch, Array, Array]]) -> tuple[Array, dict[str, Array]]:
        weights = joined(frozen, parameters)
        if drawn[0][0].rejected is not None:
            found = [{"pairs": pair_losses(weights, frozen, *drawn[0], layout=layouts[0], **fixed)}]
        else:
            found = packed_losses(weights, drawn, layouts, **fixed)
        by_kind = {kind: jnp.concatenate([one[kind] for one in found]) for kind in found[0]}
        whole = total_of(by_kind)
        means = {f"loss_of_{kind}": jnp.mean(values) for kind, values in by_kind.items()}
        times = jnp.concatenate([jnp.mean(times, axis=1) for _, times, _ in drawn])
        return jnp.mean(whole), means | _by_time(whole, times)

    drawn = [draw(part, own) for part, own in zip(parts_of(batch), layouts, strict=True)]
    (loss, seen), gradient = _in_parts(
        jax.value_and_grad(loss_of, has_aux=True), state.parameters, drawn, experiment.train.accumulate
    )
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)

    rate = optimizer.learning_rate(config, state.step.astype(jnp.float32), progress)
    # optax raises a Python float to an integer power, and scales matrices by shapes of lower rank.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        directions, moments = optimizer.direction(config).update(gradient, state.moments, state.parameters)
    parameters = jax.tree.map(lambda p, d: p - rate * d, state.parameters, directions)
    done = state.step.astype(jnp.float32)
    decay = jnp.minimum(config.ema_decay, (1.0 + done) / (10.0 + done))  # so that the first steps do not linger
    average = jax.tree.map(lambda a, p: optimizer.average(a, p, decay), state.average, parameters)

    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    skip = 1 - finite.astype(jnp.int32)
    following = TrainState(
        step=state.step + 1,
        skipped=state.skipped + skip,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skip,
        parameters=keep(parameters, state.parameters),
        average=keep(average, state.average),
        moments=keep(moments, state.moments),
    )
    return following, _averaged(seen) | {
        "loss": loss,
        "gradient_norm": norm,
        "learning_rate": rate,
        "skipped_in_a_row": following.skipped_in_a_row,
    }


TIME_BUCKETS = 5  # of equal width, that losses are reported by


def _by_time(losses: Float[Array, "b"], times: Float[Array, "b"]) -> dict[str, Array]:
    """Sums and numbers of the losses of samples by the time of the flow."""
    bucket = jnp.clip((times * TIME_BUCKETS).astype(jnp.int32), 0, TIME_BUCKETS - 1)
    found = {}
    for index in range(TIME_BUCKETS):
        name = f"loss_at_{index / TIME_BUCKETS:g}_to_{(index + 1) / TIME_BUCKETS:g}"
        own = bucket == index
        found[name], found[f"{name} of"] = jnp.sum(jnp.where(own, losses, 0.0)), jnp.sum(own.astype(jnp.float32))
    return found


def _averaged(seen: dict[str, Array]) -> dict[str, Array]:
    """Means in place of sums and numbers; NaN for what no sample is in."""
    means = {}
    for name, value in seen.items():
        if not name.endswith(" of"):
            means[name] = value / seen[f"{name} of"] if f"{name} of" in seen else value
    return means


def _in_parts(function: Callable[..., Any], parameters: Parameters, batch: Any, parts: int) -> Any:
    """The mean of function(parameters, part) over equal parts of a batch, one after another.

    Part i has the samples i, i + parts, ...: every device that holds a share of the batch has a share of each part.
    """
    if parts == 1:
        return function(parameters, batch)
    split = lambda x: jnp.moveaxis(jnp.asarray(x).reshape(-1, parts, *x.shape[1:]), 1, 0)
    divided_batch = jax.tree.map(split, batch)
    zeros = lambda x: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x)
    start = zeros(jax.eval_shape(function, parameters, jax.tree.map(lambda x: x[0], divided_batch)))
    add = lambda sums, part: (jax.tree.map(jnp.add, sums, function(parameters, part)), None)
    sums, _ = jax.lax.scan(add, start, divided_batch)
    return jax.tree.map(lambda x: x / parts, sums)


EVALUATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


def evaluation_losses(
    parameters: Parameters,
    batch: Batch,
    *,
    networks: Networks,
    experiment: Experiment,
    method: Method,
    layout: TokenLayout,
) -> Float[Array, "b times"]:
    """Losses at fixed times with noise that is the same at every evaluation, so that two of them can be compared."""
    keys = flow.sample_keys(experiment.seed, 0, batch.indices)
    noise = flow.sample_noise(keys, batch.video.shape[1:])

    def at(time: Float[Array, ""]) -> Float[Array, "b"]:
        times = jnp.broadcast_to(time, (batch.indices.shape[0], method.draws(layout)))
        fixed = {"networks": networks, "experiment": experiment, "method": method, "layout": layout}
        return total_of(sample_losses(parameters, batch, times, noise, **fixed))

    return jax.lax.map(at, jnp.asarray(EVALUATION_TIMES, jnp.float32)).T
