"""Devices that need not be there, for programs that are compiled ahead of time."""

import importlib.util
import math
import os
from typing import Any

from kaleido_jax.errors import UsageError
from kaleido_jax.parallel.chips import Target

# The compilers of each platform, and the extra of this package that installs it.
_COMPILERS = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda13"}

# What the compiler asks of a GPU: an H100 SXM, as its driver describes it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices_of(target: Target) -> list[Any]:
    """The devices of a target. jax must not have been told to use the accelerators of this machine for it.

    Raises:
      UsageError: the platform's compiler is not installed, or knows no such shape.
    """
    chip = target.chip
    if _missing(_COMPILERS[chip.platform]):
        raise UsageError(
            f"Planning for {target.kind} takes its compiler, which is not installed: "
            f"pip install 'kaleido_jax[{chip.extra}]'. No {target.kind} is needed."
        )
    from jax.experimental import topologies

    if chip.platform == "tpu":
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        options: dict[str, Any] = {"topology_name": str(target)}
    else:
        nodes, gpus = target.shape if len(target.shape) == 2 else (1, math.prod(target.shape))
        name = f"1x{nodes}x{gpus}"
        options = {"topology_name": name, "topology": name, "target_config": H100}
    try:
        return list(topologies.get_topology_desc(platform=chip.platform, **options).devices)
    except Exception as error:  # the compilers raise what they like
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"The compiler for {target.kind} knows no {target}: {reason}") from error


def _missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True
