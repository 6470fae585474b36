"""Subject-to-video generation in JAX."""
