"""Which backend "auto" is, and that one which cannot run is an error while tracing."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from kaleido_jax.attention import attention, backends, block_sizes
from kaleido_jax.attention.backends import resolve
from kaleido_jax.masks import TokenMask, shows_everything

X = jnp.ones((1, 4, 2, 8))


def mesh(platform, kind, size=1):
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return AbstractMesh((size,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)


def test_auto_follows_the_mesh_not_the_host():
    assert resolve("auto", interpret=False) == "reference"
    with jax.sharding.use_abstract_mesh(mesh("tpu", "TPU v5p")):
        assert resolve("auto", interpret=False) == "pallas_tpu"
        lowered = jax.jit(attention).trace(X, X, X).lower(lowering_platforms=("tpu",))
        assert "tpu_custom_call" in lowered.as_text()
    with jax.sharding.use_abstract_mesh(mesh("gpu", "NVIDIA H100 80GB HBM3")):
        assert resolve("auto", interpret=False) == "pallas_triton"
    with jax.sharding.use_abstract_mesh(mesh("cpu", "cpu")):
        assert resolve("auto", interpret=False) == "reference"


def test_auto_is_the_fastest_by_the_table_where_that_takes_the_arrays(monkeypatch):
    hopper = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(block_sizes, "table", lambda: {hopper: {"fastest": "pallas_gpu"}, "cpu": {"fastest": "flash"}})
    queries = lambda dtype, width: jnp.zeros((1, 4, 2, width), dtype)
    assert resolve("auto", interpret=False) == "reference"
    with jax.sharding.use_abstract_mesh(mesh("gpu", "NVIDIA A100-SXM4-80GB")):
        assert resolve("auto", interpret=False) == "pallas_triton"
    with jax.sharding.use_abstract_mesh(mesh("gpu", hopper)):
        assert resolve("auto", interpret=False, like=queries(jnp.bfloat16, 128)) == "pallas_gpu"
        assert resolve("auto", interpret=False, like=queries(jnp.float32, 128)) == "pallas_triton"
        assert resolve("auto", interpret=False, like=queries(jnp.float16, 160)) == "pallas_triton"


def test_a_mask_that_is_known_to_show_everything_is_none():
    full = np.array([3, 6, 2, 7], np.uint32)  # all have the second bit
    uniform = TokenMask(full, full, width=3)
    packed = TokenMask(full, full, q_sample=np.full(4, 5, np.int32), k_sample=np.full(4, 5, np.int32), width=3)
    program = lambda mask: str(jax.make_jaxpr(lambda x: attention(x, x, x, mask))(X))
    assert program(uniform) == program(packed) == program(None)
    padded = TokenMask(full, full, q_sample=np.zeros(4, np.int32), k_sample=np.array([0, 0, 0, -1], np.int32), width=3)
    different = TokenMask(full, np.array([1, 2, 2, 2], np.uint32), width=3)
    for mask in (padded, different):
        assert program(mask) != program(None)
    rows = lambda *bits: np.array([[bit] * 4 for bit in bits], np.uint32)
    assert shows_everything(TokenMask(rows(1, 2), rows(1, 2), width=2))
    assert not shows_everything(TokenMask(rows(1, 2), rows(1, 1), width=2))
    assert not shows_everything(TokenMask(jnp.asarray(full), jnp.asarray(full), width=3))  # would have to be fetched


def test_auto_leaves_what_the_compiler_divides_to_the_reference():
    with jax.sharding.use_abstract_mesh(mesh("tpu", "TPU v5p", size=4)):
        assert resolve("auto", interpret=False) == "reference"


def test_the_choice_is_logged_once(caplog):
    backends._say.cache_clear()
    with caplog.at_level(logging.INFO, logger="kaleido_jax"), jax.sharding.use_abstract_mesh(mesh("tpu", "TPU v6e")):
        resolve("auto", interpret=False)
        resolve("auto", interpret=False)
    assert [record.getMessage() for record in caplog.records] == [
        "attention: backend pallas_tpu, because the mesh is of TPU v6e"
    ]


def test_unknown_backends_and_those_the_platform_lacks_are_errors():
    with pytest.raises(ValueError, match="backend is 'flash'; expected one of auto, reference, pallas_tpu"):
        attention(X, X, X, backend="flash")
    with pytest.raises(ValueError, match=r"backend is 'pallas_tpu', which is compiled for tpu, but .* are cpu"):
        jax.jit(lambda x: attention(x, x, x, backend="pallas_tpu"))(X)


def test_the_hopper_kernel_is_for_hopper(monkeypatch):
    monkeypatch.setattr(backends, "_platform", lambda: ("gpu", "the default devices are gpu"))
    monkeypatch.setattr(backends, "_capability", lambda: "8.0")
    with pytest.raises(ValueError, match=r"pallas_gpu', which is compiled for Hopper GPUs .*, but .* has 8\.0"):
        resolve("pallas_gpu", interpret=False)
    assert resolve("pallas_triton", interpret=False) == "pallas_triton"
    monkeypatch.setattr(backends, "_capability", lambda: "9.0")
    assert resolve("pallas_gpu", interpret=False) == "pallas_gpu"


def test_bad_options_are_errors():
    with pytest.raises(ValueError, match=r"scale is -1\.0; expected a number > 0"):
        attention(X, X, X, scale=-1.0)
    with pytest.raises(ValueError, match=r"TokenMask.reads has dtype int32; it must be uint32"):
        TokenMask(np.zeros(4, np.int32), np.zeros(4, np.int32))
    mask = TokenMask(np.ones(5, np.uint32), np.ones(4, np.uint32), width=1)
    with pytest.raises(ValueError, match=r"mask.reads has shape \(5,\); expected \(4,\) or \(1, 4\)"):
        attention(X, X, X, mask)
    mask = TokenMask(np.ones(4, np.uint32), np.ones(7, np.uint32), width=1)
    with pytest.raises(ValueError, match=r"mask.groups has shape \(7,\); expected \(4,\) or \(1, 4\)"):
        jax.eval_shape(attention, X, X, X, mask)


def test_a_boolean_mask_is_an_error_and_never_one_that_shows_everything():
    """Added to scores, True and False are 1 and 0: a mask that silently shows everything."""
    # In tests the check of signatures speaks first.
    with pytest.raises((ValueError, TypeError), match="TokenMask"):
        attention(X, X, X, jnp.zeros((1, 1, 4, 4), bool))
    with pytest.raises(ValueError, match=r"TokenMask.reads has dtype bool; it must be uint32"):
        TokenMask(np.zeros(4, bool), np.zeros(4, bool))
