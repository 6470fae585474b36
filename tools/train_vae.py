"""Train the miniature's video VAE on the procedural world.

    python tools/train_vae.py --workdir runs/vae --minutes 20
    python tools/train_vae.py --workdir runs/wider --start-from runs/vae --z-dim 32 --minutes 20

Single pictures and clips are cropped from samples drawn on the fly. The loss is the error of pixels and of their
differences between neighbours, where subjects count for more than the scene, plus a small KL term. The folder receives
`vae.safetensors` and `config.json` (which `kaleido_jax.bundle.load_vae` reads), `report.json` with the PSNR on held-out
samples, and `reconstructions.png`. Run again with the same folder, it goes on where it was interrupted.
"""

import argparse
import dataclasses
import json
import queue
import threading
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from einops import rearrange
from flax import nnx
from PIL import Image

from kaleido_jax.bundle import abstract, load_vae, merge, parameters, save_parameters
from kaleido_jax.config import to_json
from kaleido_jax.data.world import World
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.training.checkpoint import Checkpoints

# (samples, frames) of the batches that take turns; every batch is cropped to one size.
BATCHES = ((12, 1), (2, 9), (1, 17), (2, 9))
WARM_UP = 30
SUBJECT_EMPHASIS = 4.0  # a subject's pixel counts 1 + this times


class Crops:
    """Random crops of a reservoir of samples, which a thread keeps renewing."""

    def __init__(self, world: World, crop: int, seed: int, reservoir: int = 192):
        self._world, self._crop = world, crop
        self._rng = np.random.default_rng(seed)
        self._seed = seed * 1_000_000
        self._fresh: queue.Queue = queue.Queue(maxsize=8)
        threading.Thread(target=self._draw, daemon=True).start()
        self._samples = [self._fresh.get() for _ in range(reservoir)]

    def _draw(self) -> None:
        while True:
            sample = self._world.sample(self._seed)
            self._seed += 1
            video = np.concatenate([sample.video, (sample.masks > 0).astype(np.uint8)[..., None]], axis=-1)
            pictures = [np.concatenate([x, np.zeros_like(x[..., :1])], axis=-1) for x, _ in sample.references]
            self._fresh.put((video, pictures))

    def batch(self, samples: int, frames: int) -> np.ndarray:
        """uint8 [samples, frames, crop, crop, 4]: colours, and whether a subject of the video is seen.

        Half of all single frames are reference pictures.
        """
        while not self._fresh.empty():
            self._samples[self._rng.integers(len(self._samples))] = self._fresh.get()
        return np.stack([self._one(frames) for _ in range(samples)])

    def _one(self, frames: int) -> np.ndarray:
        video, references = self._samples[self._rng.integers(len(self._samples))]
        if frames == 1 and references and self._rng.random() < 0.5:
            video = references[self._rng.integers(len(references))][None]
        start = self._rng.integers(len(video) - frames + 1)
        y, x = (self._rng.integers(size - self._crop + 1) for size in video.shape[1:3])
        clip = video[start : start + frames, y : y + self._crop, x : x + self._crop]
        return clip[:, :, ::-1] if self._rng.random() < 0.5 else clip


def reconstruction_loss(video: jax.Array, target: jax.Array, subject: jax.Array) -> jax.Array:
    """Squared and absolute error of the pixels, and absolute error of their differences in time, y and x.

    The squared error is what makes colours right early on; the differences keep edges sharp and still things still.
    Errors of pixels of a subject (where `subject` is 1) are larger than others by the root of their emphasis.
    """
    weight = 1 + SUBJECT_EMPHASIS * subject
    error = (video - target) * jnp.sqrt(weight / jnp.mean(weight))
    loss = 3 * jnp.mean(jnp.square(error)) + 0.5 * jnp.mean(jnp.abs(error))
    for axis in (1, 2, 3):
        if error.shape[axis] > 1:
            loss += 0.15 * jnp.mean(jnp.abs(jnp.diff(error, axis=axis)))
    return loss


