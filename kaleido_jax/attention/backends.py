"""Which program computes attention, and one gradient rule for all kernels."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType
from typing import Any

import jax
from jax.sharding import AxisType

from kaleido_jax.attention.reference import Visibility, reference_attention
from kaleido_jax.typing import Array

# The modules of kernels, each with `forward` and `backward`, and the platform that each is compiled for.
KERNELS = {"pallas_tpu": "tpu"}
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
    default = jax.config.jax_default_device
    if default is not None:
        platform = default if isinstance(default, str) else default.platform
    else:
        platform = jax.default_backend()
    return platform, f"no mesh is set and the default devices are {platform}"


def _divided() -> bool:
    """Whether the compiler is left to divide the program over the devices of the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return any(
        size > 1 and kind != AxisType.Manual for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    )


def resolve(backend: str, *, interpret: bool) -> str:
    """The backend to use: the given one, or for "auto" the one for the devices of the mesh that is set.

    The mesh decides, not the host, so that a program can be compiled for devices that are not there (`jax.set_mesh`);
    without a mesh it is the default device. The choice is logged once.

    Raises:
      ValueError: for an unknown backend, or one that the platform lacks.
    """
    if backend not in BACKENDS:
        raise ValueError(f"attention: backend is {backend!r}; expected one of {', '.join(BACKENDS)}.")
    platform, reason = _platform()
    if backend == "auto":
        names = {kernel_platform: name for name, kernel_platform in KERNELS.items()}
        chosen = names.get("cuda" if platform == "gpu" else platform, "reference")
        if chosen != "reference" and _divided():
            chosen, reason = "reference", f"{reason}, and a kernel cannot be divided outside shard_map"
        _say(f"attention: backend {chosen}, because {reason}")
        return chosen
    if backend in KERNELS and not interpret and {"gpu": "cuda"}.get(platform, platform) != KERNELS[backend]:
        raise ValueError(
            f"attention: backend is {backend!r}, which is compiled for {KERNELS[backend]}, but {reason}; "
            "expected backend='auto', 'reference', or interpret=True."
        )
    return backend


def attend(q: Array, k: Array, v: Array, visibility: Visibility | None, scale: float, backend: str, interpret: Any):
    """Attention and its log-sum-exp by a resolved backend; arguments as those of `reference_attention`."""
    if backend == "reference":
        return reference_attention(q, k, v, visibility, scale)
    return _attend(q, k, v, visibility, scale, backend, interpret)


def _kernels(backend: str) -> ModuleType:
    """Imported when first used: Pallas takes a while to import."""
    return importlib.import_module(f"kaleido_jax.attention.{backend}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q, k, v, visibility, scale, backend, interpret):
    return _kernels(backend).forward(q, k, v, visibility, scale, interpret=interpret)


def _attend_forward(q, k, v, visibility, scale, backend, interpret):
    out, lse = _attend(q, k, v, visibility, scale, backend, interpret)
    return (out, lse), (q, k, v, visibility, out, lse)


def _attend_backward(scale, backend, interpret, saved, cotangents):
    q, k, v, visibility, out, lse = saved
    gradients = _kernels(backend).backward(q, k, v, visibility, out, lse, *cotangents, scale, interpret=interpret)
    return (*gradients, None)


_attend.defvjp(_attend_forward, _attend_backward)
