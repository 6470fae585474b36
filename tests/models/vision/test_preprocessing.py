"""Resizing against PyTorch and Pillow, preprocessing against transformers' image processors, CLIP in front of Wan."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from PIL import Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.models.vision import Preprocessing, VisionConfig, VisionEncoder, wan_image, wan_image_tokens
from kaleido_jax.models.vision.params import CLIP
from kaleido_jax.models.vision.resampling import resize, weights
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.testing import randomise, relative_error
from kaleido_jax.testing.vision import file_tensors, peer
from kaleido_jax.testing.wan import plain_table, video_layout

# Taller, wider, larger and smaller than what comes out; odd differences.
SIZES = [(300, 401), (480, 277), (224, 224), (97, 150)]


def picture(height: int, width: int) -> np.ndarray:
    """Smooth with noise and hard edges: it overshoots [0, 255] where it is resized."""
    rng = np.random.default_rng(height + width)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([127 + 120 * np.sin((y * a + x * b) / 17) for a, b in ((1, 2), (3, 1), (0, 1))], axis=-1)
    waves[height // 3 : height // 2] = 255 * (rng.random((height // 2 - height // 3, width, 3)) > 0.5)
    return np.clip(waves, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "to"), [((37, 21), (14, 30)), ((8, 9), (19, 3))])
def test_resizes_like_pytorch(size, to, method, antialias):
    """Sums in another order: 1e-6."""
    x = np.random.default_rng(0).standard_normal((*size, 2)).astype(np.float32)
    matrices = [weights(a, b, method=method, antialias=antialias) for a, b in zip(size, to)]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(2, 0, 1)[None], size=to, mode=method, antialias=antialias
    )
    np.testing.assert_allclose(resize(jnp.asarray(x), *matrices), expected[0].permute(1, 2, 0), atol=1e-5)
    for matrix in matrices:
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


def test_antialiased_weights_are_pillows():
    """Pillow in its floating-point mode, which does not round."""
    x = np.random.default_rng(0).standard_normal((33, 50)).astype(np.float32)
    expected = np.asarray(Image.fromarray(x).resize((20, 45), Image.Resampling.BICUBIC))
    ours = resize(jnp.asarray(x)[..., None], *(weights(a, b, antialias=True) for a, b in ((33, 45), (50, 20))))
    np.testing.assert_allclose(ours[..., 0], expected, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["clip", "dino"])
def test_preprocesses_like_transformers(name, size):
    """The same bytes after resizing, so what is left is the rounding of the normalisation: 1e-6."""
    ours = getattr(Preprocessing, name)()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": ours.shorter_side}, crop_size={"height": ours.crop, "width": ours.crop},
        image_mean=ours.mean, image_std=ours.std,
    )  # fmt: skip
    expected = processor(Image.fromarray(picture(*size)), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours([picture(*size)])[0], expected.transpose(1, 2, 0), atol=1e-6)


def test_statistics_are_those_that_transformers_publishes():
    clip, dino = Preprocessing.clip(), Preprocessing.dino()
    assert (clip.mean, clip.std) == (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
    assert (dino.mean, dino.std) == (tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD))
    default = CLIPImageProcessorPil()
    assert (default.size["shortest_edge"], default.crop_size["height"]) == (clip.shorter_side, clip.crop)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["vbench_clip", "vbench_dino"])
def test_preprocesses_like_vbench(name, size):
    """Torchvision resizes bytes by PyTorch's interpolation and rounds: a sum next to a half may round otherwise."""
    ours = getattr(Preprocessing, name)()
    x = torch.from_numpy(picture(*size)).permute(2, 0, 1)[None].float()
    to = tuple(int(224 * side / min(size)) for side in size)
    x = torch.nn.functional.interpolate(x, size=to, mode=ours.method).clamp(0, 255).round()[0].permute(1, 2, 0).numpy()
    if ours.crop:
        top, left = (to[0] - 224) // 2, (to[1] - 224) // 2
        x = x[top : top + 224, left : left + 224]
    expected = (x / 255 - np.float32(ours.mean)) / np.float32(ours.std)
    difference = np.abs(ours([picture(*size)])[0] - expected)
    assert difference.max() < 1 / 255 / 0.22 + 1e-5 and np.mean(difference > 1e-5) < 1e-4


