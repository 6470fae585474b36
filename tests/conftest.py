"""Strictness for every test: no silent casts, no silent broadcasts, and several devices.

Run-time shape checks (jaxtyping with beartype) and "warnings are errors" are switched on in pyproject.toml.
"""

import os

# Set before jax is imported: tests never take an accelerator that happens to be in the machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
