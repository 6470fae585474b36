"""Whole loops of diffusers' Wan pipelines on random weights: two experts, and a picture as channels and image tokens.

Tolerance: 1e-4 of the norm after a few steps of guidance, each of which multiplies the networks' error of 1e-6.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
from flax import nnx
from PIL import Image

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.diffusion import samplers
from kaleido_jax.diffusion.experts import switched
from kaleido_jax.diffusion.guidance import text_guidance
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.methods.method import Condition
from kaleido_jax.methods.registry import create
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.models.vae import params as vae_params
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.models.wan.experts import WanExperts, expert_folders
from kaleido_jax.models.wan.image_to_video import conditioning_channels, conditioning_clip
from kaleido_jax.pipeline.programs import sampler_step
from kaleido_jax.testing import relative_error
from kaleido_jax.testing.wan import TEXT_TOKENS, TINY, graph, pair, run_ours
from kaleido_jax.testing.weights import randomise, state

LIMIT = 1e-4
STEPS, SHIFT = 6, 3.0
TEXT = dataclasses.replace(TINY, in_channels=4)
VAE = VAEConfig(
    z_dim=4, base_dim=4, decoder_base_dim=4, dim_mult=(1, 1, 2, 2), num_res_blocks=1,
    temporal_downsample=(False, True, True), patch_size=1, residual=False,
    latents_mean=(0.3, -0.2, 0.1, 0.4), latents_std=(0.7, 1.6, 1.1, 0.9),
)  # fmt: skip
IMAGE = dataclasses.replace(TEXT, in_channels=4 + 4 + VAE.z_dim, image_dim=24)


def scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def first(x: np.ndarray) -> torch.Tensor:
    """Channels first, as a tensor."""
    return torch.from_numpy(x).permute(0, 4, 1, 2, 3)


def guided(parameters, config, texts, scale, condition=None, image=None):
    """v(x, t) on [1, f, h, w, c]: both branches of text guidance as one batch."""
    double = lambda x: None if x is None else jnp.concatenate([x, x])

    def velocity(x, t):
        video = double(x if condition is None else jnp.concatenate([x, condition], axis=-1))
        times = jnp.full(2, t, jnp.float32)
        negative, prompt = jnp.split(run_ours(parameters, (video, texts, double(image)), times, config), 2)
        return negative + scale * (prompt - negative)

    return velocity


@pytest.fixture(scope="module")
def texts():
    return normal(0, 2, TEXT_TOKENS, TINY.text_dim)  # negative prompt, prompt


@pytest.mark.parametrize("boundary", [0.875, 0.5])
def test_two_experts_are_those_of_diffusers_pipeline(texts, boundary):
    (high, ours_high), (low, ours_low) = pair(TEXT, seed=1), pair(TEXT, seed=2)
    pipeline = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler(), transformer=high, transformer_2=low,
        boundary_ratio=boundary,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = normal(3, 1, 2, 4, 6, 4)
    theirs = pipeline(
        prompt_embeds=torch.from_numpy(texts[1:]), negative_prompt_embeds=torch.from_numpy(texts[:1]), height=32,
        width=48, num_frames=5, num_inference_steps=STEPS, guidance_scale=4.0, guidance_scale_2=3.0,
        latents=first(noise), output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    asked = []

    def counted(name, velocity):
        return lambda x, t: asked.append(name) or velocity(x, t)

    velocity = switched(
        counted("high", guided(ours_high, TEXT, texts, 4.0)),
        counted("low", guided(ours_low, TEXT, texts, 3.0)),
        boundary,
    )
    ours = samplers.sample(velocity, jnp.asarray(noise), samplers.unipc_diffusers(STEPS, SHIFT))
    assert {"high", "low"} == set(asked) and asked == sorted(asked)
    assert relative_error(ours, theirs.permute(0, 2, 3, 4, 1)) < LIMIT


@pytest.fixture(scope="module")
def vae():
    """diffusers' VAE with random weights, and ours with the same."""
    theirs = AutoencoderKLWan(
        base_dim=VAE.base_dim, decoder_base_dim=VAE.decoder_base_dim, z_dim=VAE.z_dim, dim_mult=list(VAE.dim_mult),
        num_res_blocks=1, temperal_downsample=list(VAE.temporal_downsample), latents_mean=list(VAE.latents_mean),
        latents_std=list(VAE.latents_std),
    )  # fmt: skip
    randomise(theirs)
    graph, _ = abstract(lambda: WanVAE(VAE, nnx.Rngs(0)))
    values = {name: jnp.asarray(x) for name, x in vae_params.FAMILY.from_torch(state(theirs), VAE).items()}
    return theirs, jax.jit(lambda video: merge(graph, values).encode(video))


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("with_last", [False, True], ids=["first frame", "first and last frame"])
def test_a_picture_is_what_diffusers_pipeline_makes_of_it(texts, vae, with_last):
    theirs_vae, encode = vae
    model, parameters = pair(IMAGE, seed=1)
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, image_processor=None, image_encoder=None, vae=theirs_vae,
        scheduler=scheduler(), transformer=model,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise, tokens = normal(3, 1, 2, 4, 6, 4), normal(4, 1, 7, IMAGE.image_dim)
    pipeline.encode_image = lambda image, device: torch.from_numpy(tokens)  # in place of CLIP
    pictures = [pixels(0), pixels(1)][: 1 + with_last]
    theirs = pipeline(
        image=Image.fromarray(pictures[0]), last_image=Image.fromarray(pictures[1]) if with_last else None,
        prompt_embeds=torch.from_numpy(texts[1:]), negative_prompt_embeds=torch.from_numpy(texts[:1]), height=32,
        width=48, num_frames=5, num_inference_steps=2, guidance_scale=4.0, latents=first(noise),
        output_type="latent", return_dict=False,
    )[0]  # fmt: skip
    images = [jnp.asarray(picture, jnp.float32)[None] / 127.5 - 1.0 for picture in pictures]
    latents = encode(conditioning_clip(images[0], 5, *images[1:]))
    condition = conditioning_channels(latents, last=with_last)
    assert condition.shape == (1, 2, 4, 6, 8)
    velocity = guided(parameters, IMAGE, texts, 4.0, condition, jnp.asarray(tokens))
    ours = samplers.sample(velocity, jnp.asarray(noise), samplers.unipc_diffusers(2, SHIFT))
    assert relative_error(ours, theirs.permute(0, 2, 3, 4, 1)) < LIMIT

    # And the channels alone, which a wrong place could hide behind small weights.
    clip = torch.from_numpy(np.array(images[0])).permute(0, 3, 1, 2)
    end = torch.from_numpy(np.array(images[1])).permute(0, 3, 1, 2) if with_last else None
    with torch.no_grad():
        _, expected = pipeline.prepare_latents(clip, 1, 4, 32, 48, 5, torch.float32, "cpu", last_image=end)
    assert relative_error(condition, expected.permute(0, 2, 3, 4, 1)) < LIMIT
    np.testing.assert_array_equal(condition[..., :4], expected.permute(0, 2, 3, 4, 1)[..., :4])


