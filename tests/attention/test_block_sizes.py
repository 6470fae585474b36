"""Block sizes come from the table where it has the device, and from the kernel where it has not."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from kaleido_jax.attention import block_sizes, pallas_gpu, pallas_tpu, pallas_triton
from kaleido_jax.attention.block_sizes import tuned


@pytest.fixture
def table(monkeypatch):
    rows = {
        "TPU v6e": {"pallas_tpu": {"forward": [256, 2048]}},
        "cpu": {"pallas_triton": {"forward": [64, 32, 4]}, "pallas_gpu": {"key gradient": [64, 3]}},
    }
    monkeypatch.setattr(block_sizes, "table", lambda: rows)


def test_the_mesh_says_which_device(table):
    mesh = lambda kind: AbstractMesh(
        (1,), ("x",), (AxisType.Auto,), abstract_device=AbstractDevice(device_kind=kind, num_cores=1, platform="tpu")
    )
    sizes = lambda: tuned("pallas_tpu", "forward", jnp.bfloat16, pallas_tpu.FORWARD)
    with jax.sharding.use_abstract_mesh(mesh("TPU v6e")):
        assert sizes() == pallas_tpu.BlockSizes(256, 2048)
        assert tuned("pallas_tpu", "forward", jnp.float32, pallas_tpu.FORWARD) == pallas_tpu.FORWARD
        assert tuned("pallas_tpu", "backward", jnp.bfloat16, pallas_tpu.BACKWARD) == pallas_tpu.BACKWARD
    with jax.sharding.use_abstract_mesh(mesh("TPU v5p")):
        assert sizes() == pallas_tpu.FORWARD


@pytest.mark.parametrize(
    ("module", "place", "expected"),
    [
        (pallas_triton, 5, pallas_triton.BlockSizes(64, 32, 4)),
        (pallas_gpu, 5, pallas_gpu.FORWARD),
        (pallas_tpu, 5, pallas_tpu.FORWARD),
    ],
)
def test_kernels_take_them(table, monkeypatch, module, place, expected):
    class Seen(Exception):
        pass

    def prepare(*arguments):
        raise Seen(arguments[place])

    monkeypatch.setattr(module, "_prepare", prepare)
    x = jnp.ones((1, 64, 1, 64), jnp.bfloat16)
    with pytest.raises(Seen) as seen:
        module.forward(x, x, x, None, 0.1)
    assert seen.value.args == (expected,)


def test_every_row_of_the_committed_table_is_of_a_kernel():
    kernels = {
        ("pallas_tpu", "forward"): 2,
        ("pallas_tpu", "backward"): 2,
        ("pallas_triton", "forward"): 3,
        ("pallas_triton", "backward"): 3,
        **{("pallas_gpu", kernel): 2 for kernel in ("forward", "query gradient", "key gradient")},
    }
    for row in block_sizes.table().values():
        backends = {name: sizes for name, sizes in row.items() if name != "fastest"}
        assert row.get("fastest", "pallas_tpu") in {backend for backend, _ in kernels}
        for backend, rows in backends.items():
            for kernel, sizes in rows.items():
                assert len(sizes) == kernels[backend, kernel]
