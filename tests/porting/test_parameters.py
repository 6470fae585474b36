"""Parameters are streamed: onto meshes, each process the bytes of its own shards; never a second copy."""

import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from jax.sharding import NamedSharding, PartitionSpec

from kaleido_jax.errors import InputError
from kaleido_jax.models.mapping import Transform, from_torch
from kaleido_jax.models.wan.config import WanConfig
from kaleido_jax.parallel import MeshConfig, partition_spec
from kaleido_jax.porting import inspect, load, orbax, parameters, port
from kaleido_jax.porting.formats import layouts
from kaleido_jax.porting.parameters import Arrays, Checkpoint, finite, full, read
from kaleido_jax.testing.checkpoints import SMALL, random_tensors, wan_folder, write


@pytest.fixture(scope="module", params=["original", "diffusers"])
def source(request, tmp_path_factory):
    """(folder, our parameters by the table) of a small Wan checkpoint."""
    row, config = layouts("wan")[request.param], SMALL["wan"]
    tensors = random_tensors(row, config, jnp.bfloat16)
    folder = write(tmp_path_factory.mktemp("wan") / request.param, row, tensors, config)
    return folder, from_torch(tensors, row.table(config), row.family.abstract_parameters(config), "weights")


def test_any_part_of_a_parameter(source):
    folder, expected = source
    checkpoint, random = Checkpoint(folder), np.random.default_rng(0)
    for name, array in expected.items():
        for _ in range(3):
            ends = [np.sort(random.integers(0, size + 1, 2)) for size in array.shape]
            index = tuple(slice(int(a), int(b)) if a < b else slice(0, size) for (a, b), size in zip(ends, array.shape))
            found = read(checkpoint, name, index)
            assert found.tobytes() == np.ascontiguousarray(array[index]).tobytes(), (name, index)
    checkpoint.close()


def test_small_chunks_change_nothing(source, monkeypatch):
    monkeypatch.setattr(parameters, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(parameters, "STRIP", 7)
    folder, expected = source
    for name, array in load(folder)[1].items():
        assert np.asarray(array).tobytes() == expected[name].tobytes(), name


def test_each_shard_reads_its_own_bytes(source):
    """On a mesh of 8 devices: what one device reads is the size of its shard, and all together the file once."""
    folder, expected = source
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).make()
    checkpoint = Checkpoint(folder)
    for name, array in expected.items():
        sharding = NamedSharding(mesh, partition_spec(name, array.shape, mesh))
        joined = name == "patch_embedding.kernel"  # its rows are channels and pixels at once there: read whole
        for index in sharding.devices_indices_map(array.shape).values():
            before = checkpoint.weights.bytes_read
            part = read(checkpoint, name, index)
            assert part.tobytes() == np.ascontiguousarray(array[index]).tobytes()
            assert checkpoint.weights.bytes_read - before == part.nbytes or joined, name
    checkpoint.close()


def test_a_mesh_reads_the_file_once(source, monkeypatch):
    folder, expected = source
    mesh, opened = MeshConfig(data=2, fsdp=4).make(), []
    original = Checkpoint.check
    monkeypatch.setattr(Checkpoint, "check", lambda self: (opened.append(self), original(self))[1])
    config, arrays = load(folder, mesh=mesh)
    assert config == SMALL["wan"]
    sharded = sum(not array.sharding.is_fully_replicated for array in arrays.values())
    assert sharded > len(arrays) / 2
    for name, array in arrays.items():
        assert np.asarray(array).tobytes() == expected[name].tobytes(), name
    total = sum(array.nbytes for array in expected.values())
    patches = expected["patch_embedding.kernel"].nbytes  # read whole for each of its shards
    assert total <= opened[0].weights.bytes_read <= total + 8 * patches


def _bytes_read() -> int:
    """What tensorstore, which orbax reads with, has read of files so far."""
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


def test_orbax_onto_a_mesh(source, tmp_path, monkeypatch):
    """Every device reads the pieces of its shards: together the arrays once, not once a device."""
    folder, expected = source
    monkeypatch.setattr(orbax, "LEAST_BYTES", 1024)
    port(folder, tmp_path / "arrays", to="orbax")
    mesh = MeshConfig(fsdp=8).make()
    before = _bytes_read()
    config, arrays = load(tmp_path / "arrays", mesh=mesh, dtype="float32")
    assert config == SMALL["wan"]
    for name, array in arrays.items():
        assert array.sharding == NamedSharding(mesh, partition_spec(name, array.shape, mesh))
        np.testing.assert_array_equal(np.asarray(array), expected[name].astype(np.float32))
    total = sum(array.nbytes for array in expected.values())
    assert total <= _bytes_read() - before < 1.2 * total