def test_pictures_of_a_batch_come_out_equally_large():
    batch = Preprocessing.clip()([picture(*size) for size in SIZES])
    assert batch.shape == (4, 224, 224, 3) and batch.dtype == np.float32
    with pytest.raises(ValueError, match="after resizing; expected one and the same"):
        Preprocessing.vbench_dino()([picture(*size) for size in SIZES])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shorter_side": 0}, "shorter_side is 0; expected a positive integer"),
        ({"crop": 257}, "crop is 257; expected 1 to shorter_side, 256"),
    ],
)
def test_refuses_impossible_preprocessing(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Preprocessing.dino(), **changes)


def test_wan_squeezes_the_picture_into_a_square():
    """PyTorch's bicubic interpolation of pixels in [-1, 1], as the original model does it before it normalises."""
    x = picture(120, 208).astype(np.float32)[None] / 127.5 - 1
    square = torch.nn.functional.interpolate(torch.from_numpy(x).permute(0, 3, 1, 2), size=(224, 224), mode="bicubic")
    clip = CLIPImageProcessorPil()
    expected = (square.permute(0, 2, 3, 1).numpy() * 0.5 + 0.5 - clip.image_mean) / clip.image_std
    np.testing.assert_allclose(wan_image(jnp.asarray(x)), expected, atol=2e-5)


def test_wan_reads_the_tokens_of_clip():
    """At the released sizes, without allocating them: a 480 x 832 picture becomes the 257 tokens of 1280 that Wan's
    14B image-to-video transformer takes as `image`."""
    encoder = nnx.eval_shape(lambda: VisionEncoder(VisionConfig.clip_h14(), nnx.Rngs(0)))
    config = WanConfig.i2v_14b()
    transformer = nnx.eval_shape(lambda: WanTransformer(config, nnx.Rngs(0)))
    video = np.zeros((1, 1, 4, 6, config.in_channels), np.float32)
    layout = video_layout(config, video)

    def velocity(encoder, transformer, picture, tokens, text):
        image = wan_image_tokens(nnx.merge(*encoder), picture)
        table = plain_table(layout, jnp.zeros((1,)))
        out = nnx.merge(*transformer)(tokens, table, text, layout=layout, image=image)
        return image, out

    encoder, transformer = nnx.split(encoder), nnx.split(transformer)
    image, out = jax.eval_shape(
        lambda encoder_parameters, parameters, *inputs: velocity(
            (encoder[0], encoder_parameters), (transformer[0], parameters), *inputs
        ),
        encoder[1], transformer[1], jnp.zeros((1, 480, 832, 3)), jnp.zeros((1, 6, 4 * config.in_channels)),
        jnp.zeros((1, 512, config.text_dim)),
    )  # fmt: skip
    assert image.shape == (1, 257, 1280)
    assert out.shape == (1, 6, 4 * config.out_channels)


def test_wan_reads_the_last_but_one_state():
    """A small tower against transformers' class, in the way diffusers' pipeline reads it."""
    config = dataclasses.replace(
        VisionConfig.clip_h14(), dim=32, ffn_dim=40, heads=4, layers=2, patch=56, projection=None
    )
    model = randomise(peer(config))
    assert isinstance(model, transformers.CLIPVisionModel)
    parameters = CLIP.from_torch({key: x.detach().numpy() for key, x in file_tensors(model).items()}, config)
    encoder = merge(
        abstract(lambda: VisionEncoder(config, nnx.Rngs(0)))[0], {k: jnp.asarray(x) for k, x in parameters.items()}
    )
    x = jnp.asarray(picture(60, 90)[None].astype(np.float32) / 127.5 - 1)
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(wan_image(x))).permute(0, 3, 1, 2)
        expected = model(pixels, output_hidden_states=True).hidden_states[-2]
    assert relative_error(wan_image_tokens(encoder, x), expected) < 1e-5
