"""Text to image against diffusers' FluxPipeline: a whole tiny model with random weights, from prompt to picture.

Tolerances, relative in the 2-norm: 5e-5 for latents after four steps, because the peer's own float32 sines of 1000 t
and of 1000 times the guidance are that far from exact ones; pictures differ by one step of a byte at most.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from flax import nnx
from tokenizers import pre_tokenizers, processors

from kaleido_jax.bundle import abstract, merge, parameters
from kaleido_jax.diffusion.flow import resolution_shift
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.models.flux import params as flux_params
from kaleido_jax.models.image_vae import ImageVAE, ImageVAEConfig
from kaleido_jax.models.image_vae import params as vae_params
from kaleido_jax.models.text import CLIPTextConfig, CLIPTextEncoder, Tokenizer, UMT5Config, UMT5Encoder
from kaleido_jax.models.text.clip import params as clip_params
from kaleido_jax.models.text.clip.tokenizer import END, START, CLIPTokenizer
from kaleido_jax.models.text.umt5 import params as t5_params
from kaleido_jax.pipeline import text_to_image
from kaleido_jax.pipeline.text_to_image import FluxModel, TextToImage, load_flux
from kaleido_jax.testing import randomise, relative_error, state
from kaleido_jax.testing.flux import diffusers_model

WORDS = ("a", "red", "blue", "cat", "walks")
PROMPTS = ["a red cat", "a blue cat walks"]
LATENTS, PICTURES = 5e-5, 1


def without(document, *keys):
    return {k: v for k, v in document.items() if k[0] != "_" and k not in ("architectures", "model_type", *keys)}


def ours(make, tensors, module, config, layout):
    arrays = {k: jnp.asarray(x) for k, x in module.FAMILY.from_torch(tensors, config, layout).items()}
    return merge(abstract(make)[0], arrays)


def make(folder, guidance: bool) -> tuple[FluxPipeline, TextToImage, FluxModel]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = Tokenizer.from_words(WORDS)
    words.save(folder / "tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words.end_id)])

    flux = FluxConfig(
        dim=32, ffn_dim=128, heads=2, double_layers=1, single_layers=2, guidance=guidance, channels=3, text_dim=12,
        pooled_dim=8, axes=(4, 6, 6),
    )  # fmt: skip
    t5 = UMT5Config(
        vocab_size=words.vocab_size, dim=12, heads=2, head_dim=6, ffn_dim=16, layers=1, shared_positions=True
    )
    clip = CLIPTextConfig(
        vocab_size=len(tokens), positions=20, dim=8, ffn_dim=16, heads=2, layers=1, end_id=vocabulary[END]
    )
    vae = ImageVAEConfig(z_dim=3, channels=(4, 8), num_res_blocks=1, shift=0.1, scale=0.4, groups=2)
    peers = {
        "transformer": diffusers_model(flux),
        "vae": AutoencoderKL(**without(vae_params.config_document(vae, "diffusers"))),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**without(clip_params.config_document(clip)))
        ),
        "text_encoder_2": transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=t5.vocab_size, d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
            )
        ),
    }  # fmt: skip
    for seed, model in enumerate(peers.values()):
        randomise(model, seed)
    peer = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=guidance, shift=3.0 if guidance else 1.0),
        tokenizer=transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20),
        tokenizer_2=transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        **peers,
    )
    peer.set_progress_bar_config(disable=True)
    tensors = {name: state(model) for name, model in peers.items()}
    named = {f"text_model.{name.removeprefix('text_model.')}": x for name, x in tensors["text_encoder"].items()}
    model = FluxModel(
        transformer=ours(
            lambda: FluxTransformer(flux, nnx.Rngs(0)), tensors["transformer"], flux_params, flux, "diffusers"
        ),
        vae=ours(lambda: ImageVAE(vae, nnx.Rngs(0)), tensors["vae"], vae_params, vae, "diffusers"),
        t5=ours(lambda: UMT5Encoder(t5, nnx.Rngs(0)), tensors["text_encoder_2"], t5_params, t5, "huggingface"),
        clip=ours(lambda: CLIPTextEncoder(clip, nnx.Rngs(0)), named, clip_params, clip, "huggingface"),
        t5_tokenizer=words,
        clip_tokenizer=CLIPTokenizer.load(_only(folder, "vocab.json", "merges.txt")),
        text_tokens=9,
    )
    return peer, TextToImage(model), model


def _only(folder, *names):
    """A folder with these files and no others."""
    made = folder / "clip"
    made.mkdir()
    for name in names:
        (made / name).write_bytes((folder / name).read_bytes())
    return made


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def pair(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp("flux"), request.param)


def test_latents_and_pictures_equal_diffusers(pair, record_property):
    peer, pipeline, _ = pair
    height, width = 12, 20  # of 2 x 2 pixels a latent and 2 x 2 latents a token: 3 x 5 tokens
    noise = np.asarray(pipeline.noise([3, 4], height, width))
    assert noise.shape == (2, 1, 6, 10, 3)
    packed = FluxPipeline._pack_latents(torch.from_numpy(noise[:, 0].transpose(0, 3, 1, 2).copy()), 2, 3, 6, 10)
    options = {"prompt": PROMPTS, "height": height, "width": width, "num_inference_steps": 4, "guidance_scale": 3.5}
    run = lambda kind: peer(**options, latents=packed, max_sequence_length=9, output_type=kind).images
    expected = FluxPipeline._unpack_latents(run("latent"), height, width, 2).numpy().transpose(0, 2, 3, 1)

    prompt = pipeline.encode(PROMPTS)
    done = []
    latents = pipeline.denoise(prompt, jnp.asarray(noise), steps=4, progress=lambda *at: done.append(at))
    error = relative_error(latents[:, 0], expected)
    record_property("relative_error", error)
    assert error <= LATENTS
    assert done == [(index, 4) for index in range(5)]

    pictures = np.round(run("np") * 255).astype(int)
    ours = pipeline.decode(latents)
    assert ours.dtype == np.uint8 and ours.shape == pictures.shape
    assert np.abs(ours.astype(int) - pictures).max() <= PICTURES
    assert ((ours > 0) & (ours < 255)).mean() > 0.05

    np.testing.assert_array_equal(pipeline(PROMPTS, height=height, width=width, steps=4, seed=3), ours)


def test_a_folder_of_diffusers_is_loaded(pair, tmp_path):
    peer, _, model = pair
    peer.save_pretrained(tmp_path)
    loaded = load_flux(tmp_path, dtype="float32")
    assert loaded.text_tokens == (512 if model.transformer.config.guidance else 256)
    for name in ("transformer", "vae", "t5", "clip"):
        there, given = getattr(loaded, name), getattr(model, name)
        assert there.config == given.config
        weights, expected = parameters(there), parameters(given)
        assert weights.keys() == expected.keys()
        assert all(np.array_equal(weights[key], expected[key]) for key in expected)
    for name, length in (("t5_tokenizer", 9), ("clip_tokenizer", 20)):
        ids = [getattr(made, name).encode(PROMPTS, length) for made in (loaded, model)]
        np.testing.assert_array_equal(*(found[0] if name == "t5_tokenizer" else found for found in ids))

    half = load_flux(tmp_path)
    assert half.transformer.config.dtype == half.t5.config.dtype == half.clip.config.dtype == "bfloat16"
    assert half.transformer.head.shift.kernel[...].dtype == jnp.bfloat16
    for part in ("vae", "transformer"):
        (tmp_path / part).rename(tmp_path / f"old_{part}")
    (tmp_path / "old_vae").rename(tmp_path / "transformer")
    with pytest.raises(InputError, match=r"holds weights with a ImageVAEConfig; FLUX\.1 has a FluxConfig there"):
        load_flux(tmp_path)


@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096])
def test_the_schedule_equals_diffusers(pair, tokens):
    peer, pipeline, _ = pair
    mu = np.log(resolution_shift(tokens))
    for steps in (1, 4, 28):
        peer.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        ours = pipeline.schedule(tokens, steps)
        np.testing.assert_allclose(ours.sigma, peer.scheduler.sigmas.numpy()[:-1], rtol=1e-6)
        np.testing.assert_allclose(ours.time, peer.scheduler.timesteps.numpy() / 1000, rtol=1e-6)
    assert len(pipeline.schedule(tokens).time) == (50 if pipeline.config.guidance else 4)


def test_large_pictures_are_decoded_in_tiles(pair, monkeypatch):
    """One tile here: it is the picture."""
    pipeline = pair[1]
    latents = pipeline.noise([0], 12, 20)
    whole = pipeline.decode(latents)
    asked = []
    monkeypatch.setattr(text_to_image, "WHOLE_PIXELS", 12 * 20 - 1)
    tiled = text_to_image.decode_tiled
    monkeypatch.setattr(text_to_image, "decode_tiled", lambda *given: asked.append(1) or tiled(*given))
    pipeline._decode.clear_cache()
    again = pipeline.decode(latents)
    assert asked == [1] and np.abs(again.astype(int) - whole).max() <= 1


def test_encoders_can_be_released_and_wrong_sizes_are_refused(pair):
    pipeline = pair[1]
    prompt = pipeline.encode(PROMPTS[:1])
    with pytest.raises(UsageError, match="The width is 18; it must be a positive multiple of 4"):
        pipeline.noise([0], 12, 18)
    with pytest.raises(UsageError, match="There are 1 prompts for 2 pictures"):
        pipeline.denoise(prompt, pipeline.noise([0, 1], 12, 20), steps=4)
    with pytest.raises(UsageError, match="steps is 0; it must be at least 1"):
        pipeline.denoise(prompt, pipeline.noise([0], 12, 20), steps=0)
    pipeline.release_encoders()
    with pytest.raises(UsageError, match="encoders were released"):
        pipeline.encode(PROMPTS)
    assert dataclasses.asdict(prompt)["text"].shape == (1, 9, 12)
