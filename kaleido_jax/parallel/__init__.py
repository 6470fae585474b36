"""Many devices: meshes, where each parameter and each batch lies on them, and what that costs before it is run."""

from kaleido_jax.parallel.mesh import AXES, MeshConfig
from kaleido_jax.parallel.partition import batch_shardings, partition_spec, place, shardings
from kaleido_jax.parallel.sequence import divided

__all__ = ["AXES", "MeshConfig", "batch_shardings", "divided", "partition_spec", "place", "shardings"]
