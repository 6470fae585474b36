"""The image encoders against transformers' CLIP, ViT and DINOv2, which nobody here wrote."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.models.vision import VisionConfig, VisionEncoder
from kaleido_jax.porting.formats import family_of
from kaleido_jax.testing import randomise, relative_error
from kaleido_jax.testing.vision import file_tensors, peer

CLIP = VisionConfig(
    family="clip", dim=30, ffn_dim=44, heads=3, layers=3, patch=7, image_size=35, activation="quick_gelu",
    projection=11, eps=1e-5,
)  # fmt: skip
DINO = VisionConfig(family="dino", dim=24, ffn_dim=20, heads=2, layers=2, patch=5, image_size=20)
DINO2 = VisionConfig(
    family="dinov2", dim=18, ffn_dim=36, heads=3, layers=2, patch=4, image_size=24, mask_token=True
)  # fmt: skip
CONFIGS = {
    "clip": CLIP,
    "clip, no projection": dataclasses.replace(CLIP, activation="gelu", projection=None, layers=1),
    "dino": DINO,
    "dinov2": DINO2,
    "dinov2, gated": dataclasses.replace(DINO2, dim=16, heads=2, ffn_dim=24, activation="swiglu", mask_token=False),
    "dinov2, registers": dataclasses.replace(DINO2, registers=3, position_antialias=True),
}
# Height and width: as trained; wider and lower; with a rest that is not read.
SIZES = {
    "clip": [(35, 35), (28, 49)],
    "clip, no projection": [(35, 35)],
    "dino": [(20, 20), (38, 26), (40, 10)],
    "dinov2": [(24, 24), (12, 40)],
    "dinov2, gated": [(24, 24)],
    "dinov2, registers": [(24, 24), (16, 32)],
}
LIMIT = 1e-5  # the project's for encoders in float32; measured below 4e-7


def pixels(height: int, width: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(height * width).standard_normal((batch, height, width, 3)).astype(np.float32)


@functools.cache
def pair(name: str):
    """transformers' model with random weights, our graph and the same weights as our parameters."""
    config = CONFIGS[name]
    model = randomise(peer(config), seed=len(name))
    tensors = {key: x.detach().numpy() for key, x in file_tensors(model).items()}
    parameters = {key: jnp.asarray(x) for key, x in family_of(config).from_torch(tensors, config).items()}
    return model, abstract(lambda: VisionEncoder(config, nnx.Rngs(0)))[0], parameters


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def _norm_out(parameters) -> list[np.ndarray]:
    return [np.array(parameters[f"norm_out.{leaf}"]) for leaf in ("scale", "bias")]


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_encodes_like_transformers(name, size):
    config, picture = CONFIGS[name], pixels(*size)
    model, graph, parameters = pair(name)
    options = {} if config.family == "dinov2" else {"interpolate_pos_encoding": size[0] != size[1]}
    with torch.no_grad():
        out = model(channels_first(picture), output_hidden_states=True, **options)
    tokens, summary = jax.jit(lambda parameters, x: merge(graph, parameters)(x))(parameters, picture)
    if config.family == "clip":  # whose tokens transformers does not normalise
        last = torch.nn.functional.layer_norm(
            out.last_hidden_state, (config.dim,), *map(torch.tensor, _norm_out(parameters)), config.eps
        )
        assert relative_error(tokens, last) < LIMIT
        assert relative_error(summary, out.image_embeds if config.projection else out.pooler_output) < LIMIT
    else:
        assert relative_error(tokens, out.last_hidden_state) < LIMIT
        np.testing.assert_array_equal(summary, tokens[:, 0])


def test_the_last_blocks_can_be_left_out():
    """transformers' hidden states before the last block are what Wan's image-to-video models read."""
    model, graph, parameters = pair("clip")
    picture = pixels(35, 35)
    with torch.no_grad():
        states = model(channels_first(picture), output_hidden_states=True).hidden_states
    streams = jax.jit(lambda parameters, x: [merge(graph, parameters).stream(x, skip=skip) for skip in range(3)])
    for skip, out in enumerate(streams(parameters, picture)):
        assert relative_error(out, states[-1 - skip]) < LIMIT
    with pytest.raises(ValueError, match="skip is 3; expected 0 to 2, for 3 blocks"):
        merge(graph, parameters).stream(jnp.asarray(picture), skip=3)


