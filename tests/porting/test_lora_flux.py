"""LoRAs of FLUX, whose original release fuses queries, keys and values: in parts, and as diffusers reads them."""

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

from kaleido_jax.models.flux.params import FAMILY, mapping
from kaleido_jax.porting.lora import Lora, merge, read, write
from kaleido_jax.testing import relative_error
from kaleido_jax.testing.flux import TINY

PARTS = [f"double_blocks.visual.qkv.{part}.kernel" for part in ("query", "key", "value")]


def random_lora(kernels, alphas) -> Lora:
    """Every kernel with a down factor, a rank and a scale of its own."""
    rng = np.random.default_rng(0)
    shapes, factors = FAMILY.abstract_parameters(TINY), {}
    for rank, (name, alpha) in enumerate(zip(kernels, alphas), 2):
        layers, inputs, outputs = shapes[name].shape
        normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
        pair = normal(layers, inputs, rank), normal(layers, rank, outputs)
        factors |= Lora.from_stacked(TINY, {name: pair}, alpha=alpha).factors
    return Lora(TINY, factors)


def zeros() -> dict:
    return {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in FAMILY.abstract_parameters(TINY).items()}


@pytest.mark.parametrize("alphas", [(None, None, None), (1.0, 2.0, None)], ids=["plain", "different scales"])
def test_parts_with_factors_of_their_own_are_put_beside_each_other(tmp_path, alphas):
    """Written as kohya's fused layer, turned by diffusers' converter: what our file for diffusers says."""
    lora = random_lora(PARTS, alphas)
    write(tmp_path / "kohya.safetensors", lora, to="kohya")
    tensors = safetensors.numpy.load_file(tmp_path / "kohya.safetensors")
    assert tensors["lora_unet_double_blocks_1_img_attn_qkv.lora_up.weight"].shape == (3 * 48, 2 + 3 + 4)
    theirs = FluxLoraLoaderMixin.lora_state_dict({key: torch.from_numpy(x) for key, x in tensors.items()})
    expected = FAMILY.to_torch(merge(zeros(), [(lora, 1.0)]), TINY)
    for layer in range(2):
        for name in ("to_q", "to_k", "to_v"):
            module = f"transformer_blocks.{layer}.attn.{name}"
            up, down = (theirs[f"transformer.{module}.lora_{side}.weight"].double().numpy() for side in "BA")
            assert relative_error(up @ down, expected[f"{module}.weight"]) < 1e-6
    # Read again it has other factors, of the whole layer's rank, and changes the same.
    again = FAMILY.to_torch(merge(zeros(), [(read(tmp_path / "kohya.safetensors", TINY), 1.0)]), TINY)
    for name, value in expected.items():
        assert relative_error(again[name], value) < 1e-6, name


def test_a_fused_layer_is_taken_apart_and_put_together_to_the_bit(tmp_path):
    """The first map of a single block: queries, keys, values and the feed-forward layer of one down factor."""
    rng = np.random.default_rng(0)
    shape = FAMILY.torch_shapes(TINY, "original")["single_blocks.2.linear1.weight"]
    key = "lora_unet_single_blocks_2_linear1"
    tensors = {
        f"{key}.alpha": np.asarray(3, np.int64),
        f"{key}.lora_down.weight": rng.standard_normal((4, shape[1])).astype(np.float32),
        f"{key}.lora_up.weight": rng.standard_normal((shape[0], 4)).astype(np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "lora.safetensors")
    lora = read(tmp_path / "lora.safetensors", TINY)
    entries = mapping(TINY, "original").items()
    assert set(lora.factors) == {
        (ours, 2) for ours, entry in entries if "single_blocks.2.linear1.weight" in entry.names
    }
    product = 0.75 * tensors[f"{key}.lora_up.weight"].astype(np.float64) @ tensors[f"{key}.lora_down.weight"]
    merged = FAMILY.to_torch(merge(zeros(), [(lora, 1.0)]), TINY, "original")
    assert relative_error(merged["single_blocks.2.linear1.weight"], product) < 1e-6
    assert not merged["single_blocks.1.linear1.weight"].any()
    write(tmp_path / "again.safetensors", lora, to="kohya")
    again = safetensors.numpy.load_file(tmp_path / "again.safetensors")
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name], value)
    # For diffusers the four parts are four layers.
    write(tmp_path / "diffusers.safetensors", lora, to="diffusers")
    assert len(safetensors.numpy.load_file(tmp_path / "diffusers.safetensors")) == 8
