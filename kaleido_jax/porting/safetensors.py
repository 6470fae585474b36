"""Reading safetensors files of strangers under strict limits, and slices of their tensors without the rest.

The public library accepts headers of 100 MB, tensors without elements and names of any length; this reader lists
everything that is wrong with a file before a byte of a tensor is read. Tensors are read with `pread` into arrays of
their own: a file that shrinks meanwhile is an error and never a crash, as it would be with a mapping.
"""

import collections
import dataclasses
import functools
import json
import math
import os
import re
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kaleido_jax.errors import InputError, printable

HEADER_BYTES = 16 << 20  # a model of 20,000 tensors needs 3 MB
TENSORS = 20_000
RANK = 8
NAME = re.compile(r"[A-Za-z0-9_.\-/]{1,256}")
METADATA = "__metadata__"
LISTED = 20  # problems shown; all are counted

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}

# How other kinds of files begin, and what to say of them.
_STRANGERS = (
    (b"PK\x03\x04", "is a zip archive, as PyTorch's .pth files are: name it .pth and install the torch extra"),
    (b"\x80", "is a Python pickle, which can run code: convert it to safetensors where it came from"),
    (b"\x93NUMPY", "is a NumPy file: convert it to safetensors where it came from"),
    (b"GGUF", "is a GGUF file, whose quantised weights are not read here"),
    (b"version https://git-lfs", "is a pointer of git LFS: fetch the file itself with `git lfs pull`"),
)


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file: its numpy dtype and shape, and where its bytes begin."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def refused(path: str | os.PathLike[str], problems: list[str]) -> InputError:
    """The one error that lists what is wrong with a file."""
    shown = "; ".join(printable(problem) for problem in problems[:LISTED])
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    count = "" if len(problems) == 1 else f"{len(problems)} problems in "
    return InputError(f"{count}{printable(str(path))}: {shown}{more}.")


