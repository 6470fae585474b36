"""A tiny run on the real world: 32 x 32 pixels, 5 frames, and a VAE that was never trained."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.bundle import abstract, save_parameters
from kaleido_jax.config import to_json
from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.training.experiment import (
    CheckpointConfig,
    DataConfig,
    Experiment,
    SamplingConfig,
    TrainConfig,
)
from kaleido_jax.training.miniature import prepare
from kaleido_jax.training.optimizer import OptimizerConfig

VAE = dataclasses.replace(
    VAEConfig.miniature(), z_dim=4, base_dim=4, decoder_base_dim=4, latents_mean=(0.0,) * 4, latents_std=(0.5,) * 4
)


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    (folder / "config.json").write_text(json.dumps({"format": 1, "vae": to_json(VAE)}))
    # Drawn by numpy: compiling the initialisers of all its shapes takes 20 s.
    random = np.random.default_rng(0)
    _, shapes = abstract(lambda: WanVAE(VAE, nnx.Rngs(0)))
    draw = lambda x: random.normal(size=x.shape) / max(1.0, np.prod(x.shape[:-1])) ** 0.5
    save_parameters(folder / "vae.safetensors", {name: jnp.asarray(draw(x), jnp.float32) for name, x in shapes.items()})
    return folder


@pytest.fixture(scope="session")
def experiment(vae_folder, tmp_path_factory):
    return Experiment(
        name="test",
        vae=str(vae_folder),
        transformer=WanConfig(
            dim=24, ffn_dim=32, heads=2, layers=2, in_channels=4, out_channels=4, text_dim=16, freq_dim=16
        ),
        text=UMT5Config(vocab_size=512, dim=16, heads=2, head_dim=8, ffn_dim=24, layers=1),
        data=DataConfig(
            size=32,
            frames=5,
            samples=16,
            heldout=8,
            text_tokens=32,
            reference_buckets=False,
            folder=str(tmp_path_factory.mktemp("latents")),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, ema_decay=0.9),
        train=TrainConfig(steps=6, batch=4, log_every=2, evaluate_every=100, sample_every=100),
        checkpoint=CheckpointConfig(every=100, keep=3),
        sampling=SamplingConfig(steps=2, pictures=2),
    )


@pytest.fixture(scope="session")
def prepared(experiment, tmp_path_factory):
    """A run with its caches written; its programs are compiled once for all tests that use it."""
    run = prepare(experiment, tmp_path_factory.mktemp("run"), shard_size=8)
    run.write_caches(lambda: False)
    return run
