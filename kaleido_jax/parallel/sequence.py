"""A network whose tokens are divided over devices.

Every device has its share of *each* segment, so that a network sees a layout of the same segments, only shorter: static
boundaries, modulation rows and visibility stay what they are, and nothing but self-attention looks beyond a device.
Visible area is balanced too, because every device has equally many tokens of each kind; and, because tokens are dealt
in turns, also where a segment is filled in part.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from kaleido_jax.attention import divided_attention
from kaleido_jax.layout import TokenLayout
from kaleido_jax.masks import TokenMask
from kaleido_jax.rope import apply_rotary
from kaleido_jax.table import TokenTable
from kaleido_jax.typing import Array, Float, Params

# network(tokens, table, text, *, layout, image, ...) -> the velocity of the target segments' tokens.
Network = Callable[..., Array]


def divided(build: Callable[[Params], Network], parameters: Params, *, ulysses: int | None = None) -> Network:
    """The network on the mesh that is set (`jax.set_mesh`), with the axes parallel.AXES; without one, as it is.

    Batch, heads and weights are divided by the compiler, as batch and parameters are placed. Where the mesh has a
    sequence axis, tokens are divided along it. Lengths that it does not divide are filled up, in each segment, with
    tokens that nobody reads.

    Args:
      build: makes a network of parameters; its self-attention is the hook `attend`, as that of WanTransformer.
      ulysses: as in `MeshConfig`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["sequence"] == 1:
        return build(parameters)
    return functools.partial(_on_mesh, build, parameters, mesh, ulysses)


def _on_mesh(
    build: Callable[[Params], Network],
    parameters: Params,
    mesh: AbstractMesh,
    ulysses: int | None,
    tokens: Float[Array, "b n i"],
    table: TokenTable,
    text: Float[Array, "b m d"],
    *,
    layout: TokenLayout,
    image: Float[Array, "b p e"] | None = None,
    **options: Any,
) -> Float[Array, "b n_target o"]:
    size = mesh.shape["sequence"]
    attend = functools.partial(_attend, ulysses=ulysses)
    parts = [segment.tokens for segment in layout.select("visual")]
    shares = [-(-part // size) for part in parts]
    local = tuple(
        segment if segment.stream == "text" else dataclasses.replace(segment, grid=(-(-segment.tokens // size), 1, 1))
        for segment in layout.segments
    )

    def compute(parameters: Params, tokens: Array, table: TokenTable, text: Array, image: Array | None) -> Array:
        network = build(parameters)
        return network(tokens, table, text, layout=TokenLayout(local), attend=attend, image=image, **options)

    if table.self_mask is None and shares != [part // size for part in parts]:
        everyone = jnp.ones((sum(parts),), jnp.uint32)
        table = dataclasses.replace(table, self_mask=TokenMask(everyone, everyone, width=1))
    dealt = jax.tree_util.tree_map_with_path(functools.partial(_deal_leaf, parts=parts, size=size), table)
    along = PartitionSpec(None, "sequence")
    specs = jax.tree_util.tree_map_with_path(lambda path, _: along if _per_token(path) else PartitionSpec(), dealt)
    whole = PartitionSpec()
    out = jax.shard_map(
        compute,
        mesh=mesh,
        in_specs=(whole, along, specs, whole, whole),
        out_specs=along,
        axis_names={"sequence"},
        check_vma=False,  # kernels do not say along which axes their results vary
    )(parameters, _deal(tokens, parts, size), dealt, text, image)

    targets = [i for i, segment in enumerate(layout.select("visual")) if segment.target]
    return _collect(out, [parts[i] for i in targets], size)


def _attend(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b n h d"],
    v: Float[Array, "b n h d"],
    table: TokenTable,
    rope: Float[Array, "_ n half"],
    state: Any,
    *,
    ulysses: int | None,
) -> tuple[Float[Array, "b n h d"], Any]:
    q, k = apply_rotary(q, rope), apply_rotary(k, rope)
    return divided_attention(q, k, v, table.self_mask, axis="sequence", ulysses=ulysses), state


def _per_token(path: tuple) -> bool:
    """Whether a leaf of a TokenTable has an entry for each visual token, on its second axis."""
    names = [entry.name for entry in path]
    if names[0] == "text_mask":
        return names[1] in ("reads", "q_sample")
    return names[0] in ("positions", "self_mask")


def _deal_leaf(path: tuple, leaf: Any, *, parts: list[int], size: int) -> Any:
    if not _per_token(path):
        return leaf
    rows = jnp.asarray(leaf)
    if path[0].name != "positions" and rows.ndim == 1:
        rows = rows[None]
    # Nobody reads the keys that fill up. The queries that do read what the last query of their segment reads.
    nobody = {"groups": 0, "k_sample": -1}.get(path[-1].name)
    return _deal(rows, parts, size, fill=nobody)


def _deal(x: Array, parts: list[int], size: int, *, fill: int | None = None) -> Array:
    """[b, n, ...] as [b, size * share, ...]: one device's tokens of all segments after another's.

    Devices take the tokens of a segment in turns. Segments are filled up to multiples of `size`: with `fill`, or with
    their last token if it is None.
    """
    pieces, start = [], 0
    for part in parts:
        piece = jax.lax.slice_in_dim(x, start, start + part, axis=1)
        more = ((0, 0), (0, -part % size), *[(0, 0)] * (x.ndim - 2))
        piece = jnp.pad(piece, more, mode="edge") if fill is None else jnp.pad(piece, more, constant_values=fill)
        pieces.append(piece.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(1, 2))
        start += part
    joined = jnp.concatenate(pieces, axis=2)
    return joined.reshape(x.shape[0], -1, *x.shape[2:])


def _collect(x: Array, parts: list[int], size: int) -> Array:
    """The inverse of `_deal`, without what was filled up."""
    x = x.reshape(x.shape[0], size, -1, *x.shape[2:])
    pieces, start = [], 0
    for part in parts:
        share = -(-part // size)
        piece = jax.lax.slice_in_dim(x, start, start + share, axis=2).swapaxes(1, 2)
        pieces.append(piece.reshape(x.shape[0], -1, *x.shape[3:])[:, :part])
        start += share
    return jnp.concatenate(pieces, axis=1)
