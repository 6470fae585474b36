"""Masked attention: one public function over several backends."""

from __future__ import annotations

from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kaleido_jax.attention.backends import attend, resolve
from kaleido_jax.attention.reference import ATTENTION_NAME, Visibility
from kaleido_jax.attention.sharded import Backend, by_convention, inside, merge, sharded
from kaleido_jax.masks import TokenMask, shows_everything
from kaleido_jax.typing import AnyArray

__all__ = ["ATTENTION_NAME", "attention", "divided_attention", "merge", "sharded_attention"]

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def _check_arrays(q: Array, k: Array, v: Array) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"attention: {name} has shape {x.shape}; expected [batch, tokens, heads, head_dim].")
        if x.dtype not in _DTYPES:
            raise ValueError(f"attention: {name} is {x.dtype}; expected float32, bfloat16 or float16.")
        if x.dtype != q.dtype:
            raise ValueError(f"attention: {name} is {x.dtype} but q is {q.dtype}; expected one dtype for q, k and v.")
        if 0 in x.shape:
            raise ValueError(f"attention: {name} has shape {x.shape}; expected no axis of length 0.")
    if k.shape != v.shape:
        raise ValueError(f"attention: v has shape {v.shape}; expected that of k, {k.shape}.")
    if (k.shape[0], k.shape[3]) != (q.shape[0], q.shape[3]):
        raise ValueError(
            f"attention: k has batch {k.shape[0]} and head_dim {k.shape[3]}; "
            f"expected those of q, {q.shape[0]} and {q.shape[3]}."
        )
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: q has {q.shape[2]} heads; expected a multiple of the {k.shape[2]} heads of k.")


def _check_options(mask: TokenMask | None, scale: float | None) -> None:
    if mask is not None and not isinstance(mask, TokenMask):
        raise ValueError(f"attention: mask is a {type(mask).__name__}; expected a TokenMask or None.")
    if scale is not None and scale <= 0:
        raise ValueError(f"attention: scale is {scale}; expected a number > 0.")


def _rows(name: str, x: AnyArray, batch: int, tokens: int) -> AnyArray:
    """The vector as [1, tokens] or [batch, tokens]."""
    if x.shape not in ((tokens,), (1, tokens), (batch, tokens)):
        raise ValueError(f"attention: mask.{name} has shape {x.shape}; expected ({tokens},) or ({batch}, {tokens}).")
    return x.reshape(-1, tokens)


def _visibility(mask: TokenMask | None, batch: int, queries: int, keys: int) -> Visibility | None:
    """The mask's vectors with their batch axis; a negative sample, which is padding, becomes a row without a bit.

    None where everything is known to be visible.
    """
    if mask is None:
        return None
    reads, groups = _rows("reads", mask.reads, batch, queries), _rows("groups", mask.groups, batch, keys)
    samples = None, None
    if mask.q_sample is not None and mask.k_sample is not None:
        samples = _rows("q_sample", mask.q_sample, batch, queries), _rows("k_sample", mask.k_sample, batch, keys)
    if shows_everything(mask):
        return None
    reads, groups, q_sample, k_sample = jax.tree.map(jnp.asarray, (reads, groups, *samples))
    if q_sample is not None:
        reads = jnp.where(q_sample < 0, jnp.uint32(0), reads)
    return Visibility(reads, groups, q_sample, k_sample)


@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: TokenMask | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: Literal[False] = False,
    interpret: bool = False,
) -> Array: ...


