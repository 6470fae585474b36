"""Releases that are Wan with another name: their lists of tensors, written from what they hold, are Wan's."""

import numpy as np
import pytest

from kaleido_jax.models.wan import WanConfig
from kaleido_jax.models.wan.params import FAMILY, config_document, config_from
from kaleido_jax.testing.wan import TINY

DIM, FFN_DIM = 5120, 13824


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def kaleido_14b() -> dict[str, tuple[int, ...]]:
    """Kaleido-14B-S2V: the tensors of mp_rank_00_model_states.pt's "module"."""
    shapes = {
        "mixins.patch_embed.proj.weight": (DIM, 16, 1, 2, 2),
        "mixins.patch_embed.proj.bias": (DIM,),
        **linear("text_embedding.0", DIM, 4096),
        **linear("text_embedding.2", DIM, DIM),
        **linear("time_embed.0", DIM, 256),
        **linear("time_embed.2", DIM, DIM),
        **linear("adaln_projection.1", 6 * DIM, DIM),
        "mixins.final_layer.adaLN_modulation": (1, 2, DIM),
        **linear("mixins.final_layer.linear", 64, DIM),
    }
    for layer in range(40):
        block = f"transformer.layers.{layer}"
        shapes |= linear(f"{block}.attention.query_key_value", 3 * DIM, DIM)
        shapes |= linear(f"{block}.attention.dense", DIM, DIM)
        shapes |= linear(f"{block}.cross_attention.query", DIM, DIM)
        shapes |= linear(f"{block}.cross_attention.key_value", 2 * DIM, DIM)
        shapes |= linear(f"{block}.cross_attention.dense", DIM, DIM)
        shapes |= linear(f"{block}.mlp.dense_h_to_4h", FFN_DIM, DIM)
        shapes |= linear(f"{block}.mlp.dense_4h_to_h", DIM, FFN_DIM)
        shapes |= {f"{block}.post_cross_attention_layernorm.{part}": (DIM,) for part in ("weight", "bias")}
        for norm in ("query", "key", "cross_query", "cross_key"):
            shapes[f"mixins.adaln_layer.{norm}_layernorm_list.{layer}.weight"] = (DIM,)
        shapes[f"mixins.adaln_layer.adaLN_modulations.{layer}"] = (1, 6, DIM)
    return {f"model.diffusion_model.{name}": shape for name, shape in shapes.items()}


def phantom(dim: int, ffn_dim: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Phantom-Wan: the tensors of its .pth file (1.3B) or its shards (14B)."""
    shapes = {
        "patch_embedding.weight": (dim, 16, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        **linear("text_embedding.0", dim, 4096),
        **linear("text_embedding.2", dim, dim),
        **linear("time_embedding.0", dim, 256),
        **linear("time_embedding.2", dim, dim),
        **linear("time_projection.1", 6 * dim, dim),
        "head.modulation": (1, 2, dim),
        **linear("head.head", 64, dim),
    }
    for layer in range(layers):
        block = f"blocks.{layer}"
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                shapes |= linear(f"{block}.{attention}.{part}", dim, dim)
            shapes |= {f"{block}.{attention}.norm_{part}.weight": (dim,) for part in "qk"}
        shapes |= linear(f"{block}.ffn.0", ffn_dim, dim) | linear(f"{block}.ffn.2", dim, ffn_dim)
        shapes |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,), f"{block}.modulation": (1, 6, dim)}
    return shapes


@pytest.mark.parametrize(
    ("shapes", "layout", "config"),
    [
        (kaleido_14b(), "kaleido-sat", WanConfig.t2v_14b()),
        (phantom(5120, 13824, 40), "original", WanConfig.t2v_14b()),
        (phantom(1536, 8960, 30), "original", WanConfig.t2v_1_3b()),
    ],
    ids=["Kaleido-14B", "Phantom-Wan-14B", "Phantom-Wan-1.3B"],
)
def test_other_releases_hold_wans_tensors(shapes, layout, config):
    assert FAMILY.torch_shapes(config, layout) == shapes
    assert config_from(shapes, layout) == config


def test_kaleidos_fused_tensors_are_wans_put_together():
    """By its own converter: queries, keys and values of the original file, one after the other on the first axis."""
    rng = np.random.default_rng(0)
    original = {n: rng.standard_normal(s).astype(np.float32) for n, s in FAMILY.torch_shapes(TINY, "original").items()}
    prefix = "model.diffusion_model.transformer.layers.1."
    ours = FAMILY.from_torch(original, TINY, "original")
    theirs = {n: np.zeros(s, np.float32) for n, s in FAMILY.torch_shapes(TINY, "kaleido-sat").items()}
    for end in ("weight", "bias"):
        parts = [original[f"blocks.1.self_attn.{part}.{end}"] for part in "qkv"]
        theirs[f"{prefix}attention.query_key_value.{end}"] = np.concatenate(parts)
        parts = [original[f"blocks.1.cross_attn.{part}.{end}"] for part in "kv"]
        theirs[f"{prefix}cross_attention.key_value.{end}"] = np.concatenate(parts)
    read = FAMILY.from_torch(theirs, TINY, "kaleido-sat")
    fused = [("self_attention", part) for part in ("query", "key", "value")]
    for attention, part in [*fused, ("cross_attention", "key"), ("cross_attention", "value")]:
        for end in ("kernel", "bias"):
            name = f"blocks.{attention}.{part}.{end}"
            np.testing.assert_array_equal(read[name][1], ours[name][1])


@pytest.mark.parametrize("layout", ["original", "diffusers", "kaleido-sat"])
def test_sizes_are_read_from_the_shapes(layout):
    """Released sizes need no config.json: their heads are 128 wide."""
    for config in (WanConfig.i2v_14b(), WanConfig.ti2v_5b()):
        shapes, document = FAMILY.torch_shapes(config, layout), config_document(config, layout)
        assert config_from(shapes, layout) == config
        assert config_from(shapes, layout, document) == config
    assert (config_document(WanConfig.ti2v_5b(), layout) == {}) == (layout == "kaleido-sat")
