"""CLIP's text tower against transformers' CLIPTextModel, which nobody here wrote, on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import InputError
from kaleido_jax.models.text.clip import params as clip_params
from kaleido_jax.models.text.clip.config import CLIPTextConfig
from kaleido_jax.models.text.clip.modeling import CLIPTextEncoder
from kaleido_jax.testing import randomise, relative_error

CONFIG = CLIPTextConfig(vocab_size=31, positions=9, dim=18, ffn_dim=40, heads=3, layers=3, end_id=30)


def peer(config: CLIPTextConfig) -> transformers.CLIPTextModel:
    sizes = clip_params.config_document(config)
    del sizes["architectures"], sizes["model_type"]
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes, attn_implementation="eager")).eval()


def released_names(model) -> dict[str, torch.Tensor]:
    """As they are on disk: the class left its prefix out of its own names in version 5 of transformers."""
    return {f"text_model.{name.removeprefix('text_model.')}": x for name, x in model.state_dict().items()}


def test_tokens_and_pooled_output_equal_transformers(record_property):
    model = randomise(peer(CONFIG))
    tensors = {name: x.numpy() for name, x in released_names(model).items()}
    parameters = {name: jnp.asarray(x) for name, x in clip_params.FAMILY.from_torch(tensors, CONFIG).items()}
    ids = np.random.default_rng(0).integers(0, 30, (3, 9)).astype(np.int32)
    ids[0, 4:], ids[1, 8:], ids[2, 0] = 30, 30, 30  # texts that end early and are padded with the end, late, at once
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long())
    graph = abstract(lambda: CLIPTextEncoder(CONFIG, nnx.Rngs(0)))[0]
    run = jax.jit(lambda parameters, ids: merge(graph, parameters)(ids))
    tokens, pooled = run(parameters, jnp.asarray(ids))
    errors = relative_error(tokens, expected.last_hidden_state), relative_error(pooled, expected.pooler_output)
    record_property("relative_error", max(errors))
    assert max(errors) <= 1e-5  # some tens of float32 operations in sequence
    # Nothing after the end of a text is read.
    ids[0, 5:] = 7
    np.testing.assert_allclose(run(parameters, jnp.asarray(ids))[1], pooled, atol=1e-6)


def test_names_and_shapes_at_full_size():
    config = CLIPTextConfig.large()
    with torch.device("meta"):
        theirs = {name: tuple(x.shape) for name, x in released_names(peer(config)).items()}
    assert clip_params.FAMILY.torch_shapes(config) == theirs
    assert sum(int(np.prod(shape)) for shape in theirs.values()) == 123_060_480
    assert clip_params.config_from(theirs) == config
    shorter = {name.removeprefix("text_model."): shape for name, shape in theirs.items()}
    assert clip_params.FAMILY.torch_shapes(config, "transformers-5") == shorter
    assert clip_params.config_from(shorter, "transformers-5") == config
    assert clip_params.config_from(theirs, document={"eos_token_id": 2, "hidden_act": "quick_gelu"}) == config


def test_there_and_back_is_bitwise():
    r = np.random.default_rng(2)
    shapes = clip_params.FAMILY.abstract_parameters(CONFIG)
    ours = {name: r.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}
    tensors = clip_params.FAMILY.to_torch(ours, CONFIG)
    back = clip_params.FAMILY.from_torch(tensors, CONFIG)
    assert back.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(back[name], ours[name])
    document = clip_params.config_document(CONFIG)
    assert clip_params.config_from({name: x.shape for name, x in tensors.items()}, document=document) == CONFIG


def test_bad_input_is_an_error_that_names_it():
    model = nnx.eval_shape(lambda: CLIPTextEncoder(CONFIG, nnx.Rngs(0)))
    with pytest.raises(ValueError, match="ids have 10 tokens; CLIP reads at most 9"):
        model(jnp.zeros((1, 10), jnp.int32))
    with pytest.raises(InputError, match="hidden_act 'gelu'"):
        clip_params.config_from({}, document={"hidden_act": "gelu"})
    for change, message in (
        ({"dim": 20}, "expected a multiple of the 3 heads"),
        ({"layers": 0}, "layers is 0; expected a positive integer"),
        ({"end_id": 31}, "expected an id below 31"),
        ({"dtype": "int8"}, "expected float32, bfloat16 or float16"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(CONFIG, **change)
