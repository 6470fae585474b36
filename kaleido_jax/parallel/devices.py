"""What the devices at hand are: their kind, their memory, and how fast they multiply."""

import os
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kaleido_jax.parallel.chips import CHIPS, Chip

# Words of jax's device_kind, in the order in which they are looked for.
_KINDS = {
    "v5 lite": "v5e",
    "v5e": "v5e",
    "v5": "v5p",
    "v6": "v6e",
    "tpu7": "tpu7x",
    "v7": "tpu7x",
    "h100": "h100",
    "h200": "h100",
}
REACHED = 0.5  # of the peak by whole programs, on devices of a kind that no program was published for


def chip_of(device: Any) -> Chip | None:
    """The kind of a device, if it is one that there are rates for."""
    kind = device.device_kind.lower()
    return next((CHIPS[name] for words, name in _KINDS.items() if words in kind), None)


def memory_of(devices: Sequence[Any]) -> int:
    """Bytes that a program can have on each: as the device says, or an equal share of the processor's memory."""
    stats: Mapping[str, int] = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    here = sum(device.process_index == devices[0].process_index for device in devices)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // here


def most_used(devices: Sequence[Any]) -> int:
    """Bytes of the fullest device of this process so far; of a processor, what this process took of its memory."""
    here = [device for device in devices if device.process_index == jax.process_index()]
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in here]
    if any(size is None for size in used):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(used)


def peak_of(devices: Sequence[Any], *, size: int = 512) -> float:
    """Operations a second of all devices together, at most.

    For a kind that is in no table, what a float32 product of this size reaches on the first; devices that are shares of
    one processor have its rate together.
    """
    chip = chip_of(devices[0])
    if chip is not None:
        return chip.peak * len(devices)
    local = next(device for device in devices if device.process_index == jax.process_index())
    x, product = jax.device_put(jnp.ones((size, size), jnp.float32), local), jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    processes = len({device.process_index for device in devices})
    return 2 * size**3 / min(seconds) * (processes if devices[0].platform == "cpu" else len(devices))


def rate_of(devices: Sequence[Any]) -> float:
    """Operations a second that whole programs reach on all devices together."""
    chip = chip_of(devices[0])
    return peak_of(devices) * (REACHED if chip is None else chip.reached)