def test_hidden_patches_become_the_mask_token():
    model, graph, parameters = pair("dinov2")
    picture, hidden = pixels(24, 24), np.arange(72).reshape(2, 36) % 5 == 0
    with torch.no_grad():
        expected = model(channels_first(picture), bool_masked_pos=torch.from_numpy(hidden)).last_hidden_state
    tokens, _ = jax.jit(lambda parameters, x, hidden: merge(graph, parameters)(x, hidden))(parameters, picture, hidden)
    assert relative_error(tokens, expected) < LIMIT
    with pytest.raises(ValueError, match="this config has no mask token"):
        merge(*pair("dino")[1:])(jnp.asarray(pixels(20, 20)), jnp.zeros((2, 16), bool))


@pytest.mark.parametrize("size", [(38, 26), (20, 23), (22, 22), (10, 20)])
def test_positions_are_interpolated_as_the_official_code_does(size):
    """DINO and DINOv2 give PyTorch the ratio (patches + 0.1) / trained patches, not the size that comes out."""
    config = dataclasses.replace(DINO, position_offset=0.1)
    _, graph, parameters = pair("dino")
    encoder = merge(abstract(lambda: VisionEncoder(config, nnx.Rngs(0)))[0], parameters)
    count, rows, columns = config.grid, size[0] // config.patch, size[1] // config.patch
    table = torch.from_numpy(np.array(parameters["positions"]))
    expected = table[1:]
    if not (size[0] == size[1] and rows * columns == count**2):
        square = table[1:].reshape(1, count, count, -1).permute(0, 3, 1, 2)
        ratio = ((rows + 0.1) / math.sqrt(count**2), (columns + 0.1) / math.sqrt(count**2))
        interpolated = torch.nn.functional.interpolate(square, scale_factor=ratio, mode="bicubic")
        assert interpolated.shape[2:] == (rows, columns)
        expected = interpolated.permute(0, 2, 3, 1).reshape(rows * columns, -1)
    ours = encoder._positions(*size)
    np.testing.assert_array_equal(ours[0], table[0])
    assert relative_error(ours[1:], expected) < LIMIT


def test_half_precision_follows_the_config():
    """bfloat16 activations with float32 weights; 8 bits of mantissa through three blocks: 3 %."""
    _, graph, parameters = pair("clip")
    half = abstract(lambda: VisionEncoder(dataclasses.replace(CLIP, dtype="bfloat16"), nnx.Rngs(0)))[0]
    run = jax.jit(lambda graph, parameters, x: merge(graph, parameters)(x)[1], static_argnums=0)
    summary = run(half, parameters, pixels(35, 35))
    assert summary.dtype == jnp.bfloat16
    assert relative_error(summary.astype(jnp.float32), run(graph, parameters, pixels(35, 35))) < 0.03


def test_gradients_reach_every_weight_and_the_pixels():
    """Encoders are frozen, but guidance and metrics differentiate through them: against transformers' gradients."""
    model, graph, parameters = pair("clip")
    picture = pixels(35, 35)
    theirs = channels_first(picture).requires_grad_()
    model.zero_grad()
    model(theirs).image_embeds.square().sum().backward()

    def loss(parameters, picture):
        return jnp.sum(jnp.square(merge(graph, parameters)(picture)[1]))

    gradients, by_pixel = jax.jit(jax.grad(loss, (0, 1)))(parameters, picture)
    assert relative_error(by_pixel, theirs.grad.permute(0, 2, 3, 1)) < 1e-4
    assert all(np.any(np.asarray(x) != 0) for x in gradients.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "vit"}, "VisionConfig.family is 'vit'; expected clip, dino or dinov2"),
        ({"activation": "relu"}, "VisionConfig.activation is 'relu'; expected gelu, quick_gelu or swiglu"),
        ({"heads": 4}, "VisionConfig.dim is 30; expected a multiple of the 4 heads"),
        ({"layers": 0}, "VisionConfig.layers is 0; expected a positive integer"),
        ({"image_size": 6}, "VisionConfig.image_size is 6; expected at least a patch, 7"),
        ({"dtype": "int8"}, "VisionConfig.dtype is 'int8'"),
    ],
)
def test_refuses_impossible_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CLIP, **changes)


def test_refuses_pictures_below_a_patch():
    encoder = nnx.eval_shape(lambda: VisionEncoder(CLIP, nnx.Rngs(0)))
    with pytest.raises(ValueError, match="expected at least a patch of 7 x 7"):
        encoder.stream(jnp.zeros((1, 35, 6, 3)))