def test_damaged_orbax_is_refused_by_who_reads_it(source, tmp_path, monkeypatch):
    """A flipped bit is found where it is read; a process whose shards lie elsewhere does not look there."""
    monkeypatch.setattr(orbax, "LEAST_BYTES", 1024)
    folder, name = tmp_path / "arrays", "blocks.mlp.first.kernel"
    port(source[0], folder, to="orbax")
    piece = max((folder / "arrays" / name).iterdir())
    content = bytearray(piece.read_bytes())
    content[7] ^= 1
    piece.write_bytes(content)
    message = f"arrays: is damaged: .*{name}/{re.escape(piece.name)} has SHA-256 "
    for read_it in (lambda: load(folder), lambda: port(folder, tmp_path / "back")):
        with pytest.raises(InputError, match=message):
            read_it()
    assert inspect(folder).problems == []  # reads no tensor
    shapes = {name: jax.ShapeDtypeStruct(source[1][name].shape, jnp.bfloat16)}
    sharding = NamedSharding(MeshConfig(fsdp=8).make(), PartitionSpec(None, "fsdp"))
    parts = list(sharding.addressable_devices_indices_map(shapes[name].shape).values())
    everything = orbax._files(folder, shapes, {name: parts})
    one = orbax._files(folder, shapes, {name: parts[:1]})  # one of 8 processes
    pieces = lambda files: {file for file in files if f"/{name}/" in file and not file.endswith(".zarray")}
    assert len(pieces(everything)) == 8 * len(pieces(one)) and f"arrays/{name}/{piece.name}" not in one
    described = folder / "arrays" / name / ".zarray"
    for wrong in (
        "",
        '{"chunks": [1, 1, 0], "dimension_separator": "."}',
        '{"chunks": [3], "dimension_separator": "."}',
    ):
        described.write_text(wrong)
        with pytest.raises(InputError, match="does not describe an array"):
            orbax._files(folder, shapes, {name: parts})


def test_arrays_on_a_mesh_are_written_layer_by_layer(source):
    """`Arrays` of sharded jax arrays and of numpy arrays give the same parts."""
    folder, expected = source
    _, arrays = load(folder, mesh=MeshConfig(fsdp=8).make())
    for found in (Arrays(arrays), Arrays(expected)):
        for name, array in expected.items():
            assert read(found, name).tobytes() == array.tobytes(), name


def test_memory_stays_far_below_the_checkpoint(tmp_path):
    """A file of 60 MB is ported with 20 MB, to orbax with two of its arrays.

    In arrays it takes its own bytes and as much again as one chunk.
    """
    row = layouts("wan")["original"]
    config = WanConfig(dim=512, ffn_dim=2048, heads=4, layers=6, text_dim=64, freq_dim=32)
    source = write(tmp_path / "source", row, random_tensors(row, config, jnp.bfloat16), config)
    size = (source / f"{row.weights}.safetensors").stat().st_size
    tracemalloc.start()
    try:
        port(source, tmp_path / "there")
        _, peak = tracemalloc.get_traced_memory()
        assert size > 50e6 and peak < 20e6
        tracemalloc.reset_peak()
        port(source, tmp_path / "arrays", to="orbax")
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 45e6  # two arrays of 12.6 MB, one read while the other is written, and chunks of them
        checkpoint = Checkpoint(source)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        array = read(checkpoint, "blocks.mlp.first.kernel")
        _, peak = tracemalloc.get_traced_memory()
        # Four threads with a chunk each, which is a layer here, and what marks infinity in it.
        assert peak - before < array.nbytes * (1 + 4 / 6) + 4e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, jnp.bfloat16, jnp.float8_e5m2, jnp.float8_e4m3fn]
)
def test_finite_is_what_numpy_says(dtype):
    random = np.random.default_rng(0)
    for _ in range(50):
        array = np.frombuffer(random.bytes(64), dtype)
        with np.errstate(invalid="ignore"):  # a signalling NaN
            assert finite(array) == bool(np.isfinite(array.astype(np.float64)).all())
    for value in (np.nan, np.inf, -np.inf):
        array = np.ones(3, dtype)
        array[1] = value
        assert not finite(array) or np.isfinite(array.astype(np.float32)).all()  # e4m3fn has no infinity
    assert finite(np.array([2**31 - 1], np.int32))


def test_slices_of_a_turned_tensor():
    """Reading a part and turning it is turning and taking the part, for axes that are joined too."""
    array = np.arange(2 * 6 * 4 * 5).reshape(2, 6, 4, 5)
    for pattern, sizes in (
        ("a b c d -> d c b a", ()),
        ("a b c d -> (b c) d a", (("b", 6), ("c", 4))),
        ("a (x y) c d -> c x (a y) d", (("x", 3), ("y", 2), ("a", 2))),
        ("", ()),
    ):
        transform = Transform(pattern, sizes)
        turned = transform.from_torch(array)
        np.testing.assert_array_equal(transform.to_torch(turned), array)
        for cut in (slice(1, 2), slice(0, 2)):
            for axis in range(turned.ndim):
                index = full((slice(None),) * axis + (cut,), turned.shape)
                part, rest = transform.slices(index, array.shape)
                np.testing.assert_array_equal(transform.from_torch(array[part])[rest], turned[index])


def test_one_device_without_a_mesh(tmp_path):
    _, arrays = load(wan_folder(tmp_path / "source"))
    assert all(array.devices() == {jax.devices()[0]} for array in arrays.values())
