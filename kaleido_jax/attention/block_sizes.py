"""What was measured on a device (tools/tune_attention.py): the block sizes of kernels, and which kernel is fastest."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

# {device kind: {backend: {kernel: block sizes}, "fastest": backend}}; of bfloat16 and float16.
TABLE = pathlib.Path(__file__).with_suffix(".json")

Sizes = TypeVar("Sizes", bound=tuple)


@functools.cache
def table() -> Mapping[str, Mapping[str, Any]]:
    return json.loads(TABLE.read_text())


def device_kind() -> str:
    """What the devices of the mesh that is set are called, or without a mesh the default device."""
    device: Any = jax.sharding.get_abstract_mesh().abstract_device
    return (device or jax.devices()[0]).device_kind


def tuned(backend: str, kernel: str, dtype: Any, default: Sizes) -> Sizes:
    """The sizes of a kernel in the table, in the form of the default, or the default."""
    if dtype == jnp.float32:
        return default
    found = table().get(device_kind(), {}).get(backend, {}).get(kernel)
    return default if found is None else type(default)(*found)


def fastest() -> str | None:
    """The backend that was the fastest on the device, with its sizes; None if the table does not say."""
    return table().get(device_kind(), {}).get("fastest")
