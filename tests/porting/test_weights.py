"""Which files a checkpoint is made of: folders, indices of shards, links, .pth files; all refused where unsafe."""

import json
import os
import pickle
import re

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.porting.torch_files import TorchFile, save
from kaleido_jax.porting.weights import ShardedWeights, open_weights

INDEX = "model.safetensors.index.json"


def sharded(folder, places=None):
    """Two shards with a tensor each, and an index; `places` changes its map."""
    folder.mkdir(parents=True)
    for number, name in enumerate("ab"):
        tensor = np.full((2, 2), number, np.float32)
        safetensors.numpy.save_file({name: tensor}, str(folder / f"model-{number}.safetensors"))
    document = {"weight_map": {"a": "model-0.safetensors", "b": "model-1.safetensors"} | (places or {})}
    (folder / INDEX).write_text(json.dumps(document))
    return folder


def test_shards_are_one_checkpoint(tmp_path):
    weights = open_weights(sharded(tmp_path / "x"))
    assert sorted(weights.tensors) == ["a", "b"] and weights.read("b", (slice(0, 1),)).tolist() == [[1.0, 1.0]]
    assert weights.bytes_read == 8
    weights.close()


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({"c": "../x/model-0.safetensors"}, "'../x/model-0.safetensors' is not a plain name"),
        ({"c": "/etc/passwd"}, "'/etc/passwd' is not a plain name"),
        ({"c": ".."}, "'..' is not a plain name"),
        ({"c": "model\0.safetensors"}, "is not a plain name"),
        ({"c": "model.bin"}, "'model.bin' is not a safetensors file"),
        ({"c": "model-7.safetensors"}, "'model-7.safetensors' is missing"),
        ({"c": "model-0.safetensors"}, "'c' is not in model-0.safetensors, where the index puts it"),
        ({"a": "model-1.safetensors"}, "'a' is not in model-1.safetensors"),
        ({"a": 1}, "has no weight_map"),
    ],
)
def test_an_index_that_lies(tmp_path, places, expected):
    with pytest.raises(InputError, match=re.escape(expected)):
        open_weights(sharded(tmp_path / "x", places))


def test_every_problem_of_the_shards_in_one_error(tmp_path):
    folder = sharded(tmp_path / "x", {"c": "model-0.safetensors"})
    os.truncate(folder / "model-1.safetensors", 70)
    with pytest.raises(InputError, match=r"problems in .*model-1\.safetensors: .*truncated.*'c' is not in model-0"):
        open_weights(folder)


def test_a_tensor_that_the_index_does_not_know(tmp_path):
    folder = sharded(tmp_path / "x")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-0.safetensors"}}))
    safetensors.numpy.save_file({"a": np.zeros(1), "z": np.zeros(1)}, str(folder / "model-0.safetensors"))
    with pytest.raises(InputError, match=r"'z' of model-0\.safetensors is not in the index"):
        open_weights(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "[" * 100_000])
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(InputError, match=r"index\.json"):
        open_weights(tmp_path)


def test_a_shard_may_be_a_link_into_the_cache_and_nowhere_else(tmp_path):
    """As in Hugging Face's cache: snapshots/REVISION/part/file -> blobs/HASH."""
    folder = sharded(tmp_path / "models--x" / "snapshots" / "abc" / "transformer")
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    shard = folder / "model-0.safetensors"
    shard.rename(blobs / "0123")
    shard.symlink_to("../../../blobs/0123")
    assert open_weights(folder).read("a").tolist() == [[0.0, 0.0], [0.0, 0.0]]
    (blobs / "0123").rename(tmp_path / "secret")
    shard.unlink()
    shard.symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is a link that leaves the folder"):
        open_weights(folder)


def test_a_folder_must_hold_one_checkpoint(tmp_path):
    with pytest.raises(UsageError, match=r"holds no safetensors and no \.pth file"):
        open_weights(tmp_path)
    sharded(tmp_path / "transformer")
    with pytest.raises(UsageError, match="name one of its folders transformer"):
        open_weights(tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UsageError, match=r"several checkpoints; name one of a\.pth, b\.pth"):
        open_weights(tmp_path)
    for name in ("model.bin", "model.ckpt", "model.npy", "model"):
        (tmp_path / name).write_bytes(b"\x80\x02")
        with pytest.raises(UsageError, match="is not a file of weights by its name"):
            open_weights(tmp_path / name)


