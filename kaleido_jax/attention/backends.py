"""Which program computes attention, and one gradient rule for all kernels."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import jax
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType

from kaleido_jax.attention import block_sizes, reference
from kaleido_jax.attention.reference import ATTENTION_NAME, Visibility, reference_attention
from kaleido_jax.typing import Array

# The modules of kernels, each with `forward` and `backward`, and the platform that each is compiled for.
KERNELS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda", "pallas_triton": "cuda"}
# Which of them "auto" is where no other was measured to be faster (block_sizes.fastest).
_AUTO = {"tpu": "pallas_tpu", "cuda": "pallas_triton"}
BACKENDS = ("auto", "reference", *KERNELS)

_log = logging.getLogger(__name__)


@functools.cache
def _say(message: str) -> None:
    _log.info(message)


def _platform() -> tuple[str, str]:
    """The platform that the program is for, and how that is known."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return device.platform, f"the mesh is of {device.device_kind}"
    default = getattr(jax.config, "jax_default_device", None)  # type checkers do not see it
    if default is not None:
        platform = default if isinstance(default, str) else default.platform
    else:
        platform = jax.default_backend()
    return platform, f"no mesh is set and the default devices are {platform}"


def _capability() -> str | None:
    """The compute capability of the default device, or None if it has none or the program is for another."""
    if jax.sharding.get_abstract_mesh().abstract_device is not None:
        return None
    return getattr(jax.devices()[0], "compute_capability", None)


def _divided() -> bool:
    """Whether the compiler is left to divide the program over the devices of the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(
        size > 1 and kind != AxisType.Manual for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    )


def _takes(backend: str, q: Array | None) -> bool:
    """Whether a kernel takes arrays of this dtype and head_dim."""
    if backend != "pallas_gpu" or q is None:
        return True
    return q.dtype.itemsize == 2 and q.shape[3] <= _kernels(backend).MOST_HEAD_DIM


def _automatic(platform: str, q: Array | None) -> str:
    """The kernel for a platform: the fastest by the table, if that has the device, else the one that is for all."""
    chosen = _AUTO.get(platform, "reference")
    fastest = block_sizes.fastest()
    return fastest if fastest and KERNELS.get(fastest) == platform and _takes(fastest, q) else chosen


def resolve(backend: str, *, interpret: bool, manual: bool = False, like: Array | None = None) -> str:
    """The backend to use: the given one, or for "auto" the one for the devices of the mesh that is set.

    The mesh decides, not the host, so that a program can be compiled for devices that are not there (`jax.set_mesh`);
    without a mesh it is the default device. The choice is logged once. manual: the program is, or will be, inside
    shard_map, so that a kernel need not be divided by the compiler. like: the queries, [b, n, h, d], which "auto" has
    to take; None: any.

    Raises:
      ValueError: for an unknown backend, or one that the platform lacks.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention: backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    platform, reason = _platform()
    if backend == "auto":
        chosen = _automatic("cuda" if platform == "gpu" else platform, like)
        if chosen != "reference" and not manual and _divided():
            chosen, reason = "reference", f"{reason}, and a kernel cannot be divided outside shard_map"
        _say(f"attention: backend {chosen}, because {reason}")
        return chosen
    if backend in KERNELS and not interpret and {"gpu": "cuda"}.get(platform, platform) != KERNELS[backend]:
        raise ValueError(
            f"attention: backend is {backend!r}, which is compiled for {KERNELS[backend]}, but {reason}; "
            "expected backend='auto', 'reference', or interpret=True."
        )
    if backend == "pallas_gpu" and not interpret and not (_capability() or "9.").startswith("9."):
        raise ValueError(
            "attention: backend is 'pallas_gpu', which is compiled for Hopper GPUs (compute capability 9.0), but the "
            f"default device has {_capability()}; expected backend='auto', 'pallas_triton' or 'reference'."
        )
    return backend


def attend(q: Array, k: Array, v: Array, visibility: Visibility | None, scale: float, backend: str, interpret: bool):
    """Attention and its log-sum-exp by a resolved backend; arguments as those of `reference_attention`."""
    if backend == "reference":
        return reference_attention(q, k, v, visibility, scale)
    return _attend(q, k, v, visibility, scale, backend, interpret)


def forward(q, k, v, visibility: Visibility | None, scale: float, backend: str, interpret: bool):
    """`attend` without a gradient rule, for programs that have their own."""
    if backend == "reference":
        return reference_attention(q, k, v, visibility, scale)
    return _kernels(backend).forward(q, k, v, visibility, scale, interpret=interpret)


def backward(
    q, k, v, visibility: Visibility | None, out, lse, d_out, d_lse, scale: float, backend: str, interpret: bool
):
    """The gradients of q, k and v. `out` and `lse` may be those over more keys than k, of which k is a part."""
    if backend == "reference":
        return _reference_backward(q, k, v, visibility, out, lse, d_out, d_lse, scale)
    return _kernels(backend).backward(q, k, v, visibility, out, lse, d_out, d_lse, scale, interpret=interpret)


def _reference_backward(q, k, v, visibility: Visibility | None, out, lse, d_out, d_lse, scale: float):
    group = k.shape[2]
    split = lambda x: rearrange(x, "b n (g r) d -> b g r n d", g=group)
    split_rows = lambda x: rearrange(x, "b (g r) n -> b g r n", g=group)
    heads_first = lambda x: rearrange(x, "b m g d -> b g m d")
    dq, dk, dv = reference._backward(
        split(q),
        heads_first(k),
        heads_first(v),
        visibility,
        split(out),
        split_rows(lse),
        split(d_out),
        split_rows(d_lse),
        scale,
    )
    tokens_first = lambda x: rearrange(x, "b g m d -> b m g d")
    return rearrange(dq, "b g r n d -> b n (g r) d"), tokens_first(dk), tokens_first(dv)


def named(results: tuple[Array, Array]) -> tuple[Array, Array]:
    """Output and log-sum-exp by the name that checkpoint policies know; named where both are at hand, to keep both."""
    return checkpoint_name(results, ATTENTION_NAME)


def _kernels(backend: str) -> ModuleType:
    """Imported when first used: Pallas takes a while to import."""
    return importlib.import_module(f"kaleido_jax.attention.{backend}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q, k, v, visibility, scale, backend, interpret):
    return forward(q, k, v, visibility, scale, backend, interpret)


def _attend_forward(q, k, v, visibility, scale, backend, interpret):
    out, lse = named(forward(q, k, v, visibility, scale, backend, interpret))
    return (out, lse), (q, k, v, visibility, out, lse)


def _attend_backward(scale, backend, interpret, saved, cotangents):
    return (*backward(*saved, *cotangents, scale, backend, interpret), None)


_attend.defvjp(_attend_forward, _attend_backward)
