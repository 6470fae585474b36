"""The parts of a FLUX release, saved by those who made their formats, through ours, and loaded by them again."""

import numpy as np
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, FluxTransformer2DModel

from kaleido_jax.errors import InputError
from kaleido_jax.models.flux import FluxConfig
from kaleido_jax.models.image_vae import ImageVAEConfig
from kaleido_jax.models.image_vae import params as vae_params
from kaleido_jax.models.text import CLIPTextConfig, UMT5Config
from kaleido_jax.models.text.clip import params as clip_params
from kaleido_jax.porting import inspect, load, port
from kaleido_jax.porting.formats import OURS, layouts
from kaleido_jax.testing import randomise
from kaleido_jax.testing.checkpoints import random_tensors, write
from kaleido_jax.testing.flux import diffusers_model, random_inputs, run_peer

FLUX = FluxConfig(
    dim=128, ffn_dim=512, heads=1, double_layers=1, single_layers=2, guidance=True, channels=3, text_dim=9, pooled_dim=7
)
VAE = ImageVAEConfig(z_dim=3, channels=(32, 64), num_res_blocks=1, shift=0.1159, scale=0.3611)
CLIP = CLIPTextConfig(vocab_size=21, positions=9, dim=64, ffn_dim=20, heads=1, layers=2, end_id=20)
T5 = UMT5Config(vocab_size=23, dim=12, heads=2, head_dim=5, ffn_dim=18, layers=3, shared_positions=True)


def constructed(document):
    return {key: value for key, value in document.items() if key not in ("_class_name", "architectures", "model_type")}


def test_diffusers_loads_our_transformer(tmp_path):
    model = randomise(diffusers_model(FLUX))
    model.save_pretrained(tmp_path / "theirs")
    port(tmp_path / "theirs", tmp_path / "flux1-dev.safetensors", to="original")
    assert inspect(tmp_path / "flux1-dev.safetensors").config == FLUX
    port(tmp_path / "flux1-dev.safetensors", tmp_path / "back", shard_bytes=500_000)
    again, information = FluxTransformer2DModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(information.values()), information
    inputs = random_inputs(FLUX, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(run_peer(model, inputs), run_peer(again.eval(), inputs))


def test_diffusers_loads_our_vae(tmp_path):
    model = randomise(AutoencoderKL(**constructed(vae_params.config_document(VAE, "diffusers"))))
    model.save_pretrained(tmp_path / "theirs")
    port(tmp_path / "theirs", tmp_path / "ae.safetensors", to="original")
    port(tmp_path / "ae.safetensors", tmp_path / "back")
    again, information = AutoencoderKL.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(information.values()), information
    pixels = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32))
    with torch.no_grad():
        assert torch.equal(model(pixels).sample, again.eval()(pixels).sample)
    assert (again.config.shift_factor, again.config.scaling_factor) == (VAE.shift, VAE.scale)


@pytest.mark.parametrize("encoder", ["clip", "t5"])
def test_transformers_loads_our_encoders(tmp_path, encoder):
    if encoder == "clip":
        kind, config = transformers.CLIPTextModel, CLIP
        model = kind(transformers.CLIPTextConfig(**constructed(clip_params.config_document(CLIP))))
    else:
        kind, config = transformers.T5EncoderModel, T5
        sizes = {"vocab_size": 23, "d_model": 12, "d_kv": 5, "d_ff": 18, "num_layers": 3, "num_heads": 2}
        model = kind(transformers.T5Config(**sizes, dropout_rate=0.0, feed_forward_proj="gated-gelu"))
    randomise(model).save_pretrained(tmp_path / "theirs")
    found, _ = load(tmp_path / "theirs")
    assert found == config
    port(tmp_path / "theirs", tmp_path / "ours", to=OURS)
    port(tmp_path / "ours", tmp_path / "back")
    again, information = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(information.values()), information
    ids = torch.tensor([[3, 7, 1, 20, 20]])
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, again.eval()(ids).last_hidden_state)


def test_sizes_that_no_model_of_the_family_has_are_refused(tmp_path):
    row = layouts("flux")["original"]
    tensors = random_tensors(row, FLUX)
    tensors["img_in.weight"] = np.zeros((200, 12), np.float32)  # not a multiple of the width of a head
    source = write(tmp_path / "source", row, tensors, FLUX)
    with pytest.raises(InputError, match=r"these are not the sizes of flux weights: FluxConfig\.dim is 200"):
        load(source)
