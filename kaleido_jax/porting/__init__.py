"""Weights in both directions: reading the checkpoints of other projects and writing them."""

from kaleido_jax.porting.inspection import Inspection, inspect
from kaleido_jax.porting.port import Ported, export, load, port

__all__ = ["Inspection", "Ported", "export", "inspect", "load", "port"]
