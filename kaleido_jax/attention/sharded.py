"""Attention whose tokens are divided over devices: Ulysses, ring, and both at once.

Ulysses (Jacobs et al. 2023) exchanges tokens for heads, so that a device has all tokens of some heads. Ring attention
(Liu et al. 2023) keeps the queries at home while keys and values travel, with the bit vectors that say who may read
them; results of the hops are merged by their log-sum-exp. One axis of devices can do both: groups of `ulysses`
neighbours exchange heads, and the groups form a ring. All heads then need not divide the axis.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, PartitionSpec

from kaleido_jax.attention import backends
from kaleido_jax.attention.blocks import fill_blocks
from kaleido_jax.attention.reference import NOTHING, Visibility
from kaleido_jax.masks import EMPTY, TokenMask, block_summary
from kaleido_jax.typing import Array, Bool, Float

# What meshes call the axes that divide a batch, outermost first, and heads.
BATCH_AXES, HEAD_AXIS = ("data", "fsdp"), "tensor"


class Backend(NamedTuple):
    """How a device computes its part."""

    name: str
    scale: float
    interpret: bool


class _Ring(NamedTuple):
    axis: str
    size: int  # of the axis
    ulysses: int  # neighbours that travel together
    hops: tuple[int, ...]  # which shards are visited: those so many places before one's own, in this order

    @property
    def places(self) -> int:
        return self.size // self.ulysses

    def send(self, tree: Any, places: int = 1) -> Any:
        """Everything goes on by so many places."""
        if places % self.places == 0:
            return tree
        route = [(device, (device + places * self.ulysses) % self.size) for device in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, route), tree)


def merge(
    out: Float[Array, "b n h d"],
    lse: Float[Array, "b h n"],
    other: Float[Array, "b n h d"],
    other_lse: Float[Array, "b h n"],
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """Attention over two disjoint sets of keys from the attention over each, with their log-sum-exps.

    Differentiable. A query that reads nothing in both stays at zeros and -1e30.
    """
    joint = jnp.logaddexp(lse, other_lse)
    weight = lambda x: jnp.exp(x - joint).swapaxes(1, 2)[..., None]
    merged = out.astype(jnp.float32) * weight(lse) + other.astype(jnp.float32) * weight(other_lse)
    return merged.astype(out.dtype), joint


def _something_visible(visibility: Visibility | None, queries: int, keys: int) -> Bool[Array, ""]:
    if visibility is None:
        return jnp.array(True)
    reads, groups, q_sample, k_sample = visibility
    mask = TokenMask(reads, groups, q_sample=q_sample, k_sample=k_sample)
    return (block_summary(mask, queries, keys) != EMPTY).any()


def _keys_of(k: Array, v: Array, visibility: Visibility | None) -> tuple[Array | None, ...]:
    """What travels around a ring."""
    return (k, v, *((None, None) if visibility is None else (visibility.groups, visibility.k_sample)))


def _with_keys(visibility: Visibility | None, groups: Array | None, k_sample: Array | None) -> Visibility | None:
    return None if visibility is None else visibility._replace(groups=groups, k_sample=k_sample)


def _ring_forward(q, k, v, visibility: Visibility | None, backend: Backend, ring: _Ring):
    def visit(results, keys):
        k, v, *vectors = keys
        here = _with_keys(visibility, *vectors)

        def add(out, lse):
            new, new_lse = backends.forward(q, k, v, here, backend.scale, backend.name, backend.interpret)
            return merge(out, lse, new.astype(jnp.float32), new_lse)

        visible = _something_visible(here, q.shape[1], k.shape[1])
        return jax.lax.cond(visible, add, lambda *results: results, *results)

    def hop(carry, _):
        results, keys = carry
        following = ring.send(keys)  # does not wait for the visit, so both may run at once
        return (visit(results, keys), following), None

    batch, n, heads, _ = q.shape
    results = jnp.zeros(q.shape, jnp.float32), jnp.full((batch, heads, n), NOTHING, jnp.float32)
    keys = _keys_of(k, v, visibility)
    if len(ring.hops) == ring.places:
        (results, keys), _ = jax.lax.scan(hop, (results, keys), length=ring.places - 1)
        results = visit(results, keys)
    else:
        for before, place in zip((0, *ring.hops), ring.hops):
            keys = ring.send(keys, place - before)
            results = visit(results, keys)
    out, lse = results
    return out.astype(q.dtype), lse


def _ring_backward(q, k, v, visibility: Visibility | None, out, lse, d_out, d_lse, backend: Backend, ring: _Ring):
    """The keys' gradients travel a hop behind the keys, and have come home after the last one.

    What a device adds to the gradients it computes while those of the others are on their way to it.
    """
    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)
    joined = lambda sums, more: jax.tree.map(jnp.add, sums, more)

    def visit(dq, keys):
        k, v, *vectors = keys
        here = _with_keys(visibility, *vectors)

        def compute(dq):
            more = backends.backward(
                q, k, v, here, out, lse, d_out, d_lse, backend.scale, backend.name, backend.interpret
            )
            more, dk, dv = (x.astype(jnp.float32) for x in more)
            return dq + more, dk, dv

        visible = _something_visible(here, q.shape[1], k.shape[1])
        dq, *gradients = jax.lax.cond(visible, compute, lambda dq: (dq, zeros(k), zeros(v)), dq)
        return dq, tuple(gradients)

    def hop(carry, _):
        dq, keys, gradients = carry
        following, arriving = ring.send((keys, gradients))  # neither waits for the visit
        dq, own = visit(dq, keys)
        return (dq, following, joined(arriving, own)), None

    dq, keys = zeros(q), _keys_of(k, v, visibility)
    if len(ring.hops) == ring.places:
        following = ring.send(keys)
        dq, gradients = visit(dq, keys)
        (dq, _, gradients), _ = jax.lax.scan(hop, (dq, following, gradients), length=ring.places - 1)
        gradients = ring.send(gradients)
    else:
        gradients = zeros(k), zeros(v)
        for before, place in zip((0, *ring.hops), ring.hops):
            keys, gradients = ring.send((keys, gradients), place - before)
            dq, own = visit(dq, keys)
            gradients = joined(gradients, own)
        gradients = ring.send(gradients, ring.places - ring.hops[-1]) if ring.hops else gradients
    dk, dv = gradients
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _ring_attention(q, k, v, visibility, backend, ring):
    return _ring_forward(q, k, v, visibility, backend, ring)


def _ring_attention_forward(q, k, v, visibility, backend, ring):
    out, lse = backends.named(_ring_forward(q, k, v, visibility, backend, ring))
    return (out, lse), (q, k, v, visibility, out, lse)


def _ring_attention_backward(backend, ring, saved, cotangents):
    return (*_ring_backward(*saved, *cotangents, backend, ring), None)


_ring_attention.defvjp(_ring_attention_forward, _ring_attention_backward)


def visible_hops(mask: TokenMask | None, size: int, ulysses: int) -> tuple[int, ...] | None:
    """The hops of a ring in which some device has something to read: how many places before its own that stands.

    mask: over all tokens, which `size` devices divide in their order; None if it is traced, or there is none: all hops.
    """
    if mask is None or any(isinstance(x, Tracer) for x in jax.tree.leaves(mask)):
        return None
    places = size // ulysses
    queries, keys = (ulysses * math.ceil(tokens / size) for tokens in mask.shape[1:])
    with jax.ensure_compile_time_eval():
        summary = np.asarray(block_summary(mask, queries, keys)).max(0)
    shards, others = np.nonzero(summary != EMPTY)
    return tuple(sorted({int(place) for place in (shards - others) % places}))


def local_attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    visibility: Visibility | None,
    backend: Backend,
    *,
    axis: str,
    size: int,
    ulysses: int,
    hops: tuple[int, ...] | None = None,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """One device's part inside shard_map: its tokens of q, k, v and of the visibility's vectors.

    axis, size: the axis of devices along which tokens are divided, and how many they are. ulysses: how many neighbours
    exchange heads; it divides the axis and the key heads. hops: those of the ring that are not empty for all
    (`visible_hops`); None: all.
    """
    neighbours = [[first + i for i in range(ulysses)] for first in range(0, size, ulysses)]
    exchange = functools.partial(jax.lax.all_to_all, axis_name=axis, axis_index_groups=neighbours, tiled=True)
    if ulysses > 1:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, axis_index_groups=neighbours, tiled=True)
        q, k, v = (exchange(x, split_axis=2, concat_axis=1) for x in (q, k, v))
        visibility = jax.tree.map(gather, visibility)
    places = size // ulysses
    if places > 1:
        ring = _Ring(axis, size, ulysses, tuple(range(places)) if hops is None else hops)
        out, lse = _ring_attention(q, k, v, visibility, backend, ring)
    else:
        out, lse = backends.attend(q, k, v, visibility, backend.scale, backend.name, backend.interpret)
    if ulysses > 1:
        out, lse = exchange(out, split_axis=1, concat_axis=2), exchange(lse, split_axis=2, concat_axis=1)
    return out, lse


def sharded(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    visibility: Visibility | None,
    *,
    mesh: Mesh | jax.sharding.AbstractMesh,
    axis: str,
    batch: Any,
    heads: Any,
    ulysses: int | None,
    backend: Backend,
    mask: TokenMask | None = None,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """`local_attention` over a mesh; lengths that the axis does not divide are filled up with tokens nobody reads.

    mask: that of the visibility; if its bits are known while tracing, hops that are empty for all devices are left out.
    """
    size = mesh.shape[axis]
    ulysses = _neighbours(mesh, axis, k.shape[2], heads, ulysses)
    hops = visible_hops(mask, size, ulysses)
    n, m = q.shape[1], k.shape[1]
    if visibility is not None or m % size:
        visibility = fill_blocks(visibility, n, m, size, size)
    fill = lambda x: jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, 0)))
    tokens = PartitionSpec(batch, axis, heads, None)
    rows = jax.tree.map(lambda x: PartitionSpec(batch if x.shape[0] > 1 else None, axis), visibility)
    compute = jax.shard_map(
        functools.partial(local_attention, backend=backend, axis=axis, size=size, ulysses=ulysses, hops=hops),
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, rows),
        out_specs=(tokens, PartitionSpec(batch, heads, axis)),
        check_vma=False,  # kernels do not say along which axes their results vary
    )
    out, lse = compute(fill(q), fill(k), fill(v), visibility)
    return out[:, :n], lse[:, :, :n]


def inside(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m g d"],
    v: Float[Array, "b m g d"],
    visibility: Visibility | None,
    *,
    mesh: Mesh | jax.sharding.AbstractMesh,
    axis: str | None,
    axes: tuple[Any, Any],
    ulysses: int | None,
    backend: Backend,
) -> tuple[Float[Array, "b n h d"], Float[Array, "b h n"]]:
    """`local_attention` in a program that a shard_map has divided along `axis` already, over the other axes.

    axis: that divides the tokens already; None: nothing does. axes: that divide the batch and the heads.
    """
    batch, heads = axes
    size = mesh.shape[axis] if axis else 1
    ulysses = _neighbours(mesh, axis, k.shape[2], heads, ulysses) if axis else 1
    tokens = PartitionSpec(batch, None, heads, None)
    rows = jax.tree.map(lambda x: PartitionSpec(batch if x.shape[0] > 1 else None, None), visibility)
    divide = jax.shard_map(
        functools.partial(local_attention, backend=backend, axis=axis or "", size=size, ulysses=ulysses),
        mesh=mesh,
        in_specs=(tokens, tokens, tokens, rows),
        out_specs=(tokens, PartitionSpec(batch, heads, None)),
        axis_names=set(undivided(mesh)),
        check_vma=False,  # kernels do not say along which axes their results vary
    )
    return divide(q, k, v, visibility)


def undivided(mesh: Mesh | jax.sharding.AbstractMesh) -> dict[str, int]:
    """The axes of a mesh, with their sizes, that no shard_map around this program divides."""
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in kinds if kind != AxisType.Manual}


def by_convention(mesh: Mesh | jax.sharding.AbstractMesh, batch: int, heads: int) -> tuple[Any, Any] | None:
    """The axes that divide batch and heads where a mesh has the usual names and leaves something to be divided."""
    sizes = undivided(mesh)
    if not {name for name, size in sizes.items() if size > 1} or not set(BATCH_AXES) <= set(sizes):
        return None
    names: tuple[str, ...] = ()
    for name in BATCH_AXES:
        if batch % sizes[name] == 0:
            names, batch = (*names, name), batch // sizes[name]
    return names or None, HEAD_AXIS if heads % sizes.get(HEAD_AXIS, heads + 1) == 0 else None


def _neighbours(mesh: Any, axis: str, key_heads: int, heads: Any, ulysses: int | None) -> int:
    """How many devices exchange heads: as asked for, or as many as divide both the axis and a device's key heads."""
    size = mesh.shape[axis]
    key_heads = key_heads // math.prod(mesh.shape[name] for name in _names(heads))
    ulysses = math.gcd(key_heads, size) if ulysses is None else ulysses
    if size % ulysses or key_heads % ulysses:
        raise ValueError(
            f"attention: ulysses is {ulysses}; expected a divisor of the {size} devices of {axis!r} and of the "
            f"{key_heads} key heads of a device."
        )
    return ulysses


def _names(axes: Any) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
