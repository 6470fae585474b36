"""ContextAnyone with a CLIP of random weights: its tokens reach the network in training and in the model folder."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.bundle import Bundle, load_bundle, save_bundle
from kaleido_jax.errors import UsageError
from kaleido_jax.models.vision import VisionConfig, VisionEncoder, wan_image_tokens
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle
from kaleido_jax.training.image_encoder import ImageEncoder
from kaleido_jax.training.miniature import prepare
from kaleido_jax.training.run import Run
from kaleido_jax.training.sources import CachedSource, WorldSource
from kaleido_jax.training.state import Batch

VISION = VisionConfig(family="clip", dim=8, ffn_dim=16, heads=2, layers=2, patch=112)
TOKENS = 1 + 2 * 2


@pytest.fixture(scope="module")
def encoder():
    return VisionEncoder(VISION, nnx.Rngs(0))


@pytest.fixture(scope="module")
def bundle(encoder):
    transformer = dataclasses.replace(TINY_CONFIG.transformer, image_dim=VISION.dim, emphasis=True)
    defaults = dataclasses.replace(TINY_CONFIG.defaults, references=2)
    config = dataclasses.replace(
        TINY_CONFIG, method="contextanyone", scheme="gap", transformer=transformer, vision=VISION, defaults=defaults
    )
    plain = tiny_bundle(config)
    return Bundle(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)} | {"vision": encoder})


def test_a_model_folder_with_an_image_encoder(bundle, encoder, tmp_path):
    """It is written, read, and made videos with; the tokens are Wan's of the reference, and matter."""
    save_bundle(tmp_path / "model", bundle)
    found = ImageEncoder.load(str(tmp_path / "model"))
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    expected = wan_image_tokens(encoder, jnp.asarray(picture[None], jnp.float32) / 127.5 - 1.0)
    np.testing.assert_allclose(found.tokens(picture[None]), expected, atol=1e-5)
    pipeline = Pipeline(load_bundle(tmp_path / "model"))
    video = pipeline(references=[picture], prompt="a red cat", steps=2).video
    pipeline.weights["vision"] = {name: -value for name, value in pipeline.weights["vision"].items()}
    other = pipeline(references=[picture], prompt="a red cat", steps=2).video
    assert np.abs(other.astype(int) - video).mean() > 0.05
    two = pipeline(references=[picture], prompt="a cat || walks left", steps=1)
    assert two.video.shape == (5, 32, 48, 3)


@pytest.mark.parametrize("kind", [CachedSource, WorldSource])
def test_batches_hold_its_tokens(encoder, kind):
    """Of pixels, or of what the decoder makes of cached latents; absent references have no tokens."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 48, 3), dtype=np.uint8)
    latents, counts = np.zeros((2, 3, 4, 6, 4), np.float32), np.array([1, 3], np.int32)
    decode = lambda given: pictures.reshape(6, 1, 32, 48, 3)
    own = {"image_encoder": ImageEncoder(encoder), "programs": SimpleNamespace(decode=decode)}
    run = SimpleNamespace(**own, latents=lambda batch: dataclasses.replace(batch, references=latents))
    batch = Batch(
        video=np.zeros((2, 2, 4, 6, 4), np.float32),
        references=pictures if kind is WorldSource else latents,
        reference_counts=counts,
        subject_share=np.zeros((2, 2, 4, 6), np.float32),
        subjects=np.zeros((2, 3), np.int32),
        text=np.zeros((2, 8), np.int32),
        text_lengths=np.ones(2, np.int32),
        indices=np.arange(2, dtype=np.int32),
    )
    made = Run.ready(run, batch, object.__new__(kind))  # its source is only asked whether it has pixels
    np.testing.assert_array_equal(made.references, latents)
    image = np.asarray(made.image).reshape(2, 3, TOKENS, VISION.dim)
    assert [[bool(np.any(one)) for one in row] for row in image] == [[True, False, False], [True] * 3]
    expected = wan_image_tokens(encoder, jnp.asarray(pictures[1], jnp.float32) / 127.5 - 1.0)
    np.testing.assert_allclose(image[1], expected, atol=1e-5)


def test_a_width_that_is_not_the_encoders(experiment, bundle, tmp_path):
    save_bundle(tmp_path / "model", bundle)
    changed = dataclasses.replace(experiment, image_encoder=str(tmp_path / "model"))
    with pytest.raises(UsageError, match=r"transformer\.image_dim is None; .* it reads tokens, so it must be 8"):
        prepare(changed, tmp_path / "run")
    wider = dataclasses.replace(experiment.transformer, image_dim=8)
    with pytest.raises(UsageError, match=r"transformer\.image_dim is 8; without an image encoder"):
        prepare(dataclasses.replace(experiment, transformer=wider), tmp_path / "run")
