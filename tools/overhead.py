"""What the parts of ContextAnyone cost beside the plain backbone, Phantom's layout and an adapter like VACE's.

    python tools/overhead.py --out docs/bench/contextanyone-overhead.json
    python tools/overhead.py --out docs/bench/contextanyone-overhead.json --memory v5p:2x2x1   # needs the tpu extra
    python tools/overhead.py --out docs/bench/contextanyone-overhead.json --memory h100:1x1    # needs the cuda extra

All on Wan2.1-T2V-1.3B with one reference. Parameters are those of the networks' shapes. Operations are of one pass:
matrix products counted in traced programs, and self-attention by the pairs of tokens that may see each other, which
is what the kernels for TPUs and GPUs compute. Milliseconds a frame follow from the chips' rates of
`kaleido_jax/parallel/chips.py` (for the share of the peak that whole published programs reach) and were not measured.
`--memory` compiles passes of the sizes that are printed for one chip of a target that need not be there, and adds what
they take to the file, one size after the other; what is there already is not compiled again.

VACE's adapter is a copy of every second block beside the network, whose results are added to it (arXiv 2503.07598): it
is counted as 15 more blocks over all tokens, 16 projections of its width, and an embedding of 96 channels.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"  # the host's; programs are compiled for others

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.layout import TokenLayout
from kaleido_jax.methods.contextanyone import ContextAnyone
from kaleido_jax.methods.kaleido import Kaleido
from kaleido_jax.methods.method import Condition, Method
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import flops
from kaleido_jax.parallel.chips import CHIPS, Target
from kaleido_jax.parallel.target import devices_of

BASE = dataclasses.replace(WanConfig.t2v_1_3b(), dtype="bfloat16")
SIZES = {"480p": (480, 832), "720p": (720, 1280), "1080p": (1088, 1920)}
FRAMES = (17, 49, 81, 129)
CHOSEN = ("480p, 17 frames", "480p, 81 frames", "720p, 81 frames", "1080p, 129 frames")
TEXT, IMAGE, CONTEXT = 512, 257, 96
PLAIN, PHANTOM, ADAPTER = "plain backbone", "Phantom's layout", "adapter like VACE's"
LATENT, EMPHASIS, CLIP, ALL = "reference's latents", "and Emphasize-Attention", "and CLIP's branch", "ContextAnyone"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network and how its tokens stand. adapter: whether a copy of every second block runs beside it."""

    method: Method
    config: WanConfig
    references: int = 1
    adapter: bool = False


def variants(base: WanConfig) -> dict[str, Variant]:
    """Every network that is compared, by name; ContextAnyone's parts are added to its reference's latents."""
    ours, image = ContextAnyone(), {"image_dim": 1280}
    return {
        PLAIN: Variant(Kaleido(), base, references=0),
        PHANTOM: Variant(Kaleido(scheme="phantom"), base),
        LATENT: Variant(ours, base),
        EMPHASIS: Variant(ours, dataclasses.replace(base, emphasis=True)),
        CLIP: Variant(ours, dataclasses.replace(base, **image)),
        ALL: Variant(ours, dataclasses.replace(base, emphasis=True, **image)),
        ADAPTER: Variant(Kaleido(scheme="concat-before"), base, adapter=True),
    }