def loss_of(values: dict, video: jax.Array, key: jax.Array, *, graph: nnx.GraphDef, kl_weight: float):
    """The loss of one batch of `Crops`, and its reconstruction and KL parts."""
    vae = merge(graph, values)
    target, subject = video[..., :3].astype(jnp.float32) / 127.5 - 1, video[..., 3:].astype(jnp.float32)
    mean, log_variance = vae.moments(target)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    reconstruction = reconstruction_loss(vae.reconstruct(z), target, subject)
    kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)
    return reconstruction + kl_weight * kl, (reconstruction, kl)


def initial_parameters(config: VAEConfig, seed: int, start_from: Path | None) -> dict[str, jax.Array]:
    """Of a new VAE whose posterior begins narrow: with a standard deviation of 1, noise would drown the mean.

    Of an earlier VAE, everything is taken whose shape is the same: with other `z_dim`, all but the latents' own layers.
    """
    values = parameters(WanVAE(config, nnx.Rngs(seed)))
    variance = slice(config.z_dim, None)
    values["quant_conv.kernel"] = values["quant_conv.kernel"].at[..., variance].multiply(0.1)
    values["quant_conv.bias"] = values["quant_conv.bias"].at[variance].set(-5.0)
    if start_from:
        earlier = parameters(load_vae(start_from))
        values = {k: earlier[k] if earlier[k].shape == v.shape else v for k, v in values.items()}
    return values


def make_optimizer() -> optax.GradientTransformation:
    """Muon for kernels, as matrices of output channels by all else, and AdamW for scales and biases.

    In trials of 300 steps on pictures it was 2 dB ahead of AdamW at AdamW's best learning rate.
    """

    def dimensions(values: dict) -> dict:
        ranks = {name: getattr(value, "ndim", 1) for name, value in values.items()}  # optax masks those that are Adam's
        return {
            name: optax.contrib.MuonDimensionNumbers(tuple(range(rank - 1)), rank - 1) if rank > 1 else None
            for name, rank in ranks.items()
        }

    def muon(learning_rate: float) -> optax.GradientTransformation:
        return optax.contrib.muon(
            learning_rate,
            adam_b2=0.99,
            adam_learning_rate=0.05 * learning_rate,
            muon_weight_dimension_numbers=dimensions,
        )

    return optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(muon)(learning_rate=0.0))


@partial(jax.jit, static_argnames=("graph", "kl_weight"), donate_argnums=(0, 1))
def train_step(values, state, video, seed, learning_rate, *, graph, kl_weight):
    grad = jax.value_and_grad(partial(loss_of, graph=graph, kl_weight=kl_weight), has_aux=True)
    (_, parts), gradient = grad(values, video, jax.random.key(seed))
    state[1].hyperparams["learning_rate"] = learning_rate
    updates, state = make_optimizer().update(gradient, state, values)
    return optax.apply_updates(values, updates), state, parts


def evaluate(values: dict, graph: nnx.GraphDef, world: World, count: int, out: Path) -> dict:
    """PSNR on held-out clips and reference pictures; draws some of them beside their reconstructions."""

    @jax.jit
    def reconstruct(video):
        vae = merge(graph, values)
        return vae.decode(vae.encode(video.astype(jnp.float32) / 127.5 - 1, chunk=None), chunk=None)

    def psnr(video, again):
        return 10 * np.log10(255**2 / np.mean(np.square(video.astype(np.float64) - again)))

    scores: dict[str, list[float]] = {"video": [], "reference": []}
    rows = []
    for seed in range(count):
        sample = world.sample(seed, "heldout")
        clips = [("video", sample.video), *(("reference", picture[None]) for picture, _ in sample.references)]
        for kind, clip in clips[:2]:
            again = np.asarray(jnp.round((reconstruct(clip[None])[0] + 1) * 127.5))
            scores[kind].append(psnr(clip, again))
            if seed < 6:
                shown = slice(None, None, 4) if kind == "video" else slice(None)
                rows.append([np.concatenate(list(x[shown]), axis=1) for x in (clip, again.astype(np.uint8))])
    lines = [
        np.concatenate([video[i], reference[i]], axis=1)
        for video, reference in zip(rows[0::2], rows[1::2])
        for i in (0, 1)
    ]
    picture = Image.fromarray(np.concatenate(lines))
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(out)
    return {f"psnr_{kind}": float(np.mean(v)) for kind, v in scores.items()}