class SafetensorsFile:
    """An open safetensors file whose header has been checked.

    tensors: what it holds, by name. metadata: its free text. bytes_read: how many bytes of tensors were read so far.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Raises InputError that lists every problem of the header."""
        self.path = Path(path)
        self.bytes_read = 0
        self._lock = threading.Lock()
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise refused(path, [f"cannot be opened: {error.strerror}"]) from error
        try:
            status = os.fstat(self._descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise refused(path, ["is not a regular file"])
            try:
                self.tensors, self.metadata = parse(
                    lambda size, at: os.pread(self._descriptor, size, at), status.st_size
                )
            except InvalidHeader as error:
                raise refused(path, error.problems) from error
        except BaseException:
            self.close()
            raise

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or the part of it that `index` (slices of step 1) says, in memory of its own.

        Raises:
          InputError: the file became shorter since it was opened.
        """
        info = self.tensors[name]
        index = tuple(slice(*cut.indices(size)) for cut, size in zip(index, info.shape)) if index else ()
        bounds = [(cut.start, cut.stop) for cut in index] + [(0, size) for size in info.shape[len(index) :]]
        out = np.empty([stop - start for start, stop in bounds], info.dtype)
        whole = len(bounds)  # axes from here on are read whole, so that runs of bytes are as long as can be
        while whole and bounds[whole - 1] == (0, info.shape[whole - 1]):
            whole -= 1
        outer = bounds[: max(whole - 1, 0)]
        strides = [math.prod(info.shape[axis + 1 :]) * info.dtype.itemsize for axis in range(len(bounds))]
        first = info.start + sum(start * stride for (start, _), stride in zip(bounds, strides))
        buffer = memoryview(out.reshape(-1).view(np.uint8))
        run = len(buffer) // max(math.prod(stop - start for start, stop in outer), 1)
        if not run:
            return out
        offsets = np.zeros((), np.int64)
        for (start, stop), stride in zip(outer, strides):
            offsets = offsets[..., None] + np.arange(stop - start) * stride
        for number, offset in enumerate(offsets.reshape(-1).tolist()):
            self._fill(buffer[number * run : (number + 1) * run], first + offset)
        return out

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _fill(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            count = os.preadv(self._descriptor, [buffer], offset)
            if not count:
                raise refused(self.path, ["became shorter while it was read"])
            with self._lock:
                self.bytes_read += count
            buffer, offset = buffer[count:], offset + count


class InvalidHeader(Exception):
    """What is wrong with the header of a file."""

    def __init__(self, problems: list[str]):
        super().__init__(problems)
        self.problems = problems


def parse(read: Any, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of a file of `size` bytes; `read(count, offset)` gives its bytes.

    Raises:
      InvalidHeader: with every problem.
    """
    begin = bytes(read(32, 0))
    for magic, what in _STRANGERS:
        if begin.startswith(magic) and not begin[8:9] == b"{":
            raise InvalidHeader([what])
    if size < 10 or len(begin) < 8:
        raise InvalidHeader([f"has {size} bytes, too few for a safetensors file"])
    length = int.from_bytes(begin[:8], "little")
    if length > HEADER_BYTES:
        said = f"says that its header has {length} bytes; at most {HEADER_BYTES} are read"
        raise InvalidHeader([said + (": it is no safetensors file" if 8 + length > size else "")])
    if 8 + length > size:
        raise InvalidHeader([f"has {size} bytes, fewer than its header of {length}: it is truncated"])
    text = bytes(read(length, 8))
    if len(text) != length:
        raise InvalidHeader(["became shorter while it was read"])
    header = _document(text)
    if len(header) > TENSORS + 1:
        raise InvalidHeader([f"names {len(header)} tensors; at most {TENSORS} are read"])
    problems: list[str] = []
    metadata = _metadata(header.pop(METADATA, {}), problems)
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        problem = _tensor(name, entry, 8 + length, tensors)
        if problem:
            problems.append(f"{printable(name, 100)!r} {problem}")
    if not problems:
        problems += _layout(tensors, 8 + length, size)
    if problems:
        raise InvalidHeader(problems)
    return tensors, metadata


def _document(text: bytes) -> dict[str, Any]:
    """The header's JSON object."""
    repeated: list[str] = []
    once = functools.partial(_once, repeated)
    try:
        header = json.loads(text.decode(), object_pairs_hook=once, parse_constant=_no_number, parse_float=_no_number)
    except UnicodeDecodeError as error:
        raise InvalidHeader(["has a header that is not UTF-8"]) from error
    except (ValueError, RecursionError) as error:
        raise InvalidHeader([f"has a header that is not JSON: {error}"]) from error
    if not isinstance(header, dict):
        raise InvalidHeader(["has a header that is not a JSON object"])
    if repeated:
        raise InvalidHeader([f"names {printable(name, 100)!r} twice" for name in repeated])
    return header


def _once(repeated: list[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; names that it has more than once are added to `repeated`."""
    document = dict(pairs)
    if len(document) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        repeated.extend(name for name, count in counts.items() if count > 1)
    return document


def _no_number(word: str) -> Any:
    raise ValueError(f"the number {word} cannot stand in a header")


def _metadata(found: Any, problems: list[str]) -> dict[str, str]:
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        return found
    problems.append(f"{METADATA} is not an object of texts")
    return {}


def _tensor(name: str, entry: Any, begin: int, tensors: dict[str, TensorInfo]) -> str | None:
    """Adds a tensor, or says what is wrong with its entry. The file's tensors begin at byte `begin`."""
    if not NAME.fullmatch(name) or ".." in name:
        return "is not a name of 1 to 256 letters, digits, dots, dashes, slashes and underscores"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "is not described by dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"has dtype {dtype!r}; known are {', '.join(DTYPES)}"
    if not _naturals(shape) or len(shape) > RANK:
        return f"has shape {shape!r}; expected at most {RANK} whole numbers"
    if 0 in shape:
        return f"has shape {shape!r}, without a single element"
    if not _naturals(offsets) or len(offsets) != 2:
        return f"has data_offsets {offsets!r}; expected where it begins and where it ends"
    info = TensorInfo(DTYPES[dtype], tuple(shape), begin + offsets[0])
    if offsets[1] - offsets[0] != info.nbytes:
        return f"of dtype {dtype} and shape {shape!r} has {info.nbytes} bytes, but data_offsets {offsets!r}"
    tensors[name] = info
    return None


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _layout(tensors: Mapping[str, TensorInfo], begin: int, size: int) -> list[str]:
    """What is wrong with where the tensors lie: they must fill the file without gap or overlap."""
    problems, end, before = [], begin, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.start != end:
            what = "overlaps" if info.start < end else "leaves a gap after"
            problems.append(f"{name!r} {what} {before}")
        end, before = info.start + info.nbytes, repr(name)
    if end > size:
        problems.append(f"has {size} bytes, but its tensors end at {end}: it is truncated")
    elif end < size:
        problems.append(f"has {size - end} bytes after its last tensor")
    return problems
