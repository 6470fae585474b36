"""Strictness for every test: no silent casts, no silent broadcasts, and several devices.

Run-time shape checks (jaxtyping with beartype) and "warnings are errors" are switched on in pyproject.toml.
"""

import os

# Set before jax is imported: tests never take an accelerator that happens to be in the machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests compile much and compute little: without LLVM's optimisation they take two thirds of the time.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)
