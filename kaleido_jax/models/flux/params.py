"""Names of FLUX.1's transformer weights in the releases that hold them, as data.

Two layouts: "original" (Black Forest Labs' own file, which fuses queries, keys and values, in single blocks with the
first map of the feed-forward layer) and "diffusers" (FluxTransformer2DModel, whose last modulation has its scale before
its shift). In a token both have the channels before the pixels of a patch, ours after them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models import mapping as tables
from kaleido_jax.models.family import Family
from kaleido_jax.models.flux.config import FluxConfig
from kaleido_jax.models.flux.modeling import FluxTransformer
from kaleido_jax.models.mapping import MATRIX, SAME, Entry, Kind, Shape, Transform, layers_of, size_of

Layout = Literal["original", "diffusers"]

_EMBEDDINGS = {  # ours -> original, diffusers
    "time_embedding": ("time_in", "time_text_embed.timestep_embedder"),
    "pooled_embedding": ("vector_in", "time_text_embed.text_embedder"),
    "guidance_embedding": ("guidance_in", "time_text_embed.guidance_embedder"),
}
_STREAMS = {  # ours -> original, and diffusers' modulation, queries/keys/values/output, their norms, feed-forward layer
    "visual": ("img", "norm1", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k"), "ff"),
    "text": (
        "txt",
        "norm1_context",
        ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        ("norm_added_q", "norm_added_k"),
        "ff_context",
    ),
}


def mapping(config: FluxConfig, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout."""
    rows = {"original": _original, "diffusers": _diffusers}[layout](config)
    double, single = [], []
    for row in rows:
        (single if row[0].startswith("single_blocks.") else double).append(row)
    kinds = _kinds(config)
    return tables.table_of(double, kinds, config.double_layers) | tables.table_of(single, kinds, config.single_layers)


def config_from(shapes: Mapping[str, Shape], layout: Layout, document: Mapping[str, Any] | None = None) -> FluxConfig:
    """The sizes of a checkpoint from its tensors' shapes and, for diffusers, its config.json.

    Raises:
      InputError: a tensor that tells a size is missing, or nothing tells how a head is divided between the axes.
    """
    original = layout == "original"
    pick = lambda name, other: name if original else other
    size = lambda name, other, axis: size_of(shapes, f"{pick(name, other)}.weight", axis)
    norm = pick("double_blocks.0.img_attn.norm.query_norm.scale", "transformer_blocks.0.attn.norm_q.weight")
    dim, head_dim = size("img_in", "x_embedder", 0), size_of(shapes, norm, 0)
    released = FluxConfig.dev()
    axes = (document or {}).get("axes_dims_rope", released.axes)
    if not isinstance(axes, list | tuple) or len(axes) != 3 or any(type(width) is not int for width in axes):
        raise InputError(f"axes_dims_rope of the config.json is {axes!r}; expected three whole numbers")
    if sum(axes) != head_dim:
        raise InputError(
            f"the heads of these FLUX weights are {head_dim} wide, and the axes {axes} add up to {sum(axes)}; "
            "a config.json with axes_dims_rope has to say how they are divided between time, rows and columns."
        )
    embedder = "time_text_embed"
    return FluxConfig(
        dim=dim,
        ffn_dim=size("double_blocks.0.img_mlp.0", "transformer_blocks.0.ff.net.0.proj", 0),
        heads=dim // head_dim,
        double_layers=layers_of(
            shapes, pick("double_blocks.{}.img_mod.lin.weight", "transformer_blocks.{}.norm1.linear.weight")
        ),
        single_layers=layers_of(
            shapes, pick("single_blocks.{}.linear2.weight", "single_transformer_blocks.{}.proj_out.weight")
        ),
        guidance=pick("guidance_in.in_layer.weight", f"{embedder}.guidance_embedder.linear_1.weight") in shapes,
        channels=size("img_in", "x_embedder", 1) // math.prod(released.patch),
        text_dim=size("txt_in", "context_embedder", 1),
        pooled_dim=size("vector_in.in_layer", f"{embedder}.text_embedder.linear_1", 1),
        axes=tuple(axes),
        freq_dim=size("time_in.in_layer", f"{embedder}.timestep_embedder.linear_1", 1),
    )


def config_document(config: FluxConfig, layout: Layout) -> dict[str, Any]:
    """The config.json beside an export: that of diffusers' FluxTransformer2DModel; the original has none."""
    if layout == "original":
        return {}
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,  # diffusers' pipeline cuts the patches
        "in_channels": math.prod(config.patch) * config.channels,
        "num_layers": config.double_layers,
        "num_single_layers": config.single_layers,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.text_dim,
        "pooled_projection_dim": config.pooled_dim,
        "guidance_embeds": config.guidance,
        "axes_dims_rope": list(config.axes),
    }


def _kinds(config: FluxConfig) -> dict[str, Kind]:
    patch = tuple(zip(("pt", "ph", "pw"), config.patch))
    linear = ((".kernel", ".weight", MATRIX), (".bias", ".bias", SAME))
    return {
        "linear": linear,
        "from patches": ((".kernel", ".weight", Transform("dim (c pt ph pw) -> (pt ph pw c) dim", patch)), linear[1]),
        "to patches": (
            (".kernel", ".weight", Transform("(c pt ph pw) dim -> dim (pt ph pw c)", patch)),
            (".bias", ".bias", Transform("(c pt ph pw) -> (pt ph pw c)", patch)),
        ),
        "rms norm": ((".scale", ".weight", SAME),),
        "scale": ((".scale", ".scale", SAME),),
    }


