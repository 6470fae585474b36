"""Flow matching, samplers and guidance. They take a velocity function, never a model."""
