"""What keeping pinned references saves: operations at AnyID's sizes, counted, and seconds at miniature size, measured.

    python tools/bench_cache.py --out docs/bench --machine "a laptop"

Counts are of matrix products, from the program as it is traced (nothing of that size is computed), for one pass of the
network with five references that are clips as long as the video. "every pair": attention computes all pairs of tokens,
as it does on a CPU; "visible pairs": it skips what the mask hides, as the kernels for TPUs and GPUs do. Seconds are
those of the fastest of some passes, with and without what was kept, in turns. What the mask costs in fidelity is seen
by training both and evaluating them: `kaleido train configs/anyid_miniature.py --workdir runs/anyid` and the same with
`options=rule=unidirectional` and another folder, then `kaleido evaluate` of videos of each.
"""

import argparse
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax.bundle import merge, parameters
from kaleido_jax.methods import cache
from kaleido_jax.methods.anyid import AnyID
from kaleido_jax.methods.method import Condition, velocity
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import flops
from kaleido_jax.testing.benchmark import fastest, save_report

CLIPS = 5
MINIATURE = WanConfig(dim=192, ffn_dim=768, heads=4, layers=6, text_dim=128, freq_dim=128)


def programs(config: WanConfig, latents: tuple[int, int, int], text_tokens: int):
    """The parameters' shapes, a condition's, and three programs: plain, keep, fast."""
    method, patch = AnyID(rule="unidirectional"), config.patch
    grid = tuple(size // step for size, step in zip(latents, patch))
    layout = method.layout(grid, [grid] * CLIPS, texts=(text_tokens,))
    network = nnx.eval_shape(lambda: WanTransformer(config, nnx.Rngs(0)))
    graph, shapes = nnx.split(network)[0], parameters(network)
    whole = {"layout": layout, "patch": patch}

    def plain(weights, x, times, given):
        return velocity(method, merge(graph, weights), x, times, given, **whole)

    def keep(weights, given):
        return cache.keep_references(method, merge(graph, weights), given, **whole)

    def fast(weights, x, times, given, kept):
        return cache.velocity(method, merge(graph, weights), x, times, given, kept, **whole)

    array = jax.ShapeDtypeStruct
    clip = array((1, *latents, config.in_channels), jnp.float32)
    given = Condition(
        text=array((1, text_tokens, config.text_dim), jnp.float32),
        text_lengths=array((1, 1), jnp.int32),
        references=[clip] * CLIPS,
        reference_frames=array((1, CLIPS), jnp.int32),
        subjects=array((1, CLIPS), jnp.int32),
    )
    return shapes, given, clip, array((1, 1), jnp.float32), layout, plain, keep, fast


def count() -> dict[str, float]:
    """The counts at the sizes of configs/anyid_5b.py: 121 frames of 1280 x 704 are 31 latent ones of 80 x 44."""
    config = dataclasses.replace(WanConfig.ti2v_5b(), dtype="bfloat16")
    shapes, given, x, times, layout, plain, keep, fast = programs(config, (31, 44, 80), 512)
    kept = jax.eval_shape(keep, shapes, given)
    total, video = layout.tokens("visual"), layout.segments[CLIPS].tokens
    every_pair = flops.count(plain, shapes, x, times, given)
    with_cache = flops.count(fast, shapes, x, times, given, kept)
    # References read references; the video reads everything.
    visible = every_pair - 4 * config.dim * config.layers * (total - video) * video
    return {
        "tokens of the video": video,
        "without, every pair (TFLOP)": every_pair / 1e12,
        "without, visible pairs (TFLOP)": visible / 1e12,
        "with (TFLOP)": with_cache / 1e12,
        "once, before sampling (TFLOP)": flops.count(keep, shapes, given) / 1e12,
        "ratio, every pair": every_pair / with_cache,
        "ratio, visible pairs": visible / with_cache,
        "kept, bfloat16 (GB)": cache.size_of(kept) / 1e9,
        "kept, int8 (GB)": cache.size_of(jax.eval_shape(cache.Int8KeyValues.of, kept)) / 1e9,
    }


def measure(repeats: int) -> dict[str, float]:
    """Seconds of a pass at the miniature's size, with random weights."""
    shapes, given, x, times, layout, plain, keep, fast = programs(MINIATURE, (5, 12, 12), 32)
    random = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype)
    weights, x, given = jax.tree.map(fill, (shapes, x, given))
    times = jnp.full(times.shape, 0.5)
    full = jnp.full((1, CLIPS), 5, jnp.int32)
    given = dataclasses.replace(given, reference_frames=full, text_lengths=jnp.full((1, 1), 32, jnp.int32))
    kept = jax.jit(keep)(weights, given)
    slow, fast = jax.jit(plain), jax.jit(fast)
    difference = np.abs(slow(weights, x, times, given) - fast(weights, x, times, given, kept))
    runs = {
        "without": lambda: slow(weights, x, times, given),
        "with": lambda: fast(weights, x, times, given, kept),
    }
    seconds = fastest(runs, repeats)
    return {
        "tokens": layout.tokens("visual"),
        "without (ms)": 1e3 * seconds["without"],
        "with (ms)": 1e3 * seconds["with"],
        "ratio": seconds["without"] / seconds["with"],
        "largest difference": float(difference.max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="passes of each kind that are measured")
    parser.add_argument("--out", type=pathlib.Path, metavar="FOLDER", help="write the numbers there too")
    parser.add_argument("--machine", default="", help="in words, for the file")
    args = parser.parse_args()
    name = f"Wan2.2-TI2V-5B, {CLIPS} clips as long as the video"
    report = {name: count(), f"miniature, {CLIPS} clips as long as the video": measure(args.repeats)}
    for title, numbers in report.items():
        print(title)
        for what, value in numbers.items():
            print(f"  {what:32} {value:.4g}")
    if args.out:
        print(save_report(args.out, "reference-cache", args.machine, report))


if __name__ == "__main__":
    main()
