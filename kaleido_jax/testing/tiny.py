"""A whole model in a folder, small enough that a test compiles and runs all of it in seconds."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax.bundle import Bundle, BundleConfig, Defaults, abstract, merge, save_bundle, save_parameters
from kaleido_jax.config import to_json
from kaleido_jax.models.text import Tokenizer, UMT5Config, UMT5Encoder
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.models.vision import VisionEncoder
from kaleido_jax.models.wan import WanConfig, WanTransformer

M = TypeVar("M", bound=nnx.Module)

TINY_CONFIG = BundleConfig(
    name="tiny",
    method="kaleido",
    scheme="shift-wh",
    transformer=WanConfig(
        dim=32, ffn_dim=48, heads=2, layers=2, in_channels=4, out_channels=4, text_dim=16, freq_dim=32
    ),
    vae=VAEConfig(
        z_dim=4,
        base_dim=8,
        decoder_base_dim=8,
        dim_mult=(1, 1, 1),
        num_res_blocks=1,
        temporal_downsample=(True, True),
        patch_size=2,
        residual=True,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    ),
    text=UMT5Config(vocab_size=32, dim=16, heads=2, head_dim=8, ffn_dim=32, layers=1),
    defaults=Defaults(
        height=32,
        width=48,
        frames=5,
        frames_per_second=8,
        references=3,
        text_tokens=8,
        steps=3,
        guidance=3.0,
        shift=3.0,
    ),
)
WORDS = ("a", "red", "blue", "cat", "dog", "walks", "jumps", "left", "right")


def tiny_bundle(config: BundleConfig = TINY_CONFIG, seed: int = 0) -> Bundle:
    """A model with random weights, none of them zero: every input reaches the output."""
    random, vision = np.random.default_rng(seed), config.vision
    return Bundle(
        config=config,
        transformer=randomised(lambda: WanTransformer(config.transformer, nnx.Rngs(seed)), random),
        vae=randomised(lambda: WanVAE(config.vae, nnx.Rngs(seed)), random),
        text=randomised(lambda: UMT5Encoder(config.text, nnx.Rngs(seed)), random),
        tokenizer=Tokenizer.from_words(WORDS),
        vision=None if vision is None else randomised(lambda: VisionEncoder(vision, nnx.Rngs(seed)), random),
        transformer_2=None
        if config.experts is None
        else randomised(lambda: WanTransformer(config.transformer, nnx.Rngs(seed)), random),
    )


def save_tiny_bundle(folder: str | Path, config: BundleConfig = TINY_CONFIG, seed: int = 0) -> Path:
    """Writes `tiny_bundle` to a model folder and returns its path."""
    save_bundle(folder, tiny_bundle(config, seed))
    return Path(folder)


def save_untrained_vae(folder: Path) -> Path:
    """A VAE of four channels and the miniature's factors, with random weights, as training reads one."""
    config = dataclasses.replace(
        VAEConfig.miniature(),
        z_dim=4,
        base_dim=4,
        decoder_base_dim=4,
        dim_mult=(1, 1, 1),
        num_res_blocks=1,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )
    (folder / "config.json").write_text(json.dumps({"format": 1, "vae": to_json(config)}))
    random = np.random.default_rng(0)
    _, shapes = abstract(lambda: WanVAE(config, nnx.Rngs(0)))
    values = {name: random.normal(size=x.shape).astype(np.float32) * 0.1 for name, x in shapes.items()}
    save_parameters(folder / "vae.safetensors", values)
    return folder


def randomised(make: Callable[[], M], random: np.random.Generator) -> M:
    """The module with weights drawn in numpy, which compiles nothing: variance 1 / inputs, scales of norms around 1."""
    graph, shapes = abstract(make)
    values = {}
    for name, leaf in shapes.items():
        scale = 0.2 if leaf.ndim < 2 else math.prod(leaf.shape[:-1]) ** -0.5
        centre = 1.0 if "norm" in name and leaf.ndim < 3 else 0.0
        values[name] = jnp.asarray(centre + scale * random.standard_normal(leaf.shape), leaf.dtype)
    return merge(graph, values)
