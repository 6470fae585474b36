"""LoRA files: what PEFT and diffusers write is read here, what is written here they load, with the same outputs.

Tolerance: 1e-5 of the norm, as for the transformer itself; a change of the weights of order 1 is what is compared.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from diffusers import WanPipeline
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from peft import LoraConfig, get_peft_model_state_dict

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.models.wan.params import FAMILY, mapping
from kaleido_jax.porting.lora import Lora, merge, read, unmerge, write
from kaleido_jax.porting.lora_formats import Factors
from kaleido_jax.testing.tolerance import relative_error
from kaleido_jax.testing.wan import TINY, pair, random_inputs, run_ours, run_peer

LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
# As kohya's trainers name a module; a file of theirs holds these of every block.
KERNELS = [
    *(f"blocks.{a}_attention.{part}.kernel" for a in ("self", "cross") for part in ("query", "key", "value", "out")),
    *(f"blocks.mlp.{part}.kernel" for part in ("first", "second")),
]
INPUTS = random_inputs(TINY, 2, 3, 4, 6)


def random_lora(rank=3, alpha=None, seed=0, kernels=KERNELS, dtype=np.float32) -> Lora:
    rng = np.random.default_rng(seed)
    shapes = FAMILY.abstract_parameters(TINY)
    normal = lambda *shape: (rng.standard_normal(shape) * 0.3).astype(dtype)
    pairs = {}
    for name in kernels:
        *layers, inputs, outputs = shapes[name].shape
        pairs[name] = normal(*layers, inputs, rank), normal(*layers, rank, outputs)
    return Lora.from_stacked(TINY, pairs, alpha=alpha)


def peer_with_adapter(seed=0, **settings):
    """diffusers' model with random weights and random factors (PEFT starts with none), and its parameters as ours."""
    model, ours = pair(TINY)
    model.add_adapter(LoraConfig(init_lora_weights=False, **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval(), ours


def ours_with(parameters, *loras) -> np.ndarray:
    return np.asarray(run_ours(merge(parameters, loras), INPUTS.arrays, INPUTS.time, TINY))


@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")  # PEFT of its own biases
@pytest.mark.parametrize("saved_by", ["model", "pipeline", "peft"])
@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 4, "target_modules": ["attn1.to_q", "to_v", "proj_out", "condition_embedder.time_proj"]},
        {"r": 4, "lora_alpha": 6, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"blocks.1.ffn.net.2": 1}},
        {
            "r": 4,
            "lora_alpha": 3,
            "use_rslora": True,
            "lora_bias": True,
            "target_modules": ["to_out.0", "patch_embedding"],
        },
    ],
    ids=["plain", "patterns", "rank stabilised, biases, a convolution"],
)
def test_files_of_diffusers_and_peft_load_here(tmp_path, saved_by, settings):
    model, ours = peer_with_adapter(**{"target_modules": list(LAYERS), **settings})
    folder = tmp_path / "lora"
    if saved_by == "model":
        model.save_lora_adapter(folder)
    elif saved_by == "pipeline":
        metadata = {
            key: list(x) if isinstance(x, set) else x for key, x in model.peft_config["default"].to_dict().items()
        }
        WanPipeline.save_lora_weights(
            folder, get_peft_model_state_dict(model), transformer_lora_adapter_metadata=metadata
        )
    else:
        folder.mkdir()
        state = {f"base_model.model.{key}": x for key, x in get_peft_model_state_dict(model).items()}
        safetensors.torch.save_file(state, folder / "adapter_model.safetensors")
        model.peft_config["default"].save_pretrained(folder)
    with torch.no_grad():
        theirs = run_peer(model, INPUTS).numpy()
        model.disable_adapters()
        base = run_peer(model, INPUTS).numpy()
    lora = read(folder, TINY)
    assert relative_error(theirs, base) > 0.05  # so that a change left out would be seen
    assert relative_error(ours_with(ours, (lora, 1.0)), theirs) < 1e-5


@pytest.mark.parametrize("to", ["diffusers", "original", "kohya"])
@pytest.mark.parametrize("alpha", [None, 5.0], ids=["no alpha", "alpha"])
def test_our_files_load_in_diffusers(tmp_path, to, alpha):
    lora = random_lora(alpha=alpha)
    write(tmp_path / "lora.safetensors", lora, to=to)
    model, ours = pair(TINY)
    state, metadata = WanLoraLoaderMixin.lora_state_dict(
        str(tmp_path), weight_name="lora.safetensors", return_lora_metadata=True
    )
    model.load_lora_adapter(state, metadata=metadata)
    with torch.no_grad():
        theirs = run_peer(model, INPUTS).numpy()
    assert len([name for name, _ in model.named_modules() if name.endswith("lora_A")]) == len(KERNELS) * TINY.layers
    assert relative_error(ours_with(ours, (lora, 1.0)), theirs) < 1e-5


