"""What keeping pinned references saves: operations at AnyID's sizes, counted, and seconds at miniature size, measured.

    python tools/bench_cache.py

Counts are of matrix products, from the program as it is traced (nothing of that size is computed), for one pass of the
network with five references that are clips as long as the video. "every pair": attention computes all pairs of tokens,
as it does on a CPU; "visible pairs": it skips what the mask hides, as the kernels for TPUs and GPUs do. Seconds are
those of the fastest of some passes, with and without what was kept, in turns.
"""

import argparse
import dataclasses

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
from kaleido_jax.testing.benchmark import fastest, threads

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


def count() -> None:
    """Prints the counts at the sizes of configs/anyid_5b.py: 121 frames of 1280 x 704 are 31 latent ones of 80 x 44."""
    config = dataclasses.replace(WanConfig.ti2v_5b(), dtype="bfloat16")
    shapes, given, x, times, layout, plain, keep, fast = programs(config, (31, 44, 80), 512)
    kept = jax.eval_shape(keep, shapes, given)
    total, video = layout.tokens("visual"), layout.segments[CLIPS].tokens
    all_pairs = flops.count(plain, shapes, x, times, given)
    with_cache = flops.count(fast, shapes, x, times, given, kept)
    once = flops.count(keep, shapes, given)
    # References read references; the video reads everything.
    hidden = 4 * config.dim * config.layers * (total - video) * video
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    print(f"Wan2.2-TI2V-5B, {CLIPS} clips of {video} tokens beside a video of as many:")
    print(f"  without a cache, every pair     {all_pairs / 1e12:8.1f} TFLOP a pass")
    print(f"  without a cache, visible pairs  {(all_pairs - hidden) / 1e12:8.1f}")
    print(f"  with a cache                    {with_cache / 1e12:8.1f}")
    print(f"  once, before sampling           {once / 1e12:8.1f}")
    print(f"  ratio, every pair {all_pairs / with_cache:.2f}, visible pairs {(all_pairs - hidden) / with_cache:.2f}")
    print(f"  the cache takes {size / 1e9:.1f} GB in {config.dtype} for each branch of guidance")


def measure(repeats: int) -> None:
    """Prints seconds of a pass at the miniature's size, with random weights."""
    shapes, given, x, times, layout, plain, keep, fast = programs(MINIATURE, (5, 12, 12), 32)
    random = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(0.1 * random.normal(size=leaf.shape), leaf.dtype)
    weights, x, given = jax.tree.map(fill, (shapes, x, given))
    times = jnp.full(times.shape, 0.5)
    full = jnp.full((1, CLIPS), 5, jnp.int32)
    given = dataclasses.replace(given, reference_frames=full, text_lengths=jnp.full((1, 1), 32, jnp.int32))
    kept = jax.jit(keep)(weights, given)
    compiled = {"plain": jax.jit(plain), "fast": jax.jit(fast)}
    difference = np.abs(compiled["plain"](weights, x, times, given) - compiled["fast"](weights, x, times, given, kept))
    seconds = fastest(
        {
            "plain": lambda: compiled["plain"](weights, x, times, given),
            "fast": lambda: compiled["fast"](weights, x, times, given, kept),
        },
        repeats,
    )
    ratio = seconds["plain"] / seconds["fast"]
    print(f"miniature, {layout.tokens('visual')} tokens, {threads()} threads of a CPU:")
    print(f"  {1e3 * seconds['plain']:.1f} ms without a cache, {1e3 * seconds['fast']:.1f} ms with: {ratio:.2f} times")
    print(f"  largest difference {difference.max():.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="passes of each kind that are measured")
    args = parser.parse_args()
    count()
    measure(args.repeats)


if __name__ == "__main__":
    main()
