"""Names and shapes of FLUX's weights: diffusers' from its class on the meta device, the original's from its facts."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

from kaleido_jax.errors import InputError
from kaleido_jax.models.flux import FluxConfig
from kaleido_jax.models.flux.params import FAMILY, config_document, config_from
from kaleido_jax.testing.flux import TINY, diffusers_model

RELEASED = {"dev": FluxConfig.dev(), "schnell": FluxConfig.schnell()}
PARAMETERS = {"dev": 11_901_408_320, "schnell": 11_891_178_560}


@pytest.mark.parametrize("name", RELEASED)
def test_diffusers_names_and_shapes_at_full_size(name):
    config = RELEASED[name]
    with torch.device("meta"):
        theirs = {key: tuple(tensor.shape) for key, tensor in diffusers_model(config).state_dict().items()}
    assert FAMILY.torch_shapes(config, "diffusers") == theirs
    assert config_from(theirs, "diffusers") == config


def original_shapes(config: FluxConfig) -> dict[str, tuple[int, ...]]:
    """Written from the description of the release (github.com/black-forest-labs/flux)."""
    dim, linear = config.dim, {}
    block = {
        **{f"{s}_mod.lin": (6 * dim, dim) for s in ("img", "txt")},
        **{f"{s}_attn.qkv": (3 * dim, dim) for s in ("img", "txt")},
        **{f"{s}_attn.proj": (dim, dim) for s in ("img", "txt")},
        **{f"{s}_mlp.0": (4 * dim, dim) for s in ("img", "txt")},
        **{f"{s}_mlp.2": (dim, 4 * dim) for s in ("img", "txt")},
    }
    linear |= {f"double_blocks.{i}.{name}": shape for i in range(19) for name, shape in block.items()}
    block = {"linear1": (7 * dim, dim), "linear2": (dim, 5 * dim), "modulation.lin": (3 * dim, dim)}
    linear |= {f"single_blocks.{i}.{name}": shape for i in range(38) for name, shape in block.items()}
    linear |= {"img_in": (dim, 64), "txt_in": (dim, 4096), "final_layer.linear": (64, dim)}
    linear |= {"final_layer.adaLN_modulation.1": (2 * dim, dim)}
    inputs = {"time_in": 256, "vector_in": 768} | ({"guidance_in": 256} if config.guidance else {})
    for name, size in inputs.items():
        linear |= {f"{name}.in_layer": (dim, size), f"{name}.out_layer": (dim, dim)}
    shapes = {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    norms = [f"double_blocks.{i}.{s}_attn.norm" for i in range(19) for s in ("img", "txt")]
    norms += [f"single_blocks.{i}.norm" for i in range(38)]
    return shapes | {f"{norm}.{which}_norm.scale": (128,) for norm in norms for which in ("query", "key")}


@pytest.mark.parametrize("name", RELEASED)
def test_original_names_and_shapes_at_full_size(name):
    config = RELEASED[name]
    expected = original_shapes(config)
    assert FAMILY.torch_shapes(config, "original") == expected
    assert config_from(expected, "original") == config
    assert sum(int(np.prod(shape)) for shape in expected.values()) == PARAMETERS[name]


def random_parameters(config, seed=0):
    r = np.random.default_rng(seed)
    return {k: r.standard_normal(x.shape).astype(np.float32) for k, x in FAMILY.abstract_parameters(config).items()}


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_there_and_back_is_bitwise(layout):
    ours = random_parameters(TINY)
    tensors = FAMILY.to_torch(ours, TINY, layout)
    assert {name: x.shape for name, x in tensors.items()} == FAMILY.torch_shapes(TINY, layout)
    back = FAMILY.from_torch(tensors, TINY, layout)
    assert back.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(back[name], ours[name])


def test_the_layouts_differ_as_the_releases_do():
    """The original fuses queries, keys and values; its last modulation is shift then scale, diffusers' the reverse."""
    ours = random_parameters(TINY)
    original, diffusers = FAMILY.to_torch(ours, TINY, "original"), FAMILY.to_torch(ours, TINY, "diffusers")
    same = np.testing.assert_array_equal
    for layer in range(2):
        to = f"transformer_blocks.{layer}.attn."
        for fused, parts in (
            ("img", ("to_q", "to_k", "to_v")),
            ("txt", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ):
            parts = [diffusers[f"{to}{part}.weight"] for part in parts]
            same(original[f"double_blocks.{layer}.{fused}_attn.qkv.weight"], np.concatenate(parts))
    single = "single_transformer_blocks.2."
    parts = [diffusers[f"{single}{part}.bias"] for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    same(original["single_blocks.2.linear1.bias"], np.concatenate(parts))
    same(original["single_blocks.2.linear2.weight"], diffusers[f"{single}proj_out.weight"])
    last = original["final_layer.adaLN_modulation.1.weight"]
    same(np.concatenate([last[48:], last[:48]]), diffusers["norm_out.linear.weight"])
    same(original["final_layer.linear.weight"], diffusers["proj_out.weight"])
    same(original["img_in.weight"], diffusers["x_embedder.weight"])


def test_sizes_are_told_by_shapes_and_document():
    odd = dataclasses.replace(TINY, guidance=False, double_layers=1)
    for config in (TINY, odd):
        document = config_document(config, "diffusers")
        assert config_from(FAMILY.torch_shapes(config, "diffusers"), "diffusers", document) == config
    assert config_document(TINY, "original") == {}
    with pytest.raises(InputError, match="heads of these FLUX weights are 16 wide"):
        config_from(FAMILY.torch_shapes(TINY, "original"), "original")
    with pytest.raises(InputError, match=r"query_norm\.scale is missing"):
        config_from({"img_in.weight": (3072, 64)}, "original")


def test_diffusers_own_conversion_of_the_original_agrees():
    """It is written for the released width, so the values of a tensor vary along one axis only and take no memory."""
    config = dataclasses.replace(FluxConfig.dev(), double_layers=1, single_layers=1)
    r = np.random.default_rng(3)
    ours = {
        name: np.broadcast_to(r.integers(-128, 128, x.shape[-1:], np.int8), x.shape)
        for name, x in FAMILY.abstract_parameters(config).items()
    }
    original = {name: torch.from_numpy(np.array(x)) for name, x in FAMILY.to_torch(ours, config, "original").items()}
    converted = convert_flux_transformer_checkpoint_to_diffusers(original)
    expected = FAMILY.to_torch(ours, config, "diffusers")
    assert converted.keys() == expected.keys()
    for name, x in expected.items():
        assert np.array_equal(converted[name].numpy(), x), name
