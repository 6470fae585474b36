"""PyTorch's own .pth and .pt files. The one place that loads them, with the weights-only loader of the torch extra."""

import os
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.errors import InputError, printable
from kaleido_jax.porting.safetensors import DTYPES, TensorInfo, refused

SUFFIXES = (".pth", ".pt")
LATEST = "latest"  # the file of a release's folder that names the folder of its weights
# Keys under which training programs put the weights beside other things.
_WRAPPERS = ("module", "state_dict", "model")


class TorchFile:
    """An open .pth file, with the interface of `SafetensorsFile`. Its tensors stay on disk until they are read."""

    def __init__(self, path: str | os.PathLike[str]):
        """Raises InputError if torch is not there, or for anything but a dictionary of tensors."""
        self.path = Path(path)
        self.bytes_read = 0
        self.metadata: dict[str, str] = {}
        torch = _torch()
        if not self.path.is_file():
            raise refused(path, ["is not a regular file" if self.path.exists() else "does not exist"])
        try:
            with warnings.catch_warnings(action="ignore"):  # of pickles that it goes on to refuse
                mapped = zipfile.is_zipfile(self.path)
                document = torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # the loader raises many kinds of errors for files that it does not like
            raise refused(path, [f"is refused by PyTorch's weights-only loader: {_reason(error)}"]) from error
        self._tensors = _weights(self.path, document, torch)
        self._dtypes = {_dtype(torch, dtype): dtype for dtype in DTYPES.values()}
        problems = [
            f"{printable(str(name))!r} has dtype {x.dtype}"
            for name, x in self._tensors.items()
            if x.dtype not in self._dtypes
        ]
        problems += [f"{printable(name)!r} has no elements" for name, x in self._tensors.items() if not x.numel()]
        if problems:
            raise refused(path, problems)
        self.tensors = {name: TensorInfo(self._dtypes[x.dtype], tuple(x.shape)) for name, x in self._tensors.items()}

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor or a part of it, in memory of its own."""
        tensor = self._tensors[name][index or ...]
        raw = tensor.view(getattr(_torch(), f"int{tensor.element_size() * 8}"))
        array = np.array(raw.numpy(), order="C").view(self.tensors[name].dtype)
        self.bytes_read += array.nbytes
        return array

    def close(self) -> None:
        self._tensors = {}


def save(path: Path, safetensors_path: Path, *, wrapper: str = "") -> None:
    """Write the tensors of a safetensors file as a .pth file, under a key if `wrapper` names one.

    They are read as they are written.
    """
    import safetensors.torch

    torch = _torch()
    tensors = safetensors.torch.load_file(str(safetensors_path))
    torch.save({wrapper: tensors} if wrapper else tensors, str(path))


def _reason(error: Exception) -> str:
    """What the loader met, without its advice to load the file by means that run what stands in it."""
    named = re.search(r"unsupported (?:global: )?GLOBAL ([\w.]+)", str(error), re.IGNORECASE)
    if named:
        return f"it holds {named[1].rstrip('.')}, which is no part of a tensor"
    if "Weights only load failed" in str(error):
        return "it holds something that is no tensor"
    sentence = next(iter(str(error).splitlines()), "")
    return f"it is damaged, or no file of PyTorch's ({type(error).__name__}: {sentence})"


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "reading and writing .pth files needs PyTorch: pip install 'kaleido_jax[torch]', or convert the file to"
            " safetensors where it came from"
        ) from error
    return torch


def _dtype(torch: Any, dtype: np.dtype) -> Any:
    return getattr(torch, {"float8_e4m3fn": "float8_e4m3fn"}.get(dtype.name, dtype.name))


def _weights(path: Path, document: Any, torch: Any) -> dict[str, Any]:
    """The dictionary of tensors in what was loaded; it may lie under one of the keys that are common."""
    for key in _WRAPPERS:
        if isinstance(document, dict) and isinstance(document.get(key), dict):
            document = document[key]
            break
    if not isinstance(document, dict) or not document:
        raise refused(path, [f"holds a {type(document).__name__} instead of a dictionary of tensors"])
    strange = [
        f"{printable(str(key))!r} is a {type(value).__name__}, not a tensor"
        for key, value in document.items()
        if not isinstance(key, str) or not isinstance(value, torch.Tensor) or value.is_sparse
    ]
    if strange:
        raise refused(path, strange)
    return document
