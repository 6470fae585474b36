"""Subject-to-video generation in JAX: reference pictures and a prompt in, a video out."""


def __getattr__(name: str):
    # Looked up on demand: importing the package costs nothing, so that `kaleido --help` answers at once.
    if name == "__version__":
        from importlib.metadata import version

        return version("kaleido_jax")
    if name == "Pipeline":
        from kaleido_jax.pipeline.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
