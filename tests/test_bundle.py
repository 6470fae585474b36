"""Parameters on disk: bits kept, halves and bytes rounded as promised, and every mismatch named at once."""

import jax
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.bundle import abstract, load_module, merge, parameters, save_parameters
from kaleido_jax.errors import InputError
from kaleido_jax.models.wan import WanConfig, WanTransformer

CONFIG = WanConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=4, out_channels=4, text_dim=16, freq_dim=16)


def make() -> WanTransformer:
    return WanTransformer(CONFIG, nnx.Rngs(0))


@pytest.fixture(scope="module")
def values():
    """Random weights, the head too, which starts at zero."""
    _, shapes = abstract(make)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {name: jax.random.normal(key, x.shape, x.dtype) for key, (name, x) in zip(keys, shapes.items())}


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # float16 has 11 bits; int8 errs by half a step of 1/127 of the largest weight, about 3 deviations here.
    [("float32", 0.0), ("float16", 2**-10), ("int8", 0.02)],
)
def test_parameters_come_back(values, tmp_path, dtype, tolerance):
    save_parameters(tmp_path / "a.safetensors", values, dtype=dtype)
    again = parameters(load_module(tmp_path / "a.safetensors", make))
    assert list(again) == list(values)
    for name, value in values.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_allclose(again[name], value, rtol=tolerance, atol=tolerance and 2 * tolerance)


def test_merge_is_the_inverse_of_parameters(values):
    graph, _ = abstract(make)
    for name, value in parameters(merge(graph, values)).items():
        np.testing.assert_array_equal(value, values[name])


def test_a_file_that_does_not_fit_is_refused_with_all_differences(values, tmp_path):
    wrong = dict(values)
    del wrong["head.projection.bias"]
    wrong["extra"] = wrong["patch_embedding.bias"]
    wrong["patch_embedding.bias"] = wrong["patch_embedding.bias"][:3]
    save_parameters(tmp_path / "a.safetensors", wrong)
    with pytest.raises(InputError) as error:
        load_module(tmp_path / "a.safetensors", make)
    for words in ("3 tensors", "head.projection.bias is missing", "extra is unexpected", "has shape (3,), not (24,)"):
        assert words in str(error.value)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match=r"a\.safetensors cannot be read"):
        load_module(tmp_path / "a.safetensors", make)