def layout_of(variant: Variant, height: int, width: int, frames: int) -> TokenLayout:
    """Tokens of 16 x 16 pixels and four frames; the first frame is alone."""
    grid = (1 + (frames - 1) // 4, height // 16, width // 16)
    return variant.method.layout(grid, [(1, *grid[1:])] * variant.references, texts=(TEXT,))


def parameters(variant: Variant) -> int:
    """Numbers in the network, its adapter included."""
    count = lambda config: sum(x.size for x in abstract(lambda: WanTransformer(config, nnx.Rngs(0)))[1].values())
    total = count(variant.config)
    if variant.adapter:
        some = variant.config.layers // 2
        total += count(variant.config) - count(dataclasses.replace(variant.config, layers=variant.config.layers - some))
        dim = variant.config.dim
        total += (some + 1) * (dim * dim + dim) + (CONTEXT * math.prod(variant.config.patch) + 1) * dim
    return total


def program(variant: Variant, layout: TokenLayout, attend: Any = None) -> tuple[Any, tuple]:
    """One pass of the network without its adapter, and the shapes of what it takes."""
    config, rows = variant.config, variant.references
    graph, weights = abstract(lambda: WanTransformer(config, nnx.Rngs(0)))
    half = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    weights = {name: half(*leaf.shape) for name, leaf in weights.items()}

    def table() -> Any:
        given = Condition(
            text=jnp.zeros((1, TEXT, config.text_dim)),
            text_lengths=jnp.full((1, 1), TEXT, jnp.int32),
            references=[],
            reference_frames=jnp.ones((1, rows), jnp.int32),
            subjects=jnp.zeros((1, rows), jnp.int32),
        )
        return variant.method.table(layout, jnp.full((1, 1), 0.5), given)

    tokens = half(1, layout.tokens("visual"), math.prod(config.patch) * config.in_channels)
    image = None if config.image_dim is None else half(1, IMAGE, config.image_dim)
    hook = {} if attend is None else {"attend": attend}

    def run(weights: Any, tokens: Any, table: Any, text: Any, image: Any) -> Any:
        network = functools.partial(merge(graph, weights), remat=False, **hook)
        return network(tokens, table, text, layout=layout, image=image)

    return run, (weights, tokens, jax.eval_shape(table), half(1, TEXT, config.text_dim), image)


@functools.cache
def products(variant: Variant) -> tuple[int, int, int]:
    """Operations of one pass outside self-attention: those of none, of each video token, of each reference's token.

    From three traced programs whose tokens fill the blocks of attention, so that nothing of it is padding.
    """

    def count(frames: int, side: int) -> int:
        layout = layout_of(variant, 16 * side, 512, 1 + 4 * (frames - 1))
        return flops.count(*_flat(program(variant, layout, flops.attend_without_products)))

    small, long, large = count(1, 32), count(3, 32), count(1, 64)
    each = (long - small) // (2 * 1024)
    other = (large - small) // 1024 - each  # pictures of 1024 tokens more
    return small - 1024 * (each + other), each, other


def operations(variant: Variant, layout: TokenLayout) -> tuple[int, int]:
    """(products, self-attention's) of one pass, with the adapter's."""
    config = variant.config
    sizes = {kind: sum(s.tokens for s in layout.select("visual") if s.kind == kind) for kind in ("video", "reference")}
    video, reference = sizes["video"], sizes["reference"]
    every = video + reference
    blind = isinstance(variant.method, ContextAnyone)  # its references do not read the video
    pairs = (every * video + reference * reference) if blind else every * every
    some, layers = config.layers // 2, config.layers

    def total(layers: int) -> int:
        fixed, each, other = products(dataclasses.replace(variant, config=dataclasses.replace(config, layers=layers)))
        return fixed + each * video + other * reference

    found = total(layers)
    if variant.adapter:
        found += found - total(layers - some)
        found += 2 * every * config.dim * ((some + 1) * config.dim + CONTEXT * math.prod(config.patch))
        layers += some
    attention = 4 * config.dim * pairs * layers
    if config.emphasis:
        attention += 4 * config.dim * video * reference * config.layers
    return found, attention


def _flat(made: tuple[Any, tuple]) -> tuple:
    return made[0], *made[1]


def counted(base: WanConfig = BASE) -> dict[str, Any]:
    """Everything that needs no compiler."""
    report = {}
    for name, variant in variants(base).items():
        points = {}
        for (size, (height, width)), frames in itertools.product(SIZES.items(), FRAMES):
            layout = layout_of(variant, height, width, frames)
            products, attention = operations(variant, layout)
            milliseconds = {
                chip: 1e3 * (products + attention) / (CHIPS[chip].peak * CHIPS[chip].reached) / frames
                for chip in ("v5p", "h100")
            }
            points[f"{size}, {frames} frames"] = {
                "tokens": layout.tokens("visual"),
                "TFLOP": round((products + attention) / 1e12, 2),
                "of which self-attention": round(attention / 1e12, 2),
                **{f"ms a frame, {chip}": round(value, 3) for chip, value in milliseconds.items()},
            }
        report[name] = {"parameters": parameters(variant), "passes": points}
    return report


def memory(target: Target, point: str, base: WanConfig = BASE) -> dict[str, Any]:
    """GB of compiled passes of one of CHOSEN. An adapter's is the network's, its weights and its results."""
    size, frames = point.split(", ")
    here = NamedSharding(Mesh(np.array(devices_of(target)[:1]), ("data",)), PartitionSpec())
    options = {"exec_time_optimization_effort": -1.0} if target.chip.platform == "tpu" else None
    found = {}
    for name, variant in variants(base).items():
        layout = layout_of(variant, *SIZES[size], int(frames.split()[0]))
        run, shapes = program(variant, layout)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
        lowered = jax.jit(run).trace(*shapes).lower(lowering_platforms=(target.chip.platform,))
        sizes = lowered.compile(options).memory_analysis()
        temporary, weights = sizes.temp_size_in_bytes, 2 * parameters(variant)
        if variant.adapter:
            temporary += 2 * layout.tokens("visual") * base.dim * (base.layers // 2)
        found[name] = {"weights": round(weights / 1e9, 3), "temporary": round(temporary / 1e9, 3)}
        print(f"{target} {point} {name:26} {found[name]}", flush=True)
    return found


def table(report: dict[str, Any]) -> str:
    """The rows of docs/methods.md: operations, then milliseconds a frame, then what compiled passes hold."""
    plain = report["counted"][PLAIN]["passes"]
    more = lambda row, point: row["passes"][point]["TFLOP"] / plain[point]["TFLOP"] - 1
    lines = _rows(
        "operations of a pass, and more than the plain backbone's",
        report["counted"],
        lambda name, row, point: f"{row['passes'][point]['TFLOP']:.0f} T (+{more(row, point):.1%})",
    )
    millions = ["parameters", "---", *(f"{row['parameters'] / 1e6:.0f} M" for row in report["counted"].values())]
    lines = [line.replace(" |", f" | {number} |", 1) for line, number in zip(lines, millions, strict=True)]
    for chip in ("v5p", "h100"):
        of = lambda name, row, point, chip=chip: f"{row['passes'][point][f'ms a frame, {chip}']:.2f}"
        lines += ["", *_rows(f"ms a frame of a pass, {chip}, from its rate", report["counted"], of)]
    for target, points in report.get("GB", {}).items():

        def held(name: str, row: Any, point: str, points: dict = points) -> str:
            sizes, base = (sum(points[point][which].values()) for which in (name, PLAIN))
            return f"{sizes:.2f} (+{sizes / base - 1:.1%})"

        lines += ["", *_rows(f"GB of a compiled pass, weights included, {target}", report["counted"], held, points)]
    return "\n".join(lines)


def _rows(
    what: str, counted: dict[str, Any], cell: Callable[[str, Any, str], str], points: Iterable[str] = CHOSEN
) -> list[str]:
    points = list(points)
    lines = [f"| {what} | {' | '.join(points)} |", f"| --- {'| --- ' * len(points)}|"]
    return lines + [f"| {name} | {' | '.join(cell(name, row, p) for p in points)} |" for name, row in counted.items()]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="JSON; what is there is kept")
    parser.add_argument("--memory", metavar="TARGET", help="compile for one chip of v5p:2x2x1, h100:1x1, ...")
    arguments = parser.parse_args(words)
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    keep = lambda: arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    if "counted" not in report or not arguments.memory:
        report["counted"] = counted()
        keep()
    if arguments.memory:
        known = report.setdefault("GB", {}).setdefault(arguments.memory, {})
        for point in CHOSEN:
            if point not in known:
                known[point] = memory(Target.parse(arguments.memory), point)
                keep()
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