def same(one: Lora, other: Lora) -> bool:
    """Whether two LoRAs are the same to the bit, dtypes and alphas included."""

    def bits(lora: Lora):
        arrays = {
            (*part, field): getattr(x, field) for part, x in lora.factors.items() for field in ("down", "up", "alpha")
        }
        arrays |= {(*part, "difference"): x for part, x in lora.differences.items()}
        return {key: x if x is None else (x.dtype, x.shape, x.tobytes()) for key, x in arrays.items()}

    return bits(one) == bits(other)


@pytest.mark.parametrize("to", ["diffusers", "original", "kohya"])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16], ids=["float32", "bfloat16", "float16"])
def test_round_trips_are_bitwise(tmp_path, to, dtype):
    lora = random_lora(alpha=5.0, dtype=dtype, kernels=KERNELS[:3] + KERNELS[-1:])
    if to != "diffusers":  # PEFT has whole differences of biases only, and only beside factors
        whole = {("blocks.self_attention.out.bias", 1): np.arange(48).astype(dtype)}
        whole[("blocks.cross_norm.scale", 0)] = np.arange(48).astype(dtype)
        whole[("blocks.modulation", 1)] = np.arange(6 * 48).reshape(1, 6, 48).astype(dtype)
        lora = Lora(TINY, lora.factors, whole)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    write(first, lora, to=to)
    again = read(first, TINY)
    write(second, again, to=to)
    assert first.read_bytes() == second.read_bytes()
    if to == "diffusers":  # alpha stands in its configuration, as a number of JSON
        assert {x.scale for x in again.factors.values()} == {5.0 / 3}
    else:
        assert same(again, lora)


def dialect(prefix="lora_unet_", dotted=False, down="lora_down", up="lora_up", alpha=2.0):
    """A file's tensors for the two factors of a layer, in one of the spellings that are about."""
    rng = np.random.default_rng(0)
    name = "blocks.1.cross_attn.k" if dotted else "blocks_1_cross_attn_k"
    tensors = {
        f"{prefix}{name}.{down}.weight": rng.standard_normal((4, 48)).astype(np.float32),
        f"{prefix}{name}.{up}.weight": rng.standard_normal((48, 4)).astype(np.float32),
    }
    return tensors | {f"{prefix}{name}.alpha": np.asarray(alpha)}


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": np.int64(2)},
        {"alpha": np.float16(2)},
        {"alpha": np.asarray([2.0], jnp.bfloat16)},
        {"prefix": "lora_unet__"},
        {"prefix": "lora_unet_", "dotted": True},
        {"prefix": "lycoris_"},
        {"prefix": "diffusion_model.", "dotted": True},
        {"prefix": "diffusion_model.", "dotted": True, "down": "lora_A", "up": "lora_B"},
        {"prefix": "model.diffusion_model.", "dotted": True, "down": "lora.down", "up": "lora.up"},
        {"prefix": "transformer.", "dotted": True, "down": "lora_A.default", "up": "lora_B.default"},
        {"prefix": "", "dotted": True},
    ],
    ids=str,
)
def test_spellings_that_are_about(tmp_path, options):
    """Alpha is 2 and the rank 4, whatever alpha's dtype; an alpha that is overlooked would double the effect."""
    tensors = dialect(**options)
    safetensors.numpy.save_file(tensors, tmp_path / "lora.safetensors")
    lora = read(tmp_path / "lora.safetensors", TINY)
    ((part, change),) = lora.factors.items()
    assert part == ("blocks.cross_attention.key.kernel", 1) and change.scale == 0.5
    down, up, _ = tensors.values()
    np.testing.assert_array_equal(change.down, down)
    np.testing.assert_array_equal(change.up, up)


def test_names_of_diffusers_with_underscores_are_told_from_the_originals(tmp_path):
    tensors = {key.replace("cross_attn_k", "attn2_to_k"): x for key, x in dialect("lora_transformer_").items()}
    safetensors.numpy.save_file(tensors, tmp_path / "lora.safetensors")
    assert list(read(tmp_path / "lora.safetensors", TINY).factors) == [("blocks.cross_attention.key.kernel", 1)]


