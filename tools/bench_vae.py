"""Time the video VAE against diffusers' on the CPU, at equal shapes, weights and threads.

    python tools/bench_vae.py --out outputs/bench

Both code chunk by chunk in float32; compiling is not counted. They take turns and the fastest of several runs counts,
so that what else the machine does falls on both. Besides whole encodings and decodings, it times the convolution on
which they rest: as XLA's 3-D convolution and as the sum of 2-D ones that `kaleido_jax.models.vae.layers` uses.
"""

import argparse
import dataclasses
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.models.vae import VAEConfig, WanVAE, layers
from kaleido_jax.models.vae import params as vae_params
from kaleido_jax.testing.benchmark import fastest, save_report, threads
from kaleido_jax.testing.weights import randomise, state

# Wan's releases a third as wide, so that a run takes seconds; the miniature as it is.
SIZES = {
    "wan2_1 / 3": (dataclasses.replace(VAEConfig.wan2_1(), base_dim=32, decoder_base_dim=32), (9, 96, 96)),
    "wan2_2 / 3": (dataclasses.replace(VAEConfig.wan2_2(), base_dim=48, decoder_base_dim=80), (9, 96, 96)),
    "miniature": (VAEConfig.miniature(), (17, 96, 96)),
}
CONVOLUTIONS = ((4, 96, 96, 96), (2, 48, 48, 192), (1, 32, 32, 384))  # frames, height, width, channels


def coders(config: VAEConfig, shape: tuple[int, int, int], repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of encoding and decoding by both."""
    pixels = 3 * config.patch_size**2
    peer = randomise(
        diffusers.AutoencoderKLWan(
            base_dim=config.base_dim,
            decoder_base_dim=config.decoder_base_dim,
            z_dim=config.z_dim,
            dim_mult=list(config.dim_mult),
            num_res_blocks=config.num_res_blocks,
            temperal_downsample=list(config.temporal_downsample),
            is_residual=config.residual,
            in_channels=pixels,
            out_channels=pixels,
            patch_size=None if config.patch_size == 1 else config.patch_size,
        )
    )
    graph, _ = abstract(lambda: WanVAE(config, nnx.Rngs(0)))
    values = {name: jnp.asarray(value) for name, value in vae_params.FAMILY.from_torch(state(peer), config).items()}
    encode = jax.jit(lambda values, video: merge(graph, values).encode(video))
    decode = jax.jit(lambda values, latents: merge(graph, values).decode(latents))
    video = np.random.default_rng(0).uniform(-1, 1, (1, *shape, 3)).astype(np.float32)
    theirs = torch.from_numpy(video).permute(0, 4, 1, 2, 3).contiguous()
    ours = jnp.asarray(video)
    latents, latents_theirs = encode(values, ours), peer.encode(theirs, return_dict=False)[0].mean
    return {
        "encode": fastest({"ours": lambda: encode(values, ours), "diffusers": lambda: peer.encode(theirs)}, repeats),
        "decode": fastest(
            {"ours": lambda: decode(values, latents), "diffusers": lambda: peer.decode(latents_theirs)}, repeats
        ),
    }


def convolutions(shape: tuple[int, int, int, int], repeats: int) -> dict[str, float]:
    """GFLOP/s of a 3 x 3 x 3 convolution by XLA in 3-D, as a sum of 2-D ones, and by torch."""
    f, h, w, c = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, f + 2, h, w, c)).astype(np.float32)
    kernel = rng.standard_normal((3, 3, 3, c, c)).astype(np.float32)
    theirs = (
        torch.from_numpy(x).permute(0, 4, 1, 2, 3).contiguous(),
        torch.from_numpy(kernel).permute(4, 3, 0, 1, 2).contiguous(),
    )
    direct = jax.jit(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (1, 1, 1), ((0, 0), (1, 1), (1, 1)), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
    )
    summed = jax.jit(layers.convolution)
    arguments = jnp.asarray(x), jnp.asarray(kernel)
    seconds = fastest(
        {
            "3-D": lambda: direct(*arguments),
            "sum of 2-D": lambda: summed(*arguments),
            "torch": lambda: torch.nn.functional.conv3d(*theirs, padding=(0, 1, 1)),
        },
        repeats,
    )
    return {name: 2 * f * h * w * 27 * c * c / value / 1e9 for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a folder for the numbers as JSON")
    parser.add_argument("--machine", default="", help="what machine this is and what else it does, for the JSON")
    args = parser.parse_args()
    torch.set_num_threads(threads())
    report: dict = {"coders, seconds": {}, "convolutions, GFLOP/s": {}}
    with torch.no_grad():
        for name in args.sizes:
            report["coders, seconds"][name] = coders(*SIZES[name], args.repeats)
            for what, seconds in report["coders, seconds"][name].items():
                ratio = seconds["ours"] / seconds["diffusers"]
                seconds["ratio"] = ratio
                print(
                    f"{name:12} {what}  {seconds['ours']:.3f} s, diffusers {seconds['diffusers']:.3f} s: {ratio:.2f}x",
                    flush=True,
                )
        for shape in CONVOLUTIONS:
            rates = convolutions(shape, args.repeats)
            report["convolutions, GFLOP/s"][" x ".join(map(str, shape))] = rates
            print(
                f"convolution {shape}  " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()),
                flush=True,
            )
    if args.out:
        print(save_report(args.out, "vae", args.machine, report))


if __name__ == "__main__":
    main()
