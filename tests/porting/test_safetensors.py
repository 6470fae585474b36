"""Our reader of safetensors against the public library: equal tensors, equal slices, and hostile files refused."""

import json
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from kaleido_jax.errors import InputError
from kaleido_jax.porting.safetensors import DTYPES, HEADER_BYTES, InvalidHeader, SafetensorsFile, parse

TENSORS = {
    f"blocks.{number}.{dtype.name}": np.arange(2 * 3 * 5 * 4).reshape(2, 3, 5, 4).astype(dtype)
    for number, dtype in enumerate(DTYPES.values())
    if not dtype.name.startswith("float8")  # numpy's own save of the public library does not know them
} | {"scalar": np.array(3.0, np.float32)}


def in_memory(data: bytes):
    return parse(lambda count, at: data[at : at + count], len(data))


def file_of(header: object, payload: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header (JSON, or bytes as they are) and payload."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_public_library_writes(tmp_path):
    safetensors.numpy.save_file(TENSORS, str(tmp_path / "a.safetensors"), metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt"} and file.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        read = file.read(name)
        assert (read.dtype, read.shape, read.tobytes()) == (tensor.dtype, tensor.shape, tensor.tobytes())
        read[...] = 0  # it is memory of its own
    assert file.bytes_read == sum(tensor.nbytes for tensor in TENSORS.values())
    file.close()


def test_float8_is_kept_to_the_bit(tmp_path):
    payload = bytes(range(256))
    for code, dtype in (("F8_E4M3", jnp.float8_e4m3fn), ("F8_E5M2", jnp.float8_e5m2)):
        (tmp_path / code).write_bytes(file_of({"a": entry(code, (256,), (0, 256))}, payload))
        read = SafetensorsFile(tmp_path / code).read("a")
        assert read.dtype == dtype and read.tobytes() == payload


@pytest.mark.parametrize(
    "index",
    [
        (slice(1, 2),),
        (slice(0, 2), slice(1, 3)),
        (slice(0, 2), slice(0, 3), slice(2, 4), slice(1, 3)),
        (slice(1, 2), slice(1, 2), slice(4, 5), slice(3, 4)),
        (slice(None), slice(None), slice(None), slice(2, 4)),
        (slice(0, 2), slice(2, 2)),
    ],
)
def test_a_slice_reads_its_own_bytes_only(tmp_path, index):
    safetensors.numpy.save_file(TENSORS, str(tmp_path / "a.safetensors"))
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for name in ("blocks.1.float32", "blocks.3.bfloat16"):
        before, expected = file.bytes_read, TENSORS[name][index]
        np.testing.assert_array_equal(file.read(name, index), expected)
        assert file.bytes_read - before == expected.nbytes


HOSTILE = {
    "empty": (b"", "has 0 bytes, too few"),
    "only a length": (file_of(b""), "has 8 bytes, too few"),
    "length of 2^63": (
        file_of(b"{}", length=2**63),
        "says that its header has 9223372036854775808 bytes; at most 16777216 are read: it is no safetensors file",
    ),
    "header of 100 MB": (file_of(b"{}" + b" " * 9, length=100_000_000), "says that its header has 100000000 bytes"),
    "header cut": (file_of({"a": entry()}, length=2000), "fewer than its header of 2000: it is truncated"),
    "not UTF-8": (file_of(b'{"\xff\xfe": 1}'), "not UTF-8"),
    "not JSON": (file_of(b'{"a": '), "not JSON"),
    "deep nesting": (file_of(b'{"a":' * 200_000), "not JSON"),
    "an array": (file_of([1, 2]), "not a JSON object"),
    "a long number": (file_of(b'{"a":' + b"9" * 9999 + b"}"), "not JSON"),
    "NaN": (file_of(b'{"a": NaN}       '), "NaN cannot stand"),
    "a fraction": (file_of(b'{"a": 1.5e308}       '), "cannot stand"),
    "same key twice": (file_of(b'{"a":{},"a":{}}'), "names 'a' twice"),
    "same key twice inside": (file_of(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "names 'dtype' twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__ is not an object of texts"),
    "name climbs": (file_of({"../../etc/x": entry()}, bytes(8)), "is not a name"),
    "name with NUL": (file_of({"a\0b": entry()}, bytes(8)), "is not a name"),
    "name of 100 kB": (file_of({"a" * 100_000: entry()}, bytes(8)), "is not a name"),
    "no shape": (file_of({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "is not described by"),
    "more than that": (file_of({"a": entry() | {"x": 1}}, bytes(8)), "is not described by"),
    "unknown dtype": (file_of({"a": entry("F31")}, bytes(8)), "has dtype 'F31'; known are F64, F32"),
    "dtype is a list": (file_of({"a": entry(["F32"])}, bytes(8)), "has dtype"),
    "negative size": (file_of({"a": entry(shape=(-2,))}, bytes(8)), "has shape [-2]"),
    "size true": (file_of({"a": entry(shape=(True, 2))}, bytes(8)), "has shape [True, 2]"),
    "no elements": (file_of({"a": entry(shape=(2, 0), offsets=(0, 0))}), "without a single element"),
    "rank of 9": (file_of({"a": entry(shape=(1,) * 8 + (2,))}, bytes(8)), "expected at most 8"),
    "product overflows": (file_of({"a": entry(shape=(2**32, 2**32))}, bytes(8)), "has 73786976294838206464 bytes"),
    "offsets turned": (file_of({"a": entry(offsets=(8, 0))}, bytes(8)), "but data_offsets [8, 0]"),
    "three offsets": (file_of({"a": entry(offsets=(0, 4, 8))}, bytes(8)), "expected where it begins"),
    "too few bytes": (file_of({"a": entry(shape=(3,))}, bytes(8)), "has 12 bytes, but data_offsets [0, 8]"),
    "overlap": (file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "'b' overlaps 'a'"),
    "same place": (file_of({"a": entry(), "b": entry()}, bytes(8)), "overlaps"),
    "gap": (file_of({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "'b' leaves a gap after 'a'"),
    "gap at the start": (file_of({"a": entry(offsets=(4, 12))}, bytes(12)), "leaves a gap after the header"),
    "past the end": (file_of({"a": entry(shape=(4,), offsets=(0, 16))}, bytes(8)), "its tensors end at"),
    "bytes after the end": (file_of({"a": entry()}, bytes(9)), "has 1 bytes after its last tensor"),
    "a .pth file": (b"PK\x03\x04" + bytes(99), "as PyTorch's .pth files are"),
    "a pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00abc", "is a Python pickle, which can run code"),
    "a NumPy file": (b"\x93NUMPY\x01\x00" + bytes(99), "is a NumPy file"),
    "a pointer of git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence(name, tmp_path):
    data, expected = HOSTILE[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=re.escape(expected)) as error:
        SafetensorsFile(path)
    assert "x.safetensors" in str(error.value) and str(error.value).isprintable()
    assert len(str(error.value)) < 1000


def test_a_header_of_very_many_names_is_refused_at_once(tmp_path):
    bomb = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(60_000))
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(b"{" + bomb + b"}"))
    assert path.stat().st_size < HEADER_BYTES
    with pytest.raises(InputError, match="names 60000 tensors; at most 20000"):
        SafetensorsFile(path)


def test_every_problem_is_listed_and_the_first_twenty_shown():
    header = {f"t{number:02d}": entry("F31") for number in range(30)}
    with pytest.raises(InvalidHeader) as error:
        in_memory(file_of(header))
    assert len(error.value.problems) == 30


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, reason in ((tmp_path / "fifo", "not a regular file"), (tmp_path, "not a regular file")):
        with pytest.raises(InputError, match=reason):
            SafetensorsFile(path)
    with pytest.raises(InputError, match="No such file"):
        SafetensorsFile(tmp_path / "none")


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(4096, np.float32)}, str(path))
    file = SafetensorsFile(path)
    os.truncate(path, 5000)
    with pytest.raises(InputError, match="became shorter while it was read"):
        file.read("a")


WORDS = [b'"F32"', b'"BF16"', b'"I8"', b"[]", b"{}", b"null", b"-1", b"0", b"1", b"9" * 30, b"true", b'"a"', b":", b","]


def mutants(seeds: list[bytes], count: int):
    """Files with flipped bits, bytes and words in other places, pieces cut out, doubled or taken from another."""
    random = np.random.default_rng(0)
    for number in range(count):
        data = bytearray(seeds[number % len(seeds)])
        draws = random.integers(0, 2**31, 16).tolist()
        for _ in range(1 + draws.pop() % 3):
            kind, at, size, value, end = draws.pop() % 9, draws.pop(), 1 + draws.pop() % 24, draws.pop(), len(data)
            word, at = WORDS[value % len(WORDS)], at % max(end, 1)
            if kind == 0 and end:
                data[at] ^= 1 << value % 8
            elif kind == 1 and end:
                data[at] = value % 256
            elif kind == 2:
                del data[at:]
            elif kind == 3:
                del data[at : at + size]
            elif kind == 4:
                data[at:at] = data[at : at + size]
            elif kind == 5:
                data[at : at + len(word)] = word
            elif kind == 6:
                lengths = (0, 1, max(end - 8, 0), end, 2**31, 2**62, 2**63)
                data[:8] = lengths[value % len(lengths)].to_bytes(8, "little")
            elif kind == 7:
                digits = [place for place, byte in enumerate(data) if 48 <= byte <= 57]
                if digits:
                    data[digits[at % len(digits)]] = 48 + value % 10
            else:
                data[at : at + size] = seeds[value % len(seeds)][at : at + size]
        yield bytes(data)


def seeds() -> list[bytes]:
    two = {"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(4, np.int8)}
    return [
        safetensors.numpy.save(two, metadata={"format": "pt"}),
        safetensors.numpy.save({"x": np.zeros((3, 2), np.float16)}),
        file_of({"a": entry(), "b": entry("BF16", (2, 2), (8, 16)), "c": entry("F8_E5M2", (1,), (16, 17))}, bytes(17)),
    ]


def test_mutants_end_in_a_sentence_or_mean_what_the_public_library_reads():
    """50,000 mutants: no error but our own; one that is accepted has the tensors that the public library finds."""
    accepted = 0
    for data in mutants(seeds(), 50_000):
        try:
            tensors, _ = in_memory(data)
        except InvalidHeader as error:
            assert error.problems
            continue
        accepted += 1
        theirs = dict(safetensors.deserialize(data))
        assert tensors.keys() == theirs.keys()
        for name, info in tensors.items():
            assert list(info.shape) == list(theirs[name]["shape"])
            assert data[info.start : info.start + info.nbytes] == bytes(theirs[name]["data"])
    assert 500 < accepted < 20_000  # the mutator neither leaves files alone nor ruins them all


def test_mutants_on_disk(tmp_path):
    path = tmp_path / "x.safetensors"
    for data in mutants(seeds(), 500):
        path.write_bytes(data)
        try:
            file = SafetensorsFile(path)
        except InputError:
            continue
        for name in file.tensors:
            file.read(name)
        file.close()