def test_several_at_once_are_a_sum_by_strength(tmp_path):
    """Against the formula in float64 on PyTorch's own matrices; what nothing changes is the same array."""
    rng = np.random.default_rng(1)
    shapes = FAMILY.abstract_parameters(TINY)
    ours = {name: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32) for name, leaf in shapes.items()}
    one, other = random_lora(3, 2.0, seed=1, kernels=KERNELS[:4]), random_lora(2, None, seed=2, kernels=KERNELS[3:])
    partial = Lora(TINY, {part: x for part, x in one.factors.items() if part[1] == 1})
    bias = np.arange(48, dtype=np.float32)
    other = Lora(TINY, other.factors, {("blocks.mlp.second.bias", 0): bias})
    merged = merge(ours, [(partial, 0.5), (other, -2.0)])
    theirs, expected = (
        FAMILY.to_torch(merged, TINY),
        {k: x.astype(np.float64) for k, x in FAMILY.to_torch(ours, TINY).items()},
    )
    for lora, scale in ((partial, 0.5 * 2.0 / 3), (other, -2.0)):
        for (name, layer), change in lora.factors.items():
            key = mapping(TINY, "diffusers")[name].names[layer]
            expected[key] += scale * change.up.astype(np.float64) @ change.down
    expected["blocks.0.ffn.net.2.bias"] += -2.0 * bias
    for name, value in expected.items():
        assert relative_error(theirs[name], value) < 1e-6, name
    assert merged["patch_embedding.kernel"] is ours["patch_embedding.kernel"]
    np.testing.assert_array_equal(
        np.asarray(merged["blocks.self_attention.query.kernel"][0]),
        np.asarray(ours["blocks.self_attention.query.kernel"][0]),
    )
    back = unmerge(merged, [(partial, 0.5), (other, -2.0)])
    for name, value in ours.items():
        # Two roundings of float32 at the size of the sum, which for the bias is fifty times that of the weights.
        assert relative_error(back[name], value) < 5e-6, name


def test_bfloat16_is_rounded_once():
    kernel = "blocks.mlp.first.kernel"
    ours = {kernel: jnp.asarray(np.random.default_rng(0).standard_normal((2, 48, 80)), jnp.bfloat16)}
    loras = [(random_lora(seed=seed, kernels=[kernel]), 0.3) for seed in (1, 2)]
    merged = merge(ours, loras)[kernel]
    exact = merge({kernel: ours[kernel].astype(jnp.float32)}, loras)[kernel]
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(merged), np.asarray(exact.astype(jnp.bfloat16)))


def test_weights_that_do_not_fit_twice_are_changed_in_place():
    shapes = FAMILY.abstract_parameters(TINY)
    names = ["blocks.mlp.first.kernel", "patch_embedding.kernel"]
    ours = {
        name: jnp.asarray(np.random.default_rng(0).standard_normal(shapes[name].shape), jnp.bfloat16) for name in names
    }
    patches = Factors(np.ones((2, 5, 1, 2, 2), np.float32), np.ones((48, 2, 1, 1, 1), np.float32))
    lora = Lora(TINY, {**random_lora(kernels=names[:1]).factors, ("patch_embedding.kernel", 0): patches})
    kept = merge(ours, [(lora, 0.7)])
    places = {name: x.unsafe_buffer_pointer() for name, x in ours.items()}
    merged = merge(ours, [(lora, 0.7)], donate=True)
    for name in names:
        np.testing.assert_array_equal(np.asarray(merged[name]), np.asarray(kept[name]))
        assert merged[name].unsafe_buffer_pointer() == places[name] and ours[name].is_deleted()


def problems_of(tmp_path, tensors, metadata=None) -> str:
    safetensors.numpy.save_file(tensors, tmp_path / "lora.safetensors", metadata=metadata)
    with pytest.raises(InputError) as caught:
        read(tmp_path / "lora.safetensors", TINY)
    return str(caught.value)


