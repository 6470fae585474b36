"""What is written piece by piece is what orbax itself reads."""

import collections
import errno
import os

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kaleido_jax.errors import StorageError
from kaleido_jax.manifest import file_entries, verify
from kaleido_jax.porting import orbax, port
from kaleido_jax.porting.formats import layouts
from kaleido_jax.porting.safetensors import TensorInfo
from kaleido_jax.testing.checkpoints import SMALL, wan_folder

ARRAYS = {
    "stack": np.arange(3 * 10 * 14).reshape(3, 10, 14).astype(jnp.bfloat16),
    "number": np.array(7.0, np.float32),
    "wide": np.linspace(0, 1, 6, dtype=np.float64),  # jax would make float32 of it
    "half": np.linspace(-1, 1, 6 * 11, dtype=np.float16).reshape(6, 11),
    "zeros": np.zeros((8, 16), jnp.float8_e4m3fn),
    "prime": np.arange(11 * 13, dtype=np.float32).reshape(11, 13),
}


def test_orbax_reads_every_dtype_and_shape_without_being_told(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax, "LEAST_BYTES", 64)
    tensors = {name: TensorInfo(array.dtype, array.shape) for name, array in ARRAYS.items()}
    strips = []

    def read(name: str, index: tuple[slice, ...], out: np.ndarray) -> None:
        out[...] = ARRAYS[name][(*index, ...)]
        strips.append(name)

    axes = {"stack": 2, "number": 0, "wide": None, "half": 0, "zeros": 0, "prime": 1}
    orbax.save(tmp_path / "there", tensors, read, axes, layouts("wan")["kaleido"], SMALL["wan"])
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / "there" / "arrays")
    assert {name: (x.dtype, x.shape, x.tobytes()) for name, x in found.items()} == {
        name: (x.dtype, x.shape, x.tobytes()) for name, x in ARRAYS.items()
    }
    pieces = {name: len(list((tmp_path / "there" / "arrays" / name).glob("[0-9]*"))) for name in ARRAYS}
    # At most 64 bytes each, or, where no prime below 11 divides an axis, as few as can be; none is filled up.
    assert pieces == {"stack": 28, "number": 1, "wide": 1, "half": 6, "zeros": 2, "prime": 1}
    # Read in strips as wide as a piece: "stack" is cut in 1 x 2 x 14, and "half" in 6 x 1.
    assert collections.Counter(strips) == {"stack": 14, "number": 1, "wide": 1, "half": 6, "zeros": 1, "prime": 1}
    # What was hashed while it was written is what lies there.
    files = verify(tmp_path / "there")["files"]
    assert {name: entry for name, entry in file_entries(tmp_path / "there").items() if name != "manifest.json"} == files


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor: int, buffer: memoryview) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = wan_folder(tmp_path / "source")
    monkeypatch.setattr(orbax, "write_all", full)
    with pytest.raises(StorageError, match="the disk is full"):
        port(source, tmp_path / "there", to="orbax")
    assert os.listdir(tmp_path) == ["source"]