def _embeddings(config: FluxConfig) -> Iterator[tuple[str, str, str]]:
    for ours, (original, diffusers) in _EMBEDDINGS.items():
        if config.guidance or ours != "guidance_embedding":
            yield ours, original, diffusers


def _original(config: FluxConfig) -> Iterator[tuple]:
    """Rows of the table: (our module, its name there, kind[, the rows of its tensors that are ours])."""
    dim = config.dim
    third = {"query": (0, dim), "key": (dim, 2 * dim), "value": (2 * dim, 3 * dim)}
    yield "patch_embedding", "img_in", "from patches"
    yield "text_embedding", "txt_in", "linear"
    for ours, name, _ in _embeddings(config):
        yield f"{ours}.first", f"{name}.in_layer", "linear"
        yield f"{ours}.second", f"{name}.out_layer", "linear"
    for stream, (name, *_) in _STREAMS.items():
        ours, theirs = f"double_blocks.{stream}", f"double_blocks.{{}}.{name}"
        yield f"{ours}.modulation", f"{theirs}_mod.lin", "linear"
        for part, rows in third.items():
            yield f"{ours}.qkv.{part}", f"{theirs}_attn.qkv", "linear", rows
        yield f"{ours}.qkv.query_norm", f"{theirs}_attn.norm.query_norm", "scale"
        yield f"{ours}.qkv.key_norm", f"{theirs}_attn.norm.key_norm", "scale"
        yield f"{ours}.out", f"{theirs}_attn.proj", "linear"
        yield f"{ours}.mlp.first", f"{theirs}_mlp.0", "linear"
        yield f"{ours}.mlp.second", f"{theirs}_mlp.2", "linear"
    yield "single_blocks.modulation", "single_blocks.{}.modulation.lin", "linear"
    for part, rows in third.items():
        yield f"single_blocks.qkv.{part}", "single_blocks.{}.linear1", "linear", rows
    yield "single_blocks.mlp", "single_blocks.{}.linear1", "linear", (3 * dim, 3 * dim + config.ffn_dim)
    yield "single_blocks.qkv.query_norm", "single_blocks.{}.norm.query_norm", "scale"
    yield "single_blocks.qkv.key_norm", "single_blocks.{}.norm.key_norm", "scale"
    yield "single_blocks.out", "single_blocks.{}.linear2", "linear"
    yield "head.shift", "final_layer.adaLN_modulation.1", "linear", (0, dim)
    yield "head.scale", "final_layer.adaLN_modulation.1", "linear", (dim, 2 * dim)
    yield "head.projection", "final_layer.linear", "to patches"


def _diffusers(config: FluxConfig) -> Iterator[tuple]:
    """Rows of the table, as `_original`'s."""
    dim = config.dim
    yield "patch_embedding", "x_embedder", "from patches"
    yield "text_embedding", "context_embedder", "linear"
    for ours, _, name in _embeddings(config):
        yield f"{ours}.first", f"{name}.linear_1", "linear"
        yield f"{ours}.second", f"{name}.linear_2", "linear"
    for stream, (_, modulation, maps, norms, mlp) in _STREAMS.items():
        ours, theirs = f"double_blocks.{stream}", "transformer_blocks.{}"
        yield f"{ours}.modulation", f"{theirs}.{modulation}.linear", "linear"
        for part, name in zip(("qkv.query", "qkv.key", "qkv.value", "out"), maps):
            yield f"{ours}.{part}", f"{theirs}.attn.{name}", "linear"
        for part, name in zip(("query_norm", "key_norm"), norms):
            yield f"{ours}.qkv.{part}", f"{theirs}.attn.{name}", "rms norm"
        yield f"{ours}.mlp.first", f"{theirs}.{mlp}.net.0.proj", "linear"
        yield f"{ours}.mlp.second", f"{theirs}.{mlp}.net.2", "linear"
    theirs = "single_transformer_blocks.{}"
    yield "single_blocks.modulation", f"{theirs}.norm.linear", "linear"
    for part, name in zip(("query", "key", "value"), ("to_q", "to_k", "to_v")):
        yield f"single_blocks.qkv.{part}", f"{theirs}.attn.{name}", "linear"
    yield "single_blocks.qkv.query_norm", f"{theirs}.attn.norm_q", "rms norm"
    yield "single_blocks.qkv.key_norm", f"{theirs}.attn.norm_k", "rms norm"
    yield "single_blocks.mlp", f"{theirs}.proj_mlp", "linear"
    yield "single_blocks.out", f"{theirs}.proj_out", "linear"
    yield "head.scale", "norm_out.linear", "linear", (0, dim)
    yield "head.shift", "norm_out.linear", "linear", (dim, 2 * dim)
    yield "head.projection", "proj_out", "to patches"


FAMILY = Family(
    name="flux",
    config=FluxConfig,
    make=lambda config: FluxTransformer(config, nnx.Rngs(0)),
    sizes={"FLUX.1-dev": FluxConfig.dev, "FLUX.1-schnell": FluxConfig.schnell},
    layout="diffusers",
    mapping=mapping,
    config_from=config_from,
    config_document=config_document,
)