@overload
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: TokenMask | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: Literal[True],
    interpret: bool = False,
) -> tuple[Array, Array]: ...


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: TokenMask | None = None,
    *,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    interpret: bool = False,
) -> Array | tuple[Array, Array]:
    """softmax(scale * q k^T + mask) v, differentiable, with memory linear in the tokens.

    Args:
      q: [batch, queries, heads, head_dim], float32, bfloat16 or float16.
      k, v: [batch, keys, key heads, head_dim] of q's dtype; `heads` is a multiple of `key heads`, and query head i
        reads key head i // (heads // key heads).
      mask: which query reads which key; None means all, and so does a mask of numpy vectors that shows everything. Its
        vectors are [tokens] or [batch, tokens].
      scale: multiplies the scores, > 0; head_dim ** -0.5 if None.
      backend: "reference" (chunked online softmax in plain JAX), "pallas_tpu", "pallas_triton" or "pallas_gpu" (kernels
        for TPUs, NVIDIA GPUs, and Hopper GPUs with 16 bits and a head_dim up to 128; they visit only blocks in which
        something is visible), or "auto": the one for the devices of the mesh that is set (`jax.set_mesh`), or without a
        mesh for the default device; on GPUs that is "pallas_triton", unless another was measured to be faster there
        (block_sizes.json) and takes these arrays.
      return_lse: also return the log-sum-exp of the scaled scores, float32 [batch, heads, queries], which has its own
        gradient and serves to merge attention over several sets of keys.
      interpret: interpret a kernel on the host, to test it; the reference backend has none.

    On a mesh that is set and has the axes "data", "fsdp" and "tensor", the first two divide the batch and the last one
    the heads, where they divide them: left to the compiler, the loops of attention would gather all of it.

    Returns:
      [batch, queries, heads, head_dim] of q's dtype, and the log-sum-exp if asked. A query that may read nothing gives
      zeros, a log-sum-exp of -1e30 and zero gradients.

    Raises:
      ValueError: (while tracing) for shapes, dtypes or a backend other than these, or one that the platform lacks.
    """
    _check_arrays(q, k, v)
    _check_options(mask, scale)
    mesh = jax.sharding.get_abstract_mesh()
    axes = by_convention(mesh, q.shape[0], k.shape[2])
    chosen = resolve(backend, interpret=interpret, manual=axes is not None, like=q)
    visibility = _visibility(mask, q.shape[0], q.shape[1], k.shape[1])
    scale = q.shape[3] ** -0.5 if scale is None else scale
    if axes is None:
        out, lse = attend(q, k, v, visibility, scale, chosen, interpret)
    else:
        how = Backend(chosen, scale, interpret)
        out, lse = inside(q, k, v, visibility, mesh=mesh, axis=None, axes=axes, ulysses=None, backend=how)
    return (out, lse) if return_lse else out


def sharded_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: TokenMask | None = None,
    *,
    axis: str,
    batch: Any = None,
    heads: Any = None,
    ulysses: int | None = None,
    scale: float | None = None,
    backend: str = "auto",
    return_lse: bool = False,
    interpret: bool = False,
) -> Array | tuple[Array, Array]:
    """`attention` with the tokens of queries, keys and mask divided along an axis of the mesh that is set.

    Args (those that `attention` has not):
      axis: the name of the mesh axis that divides the tokens. Lengths that it does not divide are filled up with tokens
        that nobody reads.
      batch, heads: the names of the mesh axes that divide the batch and the heads, or None.
      ulysses: how many neighbours exchange tokens for heads; groups of them form a ring. 1 is a ring alone, the whole
        axis Ulysses alone; None takes the largest number that divides both the axis and the key heads of a device.

    Differentiable; results are those of `attention`, up to the order of sums. A device computes nothing for shards of
    which it may read nothing; hops in which that is so for all devices are left out where the mask's bits are known
    while tracing.

    Raises:
      ValueError: (while tracing) as `attention`, or if no mesh with these axes is set, or ulysses divides neither the
        axis nor the heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if axis not in mesh.axis_names:
        raise ValueError(
            f"attention: axis is {axis!r}; expected one of the mesh that is set (jax.set_mesh), "
            f"which has {', '.join(mesh.axis_names) or 'none'}."
        )
    _check_arrays(q, k, v)
    chosen = resolve(backend, interpret=interpret, manual=True, like=q)
    _check_options(mask, scale)
    visibility = _visibility(mask, q.shape[0], q.shape[1], k.shape[1])
    how = Backend(chosen, q.shape[3] ** -0.5 if scale is None else scale, interpret)
    out, lse = sharded(
        q, k, v, visibility, mesh=mesh, axis=axis, batch=batch, heads=heads, ulysses=ulysses, backend=how, mask=mask
    )
    return (out, lse) if return_lse else out


def divided_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: TokenMask | None = None,
    *,
    axis: str,
    ulysses: int | None = None,
    backend: str = "auto",
    interpret: bool = False,
) -> Array:
    """`sharded_attention` within a shard_map over `axis`: q, k, v and the mask are those of this device's tokens.

    For programs that divide whole networks by tokens, so that attention alone looks beyond a device. Batch and heads
    are divided by the other axes of the mesh as in `attention`.

    Raises:
      ValueError: (while tracing) as `sharded_attention`.
    """
    _check_arrays(q, k, v)
    chosen = resolve(backend, interpret=interpret, manual=True, like=q)
    _check_options(mask, None)
    visibility = _visibility(mask, q.shape[0], q.shape[1], k.shape[1])
    how = Backend(chosen, q.shape[3] ** -0.5, interpret)
    mesh = jax.sharding.get_abstract_mesh()
    axes = by_convention(mesh, q.shape[0], k.shape[2]) or (None, None)
    return inside(q, k, v, visibility, mesh=mesh, axis=axis, axes=axes, ulysses=ulysses, backend=how)[0]
