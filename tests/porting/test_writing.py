"""What is written is what the public libraries write, whole or not at all."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from diffusers import WanTransformer3DModel

from kaleido_jax.errors import StorageError, UsageError
from kaleido_jax.porting.safetensors import TensorInfo
from kaleido_jax.porting.writing import replacing, rows_of, shards, write_file, write_folder
from kaleido_jax.testing.checkpoints import assert_same_bits, tensors_of
from kaleido_jax.testing.wan import TINY, diffusers_model

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.ones((5, 1), jnp.bfloat16),
    "d.weight": np.zeros((3,), np.int8),
    "c": np.full((2, 2), 2.0, np.float64),
    "scalar": np.array(7.0, np.float32),
}
INFO = {name: TensorInfo(x.dtype, x.shape) for name, x in TENSORS.items()}


def in_rows(name):
    """A tensor in pieces of one row."""
    tensor = TENSORS[name]
    return [tensor[start:stop] for start, stop in rows_of(tensor.shape, 1, 1)] if tensor.ndim else [tensor]


def test_a_file_is_that_of_the_public_library_to_the_byte(tmp_path):
    safetensors.numpy.save_file(TENSORS, str(tmp_path / "theirs"), metadata={"format": "pt"})
    write_file(tmp_path / "ours", INFO, in_rows)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_shards_are_named_as_diffusers_names_them(tmp_path):
    model = diffusers_model(TINY)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=20_000)
    tensors = tensors_of(tmp_path / "theirs")
    info = {name: TensorInfo(x.dtype, x.shape) for name, x in tensors.items()}
    (tmp_path / "ours").mkdir()
    write_folder(tmp_path / "ours", "diffusion_pytorch_model", info, lambda name: [tensors[name]], shard_bytes=20_000)
    assert_same_bits(tensors_of(tmp_path / "ours"), tensors)
    index = "diffusion_pytorch_model.safetensors.index.json"
    ours, theirs = (json.loads((tmp_path / side / index).read_text()) for side in ("ours", "theirs"))
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    (tmp_path / "ours" / "config.json").write_text((tmp_path / "theirs" / "config.json").read_text())
    _, information = WanTransformer3DModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(information.values())


def test_shards_hold_at_most_what_is_asked_unless_a_tensor_is_larger():
    sizes = [3, 5, 2, 20, 1, 9, 1]
    info = {str(number): TensorInfo(np.dtype(np.int8), (size,)) for number, size in enumerate(sizes)}
    assert shards(info, 10) == [["0", "1", "2"], ["3"], ["4", "5"], ["6"]]


@pytest.mark.parametrize(
    ("shape", "expected"), [((), [(0, 1)]), ((5, 4), [(0, 2), (2, 4), (4, 5)]), ((1, 99), [(0, 1)])]
)
def test_rows_of(shape, expected):
    assert list(rows_of(shape, 2, 16)) == expected


def write_half_of(target):
    with replacing(target, overwrite=True) as temporary:
        temporary.write_text("half")
        raise ValueError("broken")


def test_a_file_takes_its_place_at_the_end(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with replacing(target, overwrite=False) as temporary:
        temporary.write_text("whole")
        assert not target.exists() and temporary.parent == target.parent
    assert target.read_text() == "whole" and [path.name for path in target.parent.iterdir()] == ["a.txt"]
    with pytest.raises(UsageError, match="exists"), replacing(target, overwrite=False):
        pass
    with pytest.raises(ValueError, match="broken"):
        write_half_of(target)
    assert target.read_text() == "whole" and [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"cannot write .*file/a"),
        replacing(tmp_path / "file" / "a", overwrite=True),
    ):
        pass
