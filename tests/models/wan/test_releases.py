"""Lists of tensors, written from what the releases hold: Wan's original files, and those that are Wan by another name.

diffusers' own lists are compared in test_params.py.
"""

import numpy as np
import pytest

from kaleido_jax.models.wan import WanConfig
from kaleido_jax.models.wan.params import FAMILY, config_document, config_from
from kaleido_jax.porting.formats import layouts, nearest_size, recognise
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


def original(
    dim: int, ffn_dim: int, layers: int, inputs: int = 16, outputs: int = 16, image_tokens: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Wan's own files, and Phantom-Wan's. image_tokens: None where CLIP's are not read, 0 where none has a position."""
    shapes = {
        "patch_embedding.weight": (dim, inputs, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        **linear("text_embedding.0", dim, 4096),
        **linear("text_embedding.2", dim, dim),
        **linear("time_embedding.0", dim, 256),
        **linear("time_embedding.2", dim, dim),
        **linear("time_projection.1", 6 * dim, dim),
        "head.modulation": (1, 2, dim),
        **linear("head.head", 4 * outputs, dim),
    }
    if image_tokens is not None:
        shapes |= {f"img_emb.proj.0.{part}": (1280,) for part in ("weight", "bias")}
        shapes |= linear("img_emb.proj.1", 1280, 1280) | linear("img_emb.proj.3", dim, 1280)
        shapes |= {f"img_emb.proj.4.{part}": (dim,) for part in ("weight", "bias")}
        shapes |= {"img_emb.emb_pos": (1, image_tokens, 1280)} if image_tokens else {}
    for layer in range(layers):
        block = f"blocks.{layer}"
        if image_tokens is not None:
            shapes |= linear(f"{block}.cross_attn.k_img", dim, dim) | linear(f"{block}.cross_attn.v_img", dim, dim)
            shapes[f"{block}.cross_attn.norm_k_img.weight"] = (dim,)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                shapes |= linear(f"{block}.{attention}.{part}", dim, dim)
            shapes |= {f"{block}.{attention}.norm_{part}.weight": (dim,) for part in "qk"}
        shapes |= linear(f"{block}.ffn.0", ffn_dim, dim) | linear(f"{block}.ffn.2", dim, ffn_dim)
        shapes |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,), f"{block}.modulation": (1, 6, dim)}
    return shapes


SIZES_14B = (DIM, FFN_DIM, 40)
# Tensors of a release, its sizes here, and what its config.json calls it.
RELEASES = {
    "Wan2.1-T2V-1.3B": (original(1536, 8960, 30), WanConfig.t2v_1_3b(), "t2v"),
    "Wan2.1-T2V-14B": (original(*SIZES_14B), WanConfig.t2v_14b(), "t2v"),
    "Wan2.1-I2V-14B-480P": (original(*SIZES_14B, inputs=36, image_tokens=0), WanConfig.i2v_14b(), "i2v"),
    "Wan2.1-I2V-14B-720P": (original(*SIZES_14B, inputs=36, image_tokens=0), WanConfig.i2v_14b(), "i2v"),
    "Wan2.1-FLF2V-14B-720P": (original(*SIZES_14B, inputs=36, image_tokens=514), WanConfig.flf2v_14b(), "flf2v"),
    "Wan2.2-T2V-A14B": (original(*SIZES_14B), WanConfig.t2v_14b(), "t2v"),
    "Wan2.2-I2V-A14B": (original(*SIZES_14B, inputs=36), WanConfig.i2v_a14b(), "i2v"),
    "Wan2.2-TI2V-5B": (original(3072, 14336, 30, inputs=48, outputs=48), WanConfig.ti2v_5b(), "ti2v"),
    "Phantom-Wan-1.3B": (original(1536, 8960, 30), WanConfig.t2v_1_3b(), "t2v"),
    "Phantom-Wan-14B": (original(*SIZES_14B), WanConfig.t2v_14b(), "t2v"),
    "Kaleido-14B": (kaleido_14b(), WanConfig.t2v_14b(), None),
}


@pytest.mark.parametrize("name", RELEASES)
def test_releases_hold_these_tensors_and_are_known_by_them(name):
    shapes, config, kind = RELEASES[name]
    layout = "original" if kind else "kaleido-sat"
    assert FAMILY.torch_shapes(config, layout) == shapes
    assert config_from(shapes, layout) == config
    assert recognise(shapes) is layouts("wan")[layout]
    assert config_document(config, layout).get("model_type") == kind
    assert nearest_size(FAMILY, config)[1] == []


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
    frames = () if layout == "kaleido-sat" else (WanConfig.flf2v_14b(),)
    for config in (WanConfig.i2v_14b(), WanConfig.ti2v_5b(), *frames):
        shapes, document = FAMILY.torch_shapes(config, layout), config_document(config, layout)
        assert config_from(shapes, layout) == config
        assert config_from(shapes, layout, document) == config
    assert (config_document(WanConfig.ti2v_5b(), layout) == {}) == (layout == "kaleido-sat")
