"""Names and shapes of the image encoders' weights: transformers' own, those of the original files, and the way back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import save_file

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import InputError
from kaleido_jax.models.vision import VisionConfig
from kaleido_jax.models.vision.modeling import SelfAttention
from kaleido_jax.models.vision.params import LAYOUTS, config_document, config_from, mapping
from kaleido_jax.porting.formats import family_of, recognise
from kaleido_jax.testing import relative_error
from kaleido_jax.testing.vision import file_shapes, peer

# Every release, with how many parameters it has.
RELEASES = {
    "clip_b32": (VisionConfig.clip_b32(), 87_849_216),
    "clip_l14": (VisionConfig.clip_l14(), 303_966_208),
    "clip_h14": (VisionConfig.clip_h14(), 632_076_800),
    "clip_h14 in diffusers": (dataclasses.replace(VisionConfig.clip_h14(), projection=None), 630_766_080),
    "dino_s16": (VisionConfig.dino_s16(), 21_665_664),
    "dino_b16": (VisionConfig.dino_b16(), 85_798_656),
    "dinov2_s14": (VisionConfig.dinov2_s14(), 22_056_576),
    "dinov2_b14": (VisionConfig.dinov2_b14(), 86_580_480),
    "dinov2_l14": (VisionConfig.dinov2_l14(), 304_368_640),
    "dinov2_g14": (VisionConfig.dinov2_g14(), 1_136_480_768),
    "dinov2_b14 with registers": (VisionConfig.dinov2_b14().with_registers(), 86_583_552),
    "dinov2_g14 with registers": (VisionConfig.dinov2_g14().with_registers(), 1_136_486_912),
}
SMALL = {
    "clip": dataclasses.replace(
        VisionConfig.clip_b32(), dim=12, ffn_dim=20, heads=2, layers=2, patch=3, image_size=9, projection=5
    ),
    "dino": dataclasses.replace(
        VisionConfig.dino_s16(), dim=12, ffn_dim=20, heads=2, layers=2, patch=3, image_size=9
    ),
    "dinov2": dataclasses.replace(
        VisionConfig.dinov2_g14().with_registers(), dim=12, ffn_dim=24, heads=2, layers=2, patch=3, image_size=9
    ),
}  # fmt: skip
CASES = [(family, layout) for family, layouts in LAYOUTS.items() for layout in layouts]


@pytest.mark.parametrize("name", RELEASES)
def test_released_sizes_are_those_of_transformers(name):
    config, parameters = RELEASES[name]
    theirs = file_shapes(config)
    assert family_of(config).torch_shapes(config, "huggingface") == theirs
    assert sum(np.prod(shape, dtype=np.int64) for shape in theirs.values()) == parameters


@pytest.mark.parametrize("name", RELEASES)
def test_sizes_are_told_by_the_shapes(name):
    config = RELEASES[name][0]
    for layout in LAYOUTS[config.family]:
        shapes = family_of(config).torch_shapes(config, layout)
        assert config_from(shapes, layout) == config
        other = dataclasses.replace(config, heads=2, eps=1e-3)  # which shapes do not tell
        document = config_document(other, layout)
        assert config_from(shapes, layout, document) == (other if document else config)


def test_sizes_that_cannot_be_told_are_named():
    shapes = family_of(SMALL["dino"]).torch_shapes(SMALL["dino"], "original")
    with pytest.raises(InputError, match="pos_embed is missing"):
        config_from({name: shape for name, shape in shapes.items() if name != "pos_embed"}, "original")
    with pytest.raises(InputError, match=r"config\.json says hidden_act 'relu'; image encoders here have gelu or"):
        config_from(family_of(SMALL["dino"]).torch_shapes(SMALL["dino"]), "huggingface", {"hidden_act": "relu"})
    with pytest.raises(InputError, match="ffn_dim is 25; transformers knows multiples of dim, 12, only"):
        config_document(dataclasses.replace(SMALL["dinov2"], ffn_dim=25))


# The original files' names and shapes, written from their code: those outside the blocks, what the names of a block
# begin with, and those of a block behind that.


def norms(dim: int, *names: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": (dim,) for name in names for part in ("weight", "bias")}


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def wans_clip(dim: int, patch: int, tokens: int, projection: int):
    """Wan's rewriting of open-clip's XLM-RoBERTa release."""
    outside = {
        "visual.cls_embedding": (1, 1, dim), "visual.pos_embedding": (1, tokens, dim),
        "visual.patch_embedding.weight": (dim, 3, patch, patch), "visual.head": (dim, projection),
        **norms(dim, "visual.pre_norm", "visual.post_norm"),
    }  # fmt: skip
    block = norms(dim, "norm1", "norm2") | linear("attn.to_qkv", 3 * dim, dim) | linear("attn.proj", dim, dim)
    return outside, "visual.transformer.{}.", block | linear("mlp.0", 4 * dim, dim) | linear("mlp.2", dim, 4 * dim)


def open_clip(dim: int, patch: int, tokens: int, projection: int):
    """open-clip's own files and OpenAI's."""
    outside = {
        "visual.class_embedding": (dim,), "visual.positional_embedding": (tokens, dim),
        "visual.conv1.weight": (dim, 3, patch, patch), "visual.proj": (dim, projection),
        **norms(dim, "visual.ln_pre", "visual.ln_post"),
    }  # fmt: skip
    block = {
        **norms(dim, "ln_1", "ln_2"), "attn.in_proj_weight": (3 * dim, dim), "attn.in_proj_bias": (3 * dim,),
        **linear("attn.out_proj", dim, dim), **linear("mlp.c_fc", 4 * dim, dim), **linear("mlp.c_proj", dim, 4 * dim),
    }  # fmt: skip
    return outside, "visual.transformer.resblocks.{}.", block


def dino(dim: int, patch: int = 16, tokens: int = 197):
    outside = {
        "cls_token": (1, 1, dim), "pos_embed": (1, tokens, dim), "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,), **norms(dim, "norm"),
    }  # fmt: skip
    block = norms(dim, "norm1", "norm2") | linear("attn.qkv", 3 * dim, dim) | linear("attn.proj", dim, dim)
    return outside, "blocks.{}.", block | linear("mlp.fc1", 4 * dim, dim) | linear("mlp.fc2", dim, 4 * dim)


def dinov2(dim: int, *, registers: bool = False, gated: bool = False):
    outside, prefix, block = dino(dim, 14, 1370)
    outside |= {"mask_token": (1, dim)} | ({"register_tokens": (1, 4, dim)} if registers else {})
    block |= {"ls1.gamma": (dim,), "ls2.gamma": (dim,)}
    if gated:
        hidden = 8 * dim // 3
        block = {name: shape for name, shape in block.items() if not name.startswith("mlp.")}
        block |= linear("mlp.w12", 2 * hidden, dim) | linear("mlp.w3", dim, hidden)
    return outside, prefix, block


ORIGINALS = {
    ("clip_h14", "wan"): wans_clip(1280, 14, 257, 1024),
    ("clip_h14", "open_clip"): open_clip(1280, 14, 257, 1024),
    ("clip_b32", "open_clip"): open_clip(768, 32, 50, 512),
    ("clip_l14", "open_clip"): open_clip(1024, 14, 257, 768),
    ("dino_s16", "original"): dino(384),
    ("dino_b16", "original"): dino(768),
    ("dinov2_s14", "original"): dinov2(384),
    ("dinov2_b14", "original"): dinov2(768),
    ("dinov2_l14", "original"): dinov2(1024),
    ("dinov2_g14", "original"): dinov2(1536, gated=True),
    ("dinov2_b14 with registers", "original"): dinov2(768, registers=True),
    ("dinov2_g14 with registers", "original"): dinov2(1536, registers=True, gated=True),
}


@pytest.mark.parametrize(("name", "layout"), ORIGINALS)
def test_original_names_are_those_of_the_files(name, layout):
    """And the files are known by them."""
    config = RELEASES[name][0]
    outside, prefix, block = ORIGINALS[name, layout]
    blocks = {prefix.format(i) + key: shape for i in range(config.layers) for key, shape in block.items()}
    assert family_of(config).torch_shapes(config, layout) == outside | blocks
    assert config_from(outside | blocks, layout) == config
    row = recognise(outside | blocks)
    assert (row.family, row.layout) == (family_of(config), layout)


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_the_table_is_a_bijection(family, layout):
    """Every parameter of ours once, every tensor of theirs once and whole, there and back the same to the bit."""
    config = SMALL[family]
    assert mapping(config, layout).keys() == family_of(config).abstract_parameters(config).keys()
    rng = np.random.default_rng(0)
    tensors = {
        n: rng.standard_normal(s).astype(np.float16) for n, s in family_of(config).torch_shapes(config, layout).items()
    }
    ours = family_of(config).from_torch(tensors, config, layout)
    assert {name: x.shape for name, x in ours.items()} == {
        n: x.shape for n, x in family_of(config).abstract_parameters(config).items()
    }
    again = family_of(config).to_torch(ours, config, layout)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        np.testing.assert_array_equal(again[name], tensor)


def test_original_attention_is_open_clips():
    """The fused query, key and value of open-clip's files against PyTorch's own MultiheadAttention, which they are."""
    config = SMALL["clip"]
    rng = np.random.default_rng(0)
    shapes = family_of(config).torch_shapes(config, "open_clip")
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    layer = torch.nn.MultiheadAttention(config.dim, config.heads, batch_first=True)
    prefix = "visual.transformer.resblocks.1.attn."
    layer.load_state_dict(
        {key.removeprefix(prefix): torch.from_numpy(x) for key, x in tensors.items() if key.startswith(prefix)}
    )
    x = rng.standard_normal((2, 5, config.dim)).astype(np.float32)
    expected, _ = layer(*[torch.from_numpy(x)] * 3)
    ours = family_of(config).from_torch(tensors, config, "open_clip")
    prefix = "blocks.attention."
    weights = {key.removeprefix(prefix): jnp.asarray(w[1]) for key, w in ours.items() if key.startswith(prefix)}
    attention = merge(abstract(lambda: SelfAttention(config, nnx.Rngs(0)))[0], weights)
    assert relative_error(jax.jit(attention.__call__)(jnp.asarray(x)), expected.detach()) < 1e-5


@pytest.mark.parametrize("name", ["clip", "clip, no projection", "dino", "dinov2"])
def test_transformers_loads_what_we_write(name, tmp_path):
    """Under the names of released files, read by the classes themselves: no tensor is missing and none is strange."""
    config = SMALL[name.partition(",")[0]]
    if name == "clip, no projection":
        config = dataclasses.replace(config, projection=None)
    rng = np.random.default_rng(0)
    ours = {
        n: rng.standard_normal(x.shape).astype(np.float32)
        for n, x in family_of(config).abstract_parameters(config).items()
    }
    model = peer(config)
    (tmp_path / "config.json").write_text(json.dumps(config_document(config)))
    tensors = {key: np.ascontiguousarray(x) for key, x in family_of(config).to_torch(ours, config).items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    options = {"add_pooling_layer": False} if isinstance(model, transformers.ViTModel) else {}
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    patches = next(x for key, x in loaded.state_dict().items() if x.ndim == 4)
    name = next(key for key, shape in family_of(config).torch_shapes(config).items() if len(shape) == 4)
    np.testing.assert_array_equal(patches.numpy(), tensors[name])


def test_a_whole_clip_may_be_given():
    config = SMALL["clip"]
    for layout, strangers in (
        ("huggingface", ("text_model.embeddings.token_embedding.weight", "logit_scale")),
        ("open_clip", ("transformer.resblocks.0.ln_1.weight", "positional_embedding")),
        ("wan", ("textual.head.0.weight", "log_scale")),
    ):
        tensors = {
            name: np.zeros(shape, np.float32) for name, shape in family_of(config).torch_shapes(config, layout).items()
        }
        whole = tensors | {name: np.zeros(3) for name in strangers}
        assert (
            family_of(config).from_torch(whole, config, layout).keys()
            == family_of(config).abstract_parameters(config).keys()
        )


def test_every_problem_is_named_at_once():
    config = SMALL["dino"]
    tensors = {
        name: np.zeros(shape, np.float32) for name, shape in family_of(config).torch_shapes(config, "original").items()
    }
    del tensors["blocks.1.norm1.bias"]
    tensors["head.weight"] = np.zeros(3)
    tensors["blocks.0.attn.qkv.weight"] = np.zeros((12, 12))
    expected = (
        r"3 problems in dino weights of layout original: missing blocks\.1\.norm1\.bias; "
        r"unexpected head\.weight; blocks\.0\.attn\.qkv\.weight has shape \(12, 12\), expected \(36, 12\)"
    )
    with pytest.raises(ValueError, match=expected):
        family_of(config).from_torch(tensors, config, "original")
    with pytest.raises(ValueError, match="layout is 'wan'; expected one of huggingface, original, for weights of dino"):
        mapping(config, "wan")