def test_a_picture_in_place_of_the_first_latent_is_what_diffusers_pipeline_makes_of_it(texts, vae):
    """TI2V-5B: `expand_timesteps` there gives every token a time, 0 for those of the picture's latent frame."""
    theirs_vae, encode = vae
    model, parameters = pair(TEXT, seed=1)
    pipeline = WanImageToVideoPipeline(
        tokenizer=None, text_encoder=None, image_processor=None, image_encoder=None, vae=theirs_vae,
        scheduler=scheduler(), transformer=model, expand_timesteps=True,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    noise = normal(3, 1, 3, 4, 6, 4)
    theirs = pipeline(
        image=Image.fromarray(pixels(0)), prompt_embeds=torch.from_numpy(texts[1:]),
        negative_prompt_embeds=torch.from_numpy(texts[:1]), height=32, width=48, num_frames=9, num_inference_steps=3,
        guidance_scale=4.0, latents=first(noise), output_type="latent", return_dict=False,
    )[0].permute(0, 2, 3, 4, 1)  # fmt: skip

    method = create("wan", "", ("frames=first-latent",))
    picture = jnp.asarray(pixels(0), jnp.float32)[None] / 127.5 - 1.0
    latent = encode(method.given_clip([picture], 9))
    assert latent.shape == (1, 1, 4, 6, 4)
    grid = (3, 2, 3)
    layout, absent = method.layout(grid, [(1, 2, 3)], texts=(TEXT_TOKENS,)), np.zeros((2, 1), np.int32)
    condition = Condition(
        text=jnp.asarray(texts), text_lengths=np.full((2, 1), TEXT_TOKENS), references=[jnp.concatenate([latent] * 2)],
        reference_frames=absent, subjects=absent,
    )  # fmt: skip
    rule = text_guidance(4.0)
    step = functools.partial(
        sampler_step, graphs={"transformer": graph(TEXT)}, branches=rule.branches, method=method, layout=layout,
        patch=TEXT.patch,
    )  # fmt: skip
    step, scales = jax.jit(step), jnp.asarray(rule.weights, jnp.float32)
    state, table = samplers.start(jnp.asarray(noise)), samplers.unipc_diffusers(3, SHIFT)
    for index in range(3):
        row = samplers.Steps(*(np.float32(column[index]) for column in table))
        state = step({"transformer": parameters}, state, row, condition, scales)
    np.testing.assert_array_equal(state.x[:, :1], latent)
    assert relative_error(state.x, theirs) < LIMIT

    # Learned from a clip, the given frame is clean and counts for nothing.
    times = jnp.full((2, 1), 0.25)
    np.testing.assert_array_equal(method.levels(layout, times), [[0, 0.25, 0.25]] * 2)
    given = method.table(layout, times, condition)
    np.testing.assert_array_equal(given.timesteps, [[0, 0.25]] * 2)
    np.testing.assert_array_equal(given.loss_weights, [[0, 1]] * 2)
    np.testing.assert_array_equal(given.positions[0, :, 0], np.repeat([0, 1, 2], 6))  # as in one video
    assert len(method.layout(grid, [], texts=(8,)).segments) == 2  # without a picture: text to video
    for count in (0, 1):
        method.check_references(count)
    with pytest.raises(UsageError, match="There are 2 pictures; this model takes one, the first frame, or none"):
        method.check_references(2)
    with pytest.raises(UsageError, match="has one latent frame, which the picture would fill"):
        method.layout((1, 2, 3), [(1, 2, 3)], texts=(8,))


def test_released_experts():
    """Sizes, boundaries, guidance, steps and shift of the releases' configurations."""
    text, image = WanExperts.t2v_a14b(), WanExperts.i2v_a14b()
    assert (text.boundary, text.guidance, text.shift, text.steps) == (0.875, (4.0, 3.0), 12.0, 40)
    assert (image.boundary, image.guidance, image.shift, image.steps) == (0.9, (3.5, 3.5), 5.0, 40)
    assert text.transformer == WanConfig.t2v_14b()
    sizes = image.transformer
    assert (sizes.in_channels, sizes.out_channels, sizes.image_dim) == (36, 16, None)
    with pytest.raises(ValueError, match=r"boundary is 875.0; expected a time between 0 and 1"):
        WanExperts(transformer=TINY, boundary=875.0, guidance=(1.0, 1.0), shift=1.0)


def test_experts_lie_in_folders(tmp_path):
    with pytest.raises(
        InputError, match="holds no pair of experts; expected the folders transformer/ and transformer_2/"
    ):
        expert_folders(tmp_path)
    for name in ("high_noise_model", "low_noise_model"):
        (tmp_path / name).mkdir()
    assert [path.name for path in expert_folders(tmp_path)] == ["high_noise_model", "low_noise_model"]
    with pytest.raises(ValueError, match=r"frames is 1; expected at least 2"):
        conditioning_clip(jnp.zeros((1, 2, 2, 3)), 1, jnp.zeros((1, 2, 2, 3)))