TENSORS = {
    "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "turned": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "float8": torch.ones(4).to(torch.float8_e4m3fn),
    "count": torch.tensor(3),
}


@pytest.mark.parametrize("wrap", [None, "module", "state_dict"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_files(tmp_path, wrap, legacy):
    path = tmp_path / "x.pth"
    # The old format knows no float8.
    tensors = {name: tensor for name, tensor in TENSORS.items() if name != "float8" or not legacy}
    document = tensors if wrap is None else {wrap: tensors, "step": 7}
    torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    file = open_weights(path)
    assert isinstance(file, TorchFile)
    assert {name: info.shape for name, info in file.tensors.items()} == {n: tuple(x.shape) for n, x in tensors.items()}
    for name, tensor in tensors.items():
        read = file.read(name)
        assert read.dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert read.astype(np.float32).tolist() == tensor.float().tolist()
    assert file.read("turned", (slice(1, 3), slice(0, 1))).tolist() == [[1.0], [2.0]]
    file.close()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([torch.ones(2)], "holds a list instead of a dictionary of tensors"),
        ({}, "holds a dict instead"),
        ({"a": 1}, "'a' is a int, not a tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' has dtype torch.complex64"),
        ({"a": torch.ones(0, 3)}, "'a' has no elements"),
    ],
)
def test_torch_files_that_are_no_weights(tmp_path, document, expected):
    torch.save(document, tmp_path / "x.pth")
    with pytest.raises(InputError, match=expected):
        TorchFile(tmp_path / "x.pth")


def test_nothing_in_a_pickle_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": Evil()}))
    torch.save({"a": Evil()}, tmp_path / "y.pt")
    for name in ("x.pth", "y.pt"):
        with pytest.raises(InputError, match="refused by PyTorch's weights-only loader: it holds ") as caught:
            open_weights(tmp_path / name)
        assert "weights_only" not in str(caught.value)  # torch's own words tell how to run what is in it
    (tmp_path / "text.pth").write_bytes(b"hello world")
    with pytest.raises(InputError, match=r"loader: it is damaged, or no file of PyTorch's \(KeyError: 101\)"):
        open_weights(tmp_path / "text.pth")
    (tmp_path / "z.safetensors").write_bytes((tmp_path / "x.pth").read_bytes())
    with pytest.raises(InputError, match="is a Python pickle, which can run code"):
        open_weights(tmp_path / "z.safetensors")
    (tmp_path / "z.safetensors").write_bytes((tmp_path / "y.pt").read_bytes())
    with pytest.raises(InputError, match=r"as PyTorch's \.pth files are: name it \.pth"):
        open_weights(tmp_path / "z.safetensors")
    assert not (tmp_path / "evil").exists()


def test_damaged_torch_files_are_one_sentence(tmp_path):
    path, random = tmp_path / "x.pth", np.random.default_rng(0)
    torch.save(TENSORS, path)
    whole = path.read_bytes()
    for _ in range(60):
        data = bytearray(whole)
        for at in random.integers(0, len(data), 5):
            data[at] ^= 1 << int(random.integers(0, 8))
        path.write_bytes(data[: int(random.integers(len(data) // 2, len(data) + 1))])
        try:
            file = open_weights(path)
        except InputError:
            continue
        for name in file.tensors:
            file.read(name)


def test_what_torch_loads_of_ours(tmp_path):
    tensors = {"a": np.ones((2, 3), jnp.bfloat16), "b": np.arange(3.0, dtype=np.float32)}
    safetensors.numpy.save_file(tensors, str(tmp_path / "a.safetensors"))
    save(tmp_path / "a.pth", tmp_path / "a.safetensors")
    loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert loaded["a"].dtype == torch.bfloat16 and loaded["b"].tolist() == [0.0, 1.0, 2.0]


def test_an_index_alone_names_its_folder(tmp_path):
    assert isinstance(open_weights(sharded(tmp_path / "x") / INDEX), ShardedWeights)
