"""What an experiment in the procedural world is made of: the world, its words, and a trained VAE."""

from importlib import resources
from pathlib import Path

from kaleido_jax.bundle import load_vae
from kaleido_jax.data.world import World, vocabulary
from kaleido_jax.models.text import Tokenizer
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.run import Run


def prepare(experiment: Experiment, workdir: str | Path, *, shard_size: int = 128) -> Run:
    """The run of an experiment, ready to train. Raises InputError when its VAE cannot be read."""
    data = experiment.data
    vae = load_vae(
        experiment.vae or experiment.start_from or str(resources.files("kaleido_jax") / "weights" / "miniature")
    )
    world = World(size=data.picture, frames=data.frames)
    tokenizer = Tokenizer.from_words(vocabulary())
    return Run(experiment, workdir, world=world, vae=vae, tokenizer=tokenizer, shard_size=shard_size)
