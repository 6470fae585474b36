"""Turn a VAE's latents into the axes that its pictures are made of, and drop those that hold nothing.

    python tools/turn_latents.py runs/vae runs/vae-turned

A KL term makes all channels of a latent about equally large, whatever they do to the picture, and flow matching
on such latents spends its capacity evenly. Here a unit of any channel changes the decoded pixels by the same amount,
and the channels are the principal axes of that space: an error of the flow is then about an error of pixels, large
things stand out of the noise first, and directions in which the latents do not vary are gone. The change is linear:
it is folded into the encoder's last and the decoder's first layer, and OUT reconstructs as FOLDER does (but for the
border of a picture, where the decoder's first layer is padded). The PSNR before and after, and the standard deviation
of every channel (WanConfig.data_std), are printed and written to `report.json`.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax.bundle import load_vae, merge, parameters, save_parameters
from kaleido_jax.config import to_json
from kaleido_jax.data.world import World
from kaleido_jax.models.vae import WanVAE

SMALLEST = 1e-3  # of the mean variance: directions below it are dropped


def sensitivity(vae: WanVAE, latents: np.ndarray, seed: int = 0) -> np.ndarray:
    """[z, z], float64: the squared change of all pixels with a change of the latents, as a form in the channels.

    Estimated by the gradients of random sums of the pixels: on average over signs w, (J^T w)(J^T w)^T is J^T J.
    """
    graph, values = nnx.split(vae)[0], parameters(vae)

    @jax.jit
    def products(values: dict, z: jax.Array, key: jax.Array) -> jax.Array:
        decode = lambda z: merge(graph, values).reconstruct(merge(graph, values).unnormalise(z))
        pixels, backward = jax.vjp(decode, z)
        gradient = backward(jax.random.rademacher(key, pixels.shape, pixels.dtype))[0].reshape(-1, z.shape[-1])
        return gradient.T @ gradient

    keys = jax.random.split(jax.random.key(seed), len(latents))
    return sum(np.asarray(products(values, clip[None], key), np.float64) for clip, key in zip(latents, keys))


def axes(latents: np.ndarray, metric: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`there` [z, n], `back` [n, z] and the variances [n]: turned = latents @ there, latents = turned @ back.

    Of latents [..., z], whose mean is left where it is; the largest of the n axes come first, their mean variance is 1.
    """
    x = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    variances, directions = np.linalg.eigh(np.cov(x.T))
    held = directions[:, variances > SMALLEST * variances.mean()]
    values, vectors = np.linalg.eigh(held.T @ metric @ held)
    values = np.maximum(values, 1e-3 * values.max())  # a direction without any effect cannot be brought to size
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    spread, turn = np.linalg.eigh(root @ held.T @ np.cov(x.T) @ held @ root)
    spread, turn = spread[::-1], turn[:, ::-1]
    scale = np.sqrt(spread.mean())
    return held @ root @ turn / scale, scale * turn.T @ inverse @ held.T, spread / spread.mean()


def turned(vae: WanVAE, there: np.ndarray, back: np.ndarray, mean: np.ndarray) -> WanVAE:
    """The VAE whose normalised latents are (those of `vae` - mean) @ there; statistics are part of its weights."""
    old, count = vae.config, there.shape[1]
    unit = {"latents_mean": (0.0,) * count, "latents_std": (1.0,) * count}
    config = dataclasses.replace(old, z_dim=count, **unit)
    values = {name: np.asarray(value, np.float64) for name, value in parameters(vae).items()}
    statistics_mean, std = np.asarray(old.latents_mean), np.asarray(old.latents_std)

    # Encoder: its outcome, through quant_conv's mean rows, normalised, less the mean, turned.
    quant = values["quant_conv.kernel"][0, 0, 0][:, : old.z_dim] / std @ there
    offset = ((values["quant_conv.bias"][: old.z_dim] - statistics_mean) / std - mean) @ there
    kernel, bias = values["encoder.conv_out.kernel"] @ quant, values["encoder.conv_out.bias"] @ quant + offset
    narrow = np.full(count, -8.0)  # the log variance: these weights are not trained any further
    values["encoder.conv_out.kernel"] = np.concatenate([kernel, np.zeros_like(kernel)], axis=-1)
    values["encoder.conv_out.bias"] = np.concatenate([bias, narrow])
    values["quant_conv.kernel"], values["quant_conv.bias"] = np.eye(2 * count)[None, None, None], np.zeros(2 * count)

    # Decoder: turned back, unnormalised, through post_quant_conv into its first layer. What does not depend on the
    # latents goes to that layer's bias, which is exact but where it sees the padding around the picture.
    post = values["post_quant_conv.kernel"][0, 0, 0]
    constant = (mean * std + statistics_mean) @ post + values["post_quant_conv.bias"]
    first = values["decoder.conv_in.kernel"]
    values["decoder.conv_in.bias"] = values["decoder.conv_in.bias"] + constant @ first.sum((0, 1, 2))
    values["decoder.conv_in.kernel"] = (back * std @ post) @ first
    values["post_quant_conv.kernel"], values["post_quant_conv.bias"] = np.eye(count)[None, None, None], np.zeros(count)

    graph = nnx.split(nnx.eval_shape(lambda: WanVAE(config, nnx.Rngs(0))))[0]
    return merge(graph, {name: jnp.asarray(value, jnp.float32) for name, value in values.items()})


def psnr(vae: WanVAE, world: World, count: int) -> float:
    """Of the reconstructions of held-out clips, in dB."""
    graph, values = nnx.split(vae)[0], parameters(vae)
    again = jax.jit(lambda values, x: merge(graph, values).decode(merge(graph, values).encode(x)))
    errors = []
    for seed in range(count):
        clip = world.sample(seed, "heldout").video[None].astype(np.float32) / 127.5 - 1
        errors.append(10 * np.log10(4 / np.mean(np.square(clip - np.asarray(again(values, clip))))))
    return float(np.mean(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a VAE, as tools/train_vae.py writes it")
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=64, help="whose latents show where they vary")
    parser.add_argument("--measured", type=int, default=8, help="of them that are decoded with changes")
    parser.add_argument("--heldout", type=int, default=16, help="clips that are reconstructed before and after")
    args = parser.parse_args()

    world, vae = World(), load_vae(args.folder)
    graph, values = nnx.split(vae)[0], parameters(vae)
    encode = jax.jit(lambda values, x: merge(graph, values).encode(x.astype(jnp.float32) / 127.5 - 1))
    latents = np.concatenate(
        [np.asarray(encode(values, world.sample(10**9 + i).video[None])) for i in range(args.samples)]
    )
    mean = latents.reshape(-1, latents.shape[-1]).astype(np.float64).mean(0)
    metric = sensitivity(vae, latents[: args.measured])
    there, back, variances = axes(latents, metric)
    result = turned(vae, there, back, mean)

    args.out.mkdir(parents=True, exist_ok=True)
    save_parameters(args.out / "vae.safetensors", parameters(result), dtype="float32")
    (args.out / "config.json").write_text(json.dumps({"format": 1, "vae": to_json(result.config)}, indent=1) + "\n")
    report = {"psnr_before": psnr(vae, world, args.heldout), "psnr_after": psnr(result, world, args.heldout)}
    report |= {"data_std": [round(float(v), 3) for v in np.sqrt(variances)]}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
