"""A FLUX.1 release in a folder as diffusers lays it out, with random weights, small enough to run in seconds."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
import tokenizers
from flax import nnx

from kaleido_jax.bundle import parameters
from kaleido_jax.models import mapping as tables
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.models.flux import params as flux
from kaleido_jax.models.image_vae import ImageVAE, ImageVAEConfig
from kaleido_jax.models.image_vae import params as vae
from kaleido_jax.models.text import CLIPTextConfig, CLIPTextEncoder, Tokenizer, UMT5Config, UMT5Encoder
from kaleido_jax.models.text.clip import params as clip
from kaleido_jax.models.text.clip.tokenizer import END, START
from kaleido_jax.models.text.umt5 import params as t5
from kaleido_jax.testing.tiny import randomised

WORDS = ("a", "red", "blue", "cat", "dog", "and", "walks", "sleeps", "on", "beach", "forest", "in", "the")


def save_tiny_flux(folder: str | Path, seed: int = 0) -> Path:
    """Writes transformer, VAE, both text encoders and both tokenizers, and returns the folder.

    8 x 8 pixels a token; T5 knows `WORDS`, CLIP knows letters.
    """
    folder, random = Path(folder), np.random.default_rng(seed)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, *(f"{x}</w>" for x in letters), START, END])}
    words = Tokenizer.from_words(WORDS)
    t5_config = UMT5Config(
        vocab_size=words.vocab_size, dim=12, heads=2, head_dim=6, ffn_dim=16, layers=1, shared_positions=True
    )
    clip_config = CLIPTextConfig(
        vocab_size=len(vocabulary), positions=20, dim=8, ffn_dim=16, heads=2, layers=1, end_id=vocabulary[END]
    )
    flux_config = FluxConfig(
        dim=32, ffn_dim=128, heads=2, double_layers=1, single_layers=2, guidance=True, channels=4, text_dim=12,
        pooled_dim=8, axes=(4, 6, 6),
    )  # fmt: skip
    vae_config = ImageVAEConfig(z_dim=4, channels=(8, 8, 8), num_res_blocks=1, shift=0.1, scale=0.4, groups=2)
    parts = {
        "transformer": (flux, flux_config, lambda: FluxTransformer(flux_config, nnx.Rngs(0)), "diffusers"),
        "vae": (vae, vae_config, lambda: ImageVAE(vae_config, nnx.Rngs(0)), "diffusers"),
        "text_encoder": (clip, clip_config, lambda: CLIPTextEncoder(clip_config, nnx.Rngs(0)), "huggingface"),
        "text_encoder_2": (t5, t5_config, lambda: UMT5Encoder(t5_config, nnx.Rngs(0)), "huggingface"),
    }
    for name, (module, config, make, layout) in parts.items():
        (folder / name).mkdir(parents=True)
        arrays = tables.to_torch(parameters(randomised(make, random)), module.mapping(config, layout))
        arrays = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        safetensors.numpy.save_file(arrays, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(module.config_document(config, layout)))
    for name in ("tokenizer", "tokenizer_2"):
        (folder / name).mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    words.save(folder / "tokenizer_2" / "tokenizer.json")
    return folder
