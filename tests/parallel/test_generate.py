"""Videos made on several devices against the same on one: pixels within 1e-4 of their range, at most one byte apart."""

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kaleido_jax.errors import UsageError
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.testing.tiny import save_tiny_bundle, tiny_bundle

# Two heads on a sequence axis of 4: they are exchanged by pairs, and the pairs form a ring. 12 tokens in a reference.
REQUEST = {"prompt": "a red cat walks left", "seed": 3, "steps": 2}


def picture():
    return np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)


def test_equals_one_device(tmp_path):
    """Weights are read as shards, and the text encoder is let go before sampling."""
    folder = save_tiny_bundle(tmp_path / "tiny")
    alone, spread = Pipeline(tiny_bundle()), Pipeline.load(folder, mesh=MeshConfig.parse("fsdp=2,sequence=4"))
    kernel = spread.weights["transformer"]["blocks.mlp.first.kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, None, "fsdp")
    spread.encode_prompts([(REQUEST["prompt"], Settings(seed=3, steps=2).resolved(spread.config))])
    assert "text" not in spread.weights
    with pytest.raises(UsageError, match="The text encoder was let go"):
        spread(references=[picture()], prompt="a blue dog jumps")
    one, many = (pipeline(references=[picture()], **REQUEST) for pipeline in (alone, spread))
    np.testing.assert_allclose(many.latents, one.latents, atol=1e-4 * np.abs(one.latents).max())
    # Four devices of the axis sequence have a row of latents of every frame each.
    assert [key[0] for key in spread._compiled if "decode" in str(key[0])] == ["decode_divided"]
    assert np.abs(one.video.astype(int) - many.video).max() <= 1
    assert spread(references=[picture()], **REQUEST).video.shape == many.video.shape
    assert spread.compiled == alone.compiled


def test_meshes_that_do_not_fit_are_errors():
    pipeline = Pipeline(tiny_bundle())
    with pytest.raises(UsageError, match=r"tensor=4; it must divide the 2 heads"):
        pipeline.spread(MeshConfig(tensor=4))
    with pytest.raises(UsageError, match="does not divide 8 devices; the nearest"):
        pipeline.spread(MeshConfig(data=3))
