"""Names and shapes of Wan's weights: diffusers' own, those it makes of the original files, and the way back."""

import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from kaleido_jax.errors import InputError
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.models.wan.params import FAMILY, config_document, mapping
from kaleido_jax.testing.wan import TINY

TINY_IMAGE = dataclasses.replace(TINY, image_dim=24, in_channels=9, patch=(2, 1, 3))
TINY_FRAMES = dataclasses.replace(TINY_IMAGE, image_positions=14)

# The released config.json files of the diffusers layout, where they differ from the defaults of diffusers' class (which
# are those of the 14B), and how many parameters each has.
RELEASES = {
    "t2v_1_3b": ({"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}, 1_418_996_800),
    "t2v_14b": ({}, 14_288_491_584),
    "i2v_14b": ({"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}, 16_394_878_784),
    "flf2v_14b": (
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120, "pos_embed_seq_len": 514},
        16_395_536_704,
    ),
    "i2v_a14b": ({"in_channels": 36}, 14_288_901_184),
    "ti2v_5b": (
        {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48},
        4_999_787_712,
    ),
}


@pytest.mark.parametrize("name", RELEASES)
def test_released_sizes_are_those_of_diffusers_model(name):
    options, parameters = RELEASES[name]
    with torch.device("meta"):
        theirs = {key: tuple(x.shape) for key, x in WanTransformer3DModel(**options).state_dict().items()}
    assert FAMILY.torch_shapes(getattr(WanConfig, name)(), "diffusers") == theirs
    assert sum(np.prod(shape, dtype=np.int64) for shape in theirs.values()) == parameters


def test_the_14b_is_described_without_allocating_it():
    before = sum(x.nbytes for x in jax.live_arrays())
    tracemalloc.start()
    shapes = FAMILY.abstract_parameters(WanConfig.i2v_14b())
    names = FAMILY.torch_shapes(WanConfig.i2v_14b(), "original")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(names) > 1000 and all(isinstance(x, jax.ShapeDtypeStruct) for x in shapes.values())
    assert sum(x.nbytes for x in jax.live_arrays()) - before < 2**20
    assert peak < 100 * 2**20  # objects of tracing; the smallest kernel of one layer is 105 MB


@pytest.mark.parametrize("layout", ["original", "diffusers", "kaleido-sat"])
@pytest.mark.parametrize("config", [TINY, TINY_IMAGE, TINY_FRAMES], ids=["text", "image", "first and last frame"])
def test_the_table_is_a_bijection(config, layout):
    """Every parameter of ours once, every name of theirs once, and there and back again is the same to the bit."""
    if config == TINY_FRAMES and layout == "kaleido-sat":
        with pytest.raises(InputError, match="image_positions is 14, for which Kaleido's files have no name"):
            config_document(config, layout)
        return
    table = mapping(config, layout)
    names = [name for entry in table.values() for name in entry.names]
    assert table.keys() == FAMILY.abstract_parameters(config).keys()
    places = [(name, entry.rows) for entry in table.values() for name in entry.names]
    assert len(set(places)) == len(places)  # and torch_shapes refuses rows that overlap or leave a gap
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in FAMILY.torch_shapes(config, layout).items()}
    assert tensors.keys() == set(names)
    ours = FAMILY.from_torch(tensors, config, layout)
    assert {name: x.shape for name, x in ours.items()} == {
        n: x.shape for n, x in FAMILY.abstract_parameters(config).items()
    }
    again = FAMILY.to_torch(ours, config, layout)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


@pytest.mark.parametrize("config", [TINY, TINY_IMAGE], ids=["text", "image"])  # positions are not among what it knows
def test_original_files_mean_what_diffusers_makes_of_them(config):
    """Its published conversion of original weights, then our table for its layout: what our table for the original
    layout gives at once."""
    rng = np.random.default_rng(0)
    shapes = FAMILY.torch_shapes(config, "original")
    original = {name: torch.from_numpy(rng.standard_normal(shape)) for name, shape in shapes.items()}
    at_once = FAMILY.from_torch(original, config, "original")
    converted = FAMILY.from_torch(convert_wan_transformer_to_diffusers(dict(original)), config, "diffusers")
    assert at_once.keys() == converted.keys()
    for name, ours in at_once.items():
        np.testing.assert_array_equal(ours, converted[name])


def test_every_problem_is_named_at_once():
    tensors = {name: np.zeros(shape, np.float32) for name, shape in FAMILY.torch_shapes(TINY, "diffusers").items()}
    del tensors["blocks.1.attn1.to_q.bias"]
    tensors["proj_out.bias"] = np.zeros(3)
    tensors["proj_in.bias"] = np.zeros(3)
    expected = (
        r"3 problems in wan weights of layout diffusers: missing blocks\.1\.attn1\.to_q\.bias; "
        r"unexpected proj_in\.bias; proj_out\.bias has shape \(3,\), expected \(16,\)"
    )
    with pytest.raises(ValueError, match=expected):
        FAMILY.from_torch(tensors, TINY)
