"""Tools of tests and benchmarks: errors as numbers, and PyTorch modules with weights worth comparing."""

from kaleido_jax.testing.tolerance import relative_error, relative_errors
from kaleido_jax.testing.weights import randomise, state

__all__ = ["randomise", "relative_error", "relative_errors", "state"]