def test_every_problem_is_named_at_once(tmp_path):
    ones = lambda *shape: np.ones(shape, np.float32)
    layer = "diffusion_model.blocks.0."
    tensors = {
        f"{layer}self_attn.q.lora_down.weight": ones(4, 48),  # no up
        f"{layer}self_attn.k.lora_down.weight": ones(4, 47),
        f"{layer}self_attn.k.lora_up.weight": ones(48, 3),
        f"{layer}self_attn.v.lora_down.weight": ones(4, 48),
        f"{layer}self_attn.v.lora_up.weight": ones(48, 4),
        f"{layer}self_attn.v.dora_scale": ones(48, 1),
        f"{layer}self_attn.v.alpha": ones(2),
        f"{layer}self_attn.o.alpha": ones(1),
        f"{layer}norm3.lora_down.weight": ones(4, 48),
        f"{layer}norm3.lora_up.weight": ones(48, 4),
        f"{layer}ffn.0.diff": ones(80, 47),
        f"{layer}ffn.0.diff_b": np.full(80, np.nan, np.float32),
        f"{layer}ffn.2.diff_b": np.ones(48, np.int32),
        f"{layer}ffn.2.hada_w1_a": ones(48, 4),
        f"{layer}diff_m": ones(1, 6, 48),
        "diffusion_model.blocks.7.self_attn.q.lora_down.weight": ones(4, 48),
        "lora_te_text_model_q.lora_down.weight": ones(4, 48),
        "lora_unet_blocks_0_self_attn_v.lora_up.weight": ones(48, 4),
    }
    said = problems_of(tmp_path, tensors)
    for sentence in (
        "0.self_attn.q has 'diffusion_model.blocks.0.self_attn.q.lora_down.weight', but its up factor is missing",
        "blocks.0.self_attn.k has factors of rank 4 and 3",
        "blocks.0.self_attn.k.lora_down.weight' has shape (4, 47)",
        "self_attn.v.dora_scale' is of a DoRA, whose magnitudes are no sum with the weights: refused",
        "self_attn.v.alpha' has shape (2,), expected a single number",
        "blocks.0.self_attn.o has 'diffusion_model.blocks.0.self_attn.o.alpha', but its down factor is missing",
        "blocks.0.norm3 is no layer with a matrix",
        "ffn.0.diff' has shape (80, 47), expected (80, 48)",
        "ffn.0.diff_b' holds NaN or infinity",
        "ffn.2.diff_b' has dtype int32, expected floating point",
        "ffn.2.hada_w1_a' is of a LoHa",
        "'diffusion_model.blocks.0.diff_m' is nothing that is known of LoRA files: refused",
        "'diffusion_model.blocks.7.self_attn.q.lora_down.weight' is of no layer of this model",
        "'lora_te_text_model_q.lora_down.weight' is of a text encoder",
        "is there a second time",
    ):
        assert sentence in said, said
    assert said.startswith("16 problems in")  # of self_attn.o both factors are missing


@pytest.mark.parametrize(
    ("configuration", "sentence"),
    [
        ({"r": 4, "lora_alpha": 4, "use_dora": True}, "use_dora is set"),
        ({"r": 8, "lora_alpha": 4}, "has rank 4, but its configuration says 8"),
        ({"r": 4, "lora_alpha": "x"}, "lora_alpha of the configuration is 'x'"),
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"(a+)+": 1}}, "has the expression '(a+)+'"),
        ({"r": 4, "lora_alpha": 3}, ".alpha' is 2.0, but its configuration says 3"),
        ([], "is not a JSON object"),
        ("{", "is not JSON"),
    ],
    ids=str,
)
def test_a_configuration_that_says_something_else_is_refused(tmp_path, configuration, sentence):
    text = configuration if isinstance(configuration, str) else json.dumps(configuration)
    assert sentence in problems_of(tmp_path, dialect(), {"lora_adapter_metadata": text})


def test_what_cannot_be_is_refused(tmp_path):
    assert "'x' is nothing that is known of LoRA files" in problems_of(tmp_path, {"x": np.ones(3, np.float32)})
    norms = Lora(TINY, {}, {("blocks.cross_norm.scale", 0): np.ones(48, np.float32)})
    with pytest.raises(InputError, match=r"diffusers cannot hold .* blocks.0.norm2.weight changes by a whole tensor"):
        write(tmp_path / "new.safetensors", norms, to="diffusers")
    with pytest.raises(UsageError, match="There is no kind of LoRA file 'koya'; did you mean 'kohya'"):
        write(tmp_path / "new.safetensors", norms, to="koya")
    assert not (tmp_path / "new.safetensors").exists()
    ours = {"blocks.self_attention.query.kernel": jnp.zeros((2, 24, 24))}
    with pytest.raises(InputError, match=r"shape \(2, 48, 48\) in the LoRA's model and shape \(2, 24, 24\) here"):
        merge(ours, [(random_lora(kernels=KERNELS[:1]), 1.0)])
    with pytest.raises(UsageError, match="strength of a LoRA is nan"):
        merge(ours, [(random_lora(kernels=KERNELS[:1]), float("nan"))])
    with pytest.raises(InputError, match=r"blocks\.modulation is not the kernel of a linear layer"):
        Lora.from_stacked(TINY, {"blocks.modulation": (np.ones((2, 6, 3)), np.ones((2, 3, 48)))})
