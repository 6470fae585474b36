"""What an experiment is made of: a trained VAE, and the procedural world with its words where that is trained on."""

from pathlib import Path

from kaleido_jax.data.world import World, vocabulary
from kaleido_jax.models.text import Tokenizer
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.frozen import find_vae
from kaleido_jax.training.run import Run


def prepare(experiment: Experiment, workdir: str | Path, *, shard_size: int = 128) -> Run:
    """The run of an experiment, ready to train. Raises InputError when its VAE cannot be read."""
    data, vae = experiment.data, find_vae(experiment)
    if data.source == "encoded":
        return Run(experiment, workdir, world=None, vae=vae, tokenizer=None)
    world = World(size=data.picture, frames=data.frames)
    tokenizer = Tokenizer.from_words(vocabulary())
    return Run(experiment, workdir, world=world, vae=vae, tokenizer=tokenizer, shard_size=shard_size)