def statistics(
    values: dict, graph: nnx.GraphDef, world: World, count: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each latent channel over training clips and reference pictures."""
    moments = jax.jit(lambda video: merge(graph, values).moments(video.astype(jnp.float32) / 127.5 - 1)[0])
    latents = []
    for seed in range(count):
        sample = world.sample(10**9 + seed)
        for clip in (sample.video, *(picture[None] for picture, _ in sample.references)):
            latents.append(rearrange(np.asarray(moments(clip[None])), "b f h w z -> (b f h w) z"))
    stacked = np.concatenate(latents)
    return tuple(map(float, stacked.mean(0).round(6))), tuple(map(float, stacked.std(0).round(6)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=20, help="time of training, earlier parts of the same run counted in"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-2)
    parser.add_argument("--kl-weight", type=float, default=1e-4)
    parser.add_argument("--base-dim", type=int, default=VAEConfig.miniature().base_dim)
    parser.add_argument("--z-dim", type=int, default=VAEConfig.miniature().z_dim, help="channels of a latent")
    parser.add_argument(
        "--start-from", type=Path, metavar="FOLDER", help="a VAE whose weights are taken where they fit"
    )
    parser.add_argument("--crop", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    args = parser.parse_args()

    args.workdir.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(
        VAEConfig.miniature(),
        base_dim=args.base_dim,
        decoder_base_dim=args.base_dim,
        z_dim=args.z_dim,
        latents_mean=(0.0,) * args.z_dim,
        latents_std=(1.0,) * args.z_dim,
    )
    graph, _ = abstract(lambda: WanVAE(config, nnx.Rngs(0)))
    values = initial_parameters(config, args.seed, args.start_from)
    state = make_optimizer().init(values)
    checkpoints = Checkpoints(args.workdir / "checkpoints", keep=1)
    step, spent = 0, 0.0
    if restored := checkpoints.restore((values, state)):
        step, (values, state), metadata = restored
        spent = metadata["seconds"]
        print(f"going on after step {step}, {spent / 60:.1f} minutes")

    world = World()
    crops = Crops(world, args.crop, args.seed + step)
    budget = args.minutes * 60
    train = partial(train_step, graph=graph, kl_weight=args.kl_weight)
    reported, meters = time.monotonic(), []
    for batch in sorted(set(BATCHES)):  # compiling is not counted as training
        train(*jax.tree.map(jnp.copy, (values, state)), crops.batch(*batch), step, np.float32(0))
    began = time.monotonic() - spent
    first, earlier = step, spent
    while (spent := time.monotonic() - began) < budget:
        rate = (
            args.learning_rate
            * min(1, (step + 1) / WARM_UP)
            * (0.005 + 0.995 * np.cos(np.pi / 2 * spent / budget) ** 2)
        )
        video = crops.batch(*BATCHES[step % len(BATCHES)])
        values, state, parts = train(values, state, video, step, np.float32(rate))
        step += 1
        meters.append(parts)
        if time.monotonic() - reported > 15:
            reported = time.monotonic()
            loss, kl = np.mean(np.asarray(meters, np.float32), axis=0)
            meters = []
            print(
                f"step {step}  loss {loss:.4f}  kl {kl:.2f}  {(step - first) / (spent - earlier):.2f} steps/s"
                f"  {(budget - spent) / 60:.1f} minutes left",
                flush=True,
            )
        if step % args.save_every == 0:
            checkpoints.save(step, (values, state), {"seconds": time.monotonic() - began})
    checkpoints.save(step, (values, state), {"seconds": time.monotonic() - began})

    mean, deviation = statistics(values, graph, world, 64)
    config = dataclasses.replace(config, latents_mean=mean, latents_std=deviation)
    graph, _ = abstract(lambda: WanVAE(config, nnx.Rngs(0)))
    save_parameters(args.workdir / "vae.safetensors", values, dtype="float32")
    (args.workdir / "config.json").write_text(json.dumps({"format": 1, "vae": to_json(config)}, indent=1) + "\n")
    report = evaluate(values, graph, world, 48, args.workdir / "reconstructions.png")
    report |= {"steps": step, "minutes": spent / 60, "parameters": sum(v.size for v in values.values())}
    (args.workdir / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
