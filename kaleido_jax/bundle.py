"""A model as a folder: `config.json`, one safetensors file for each network, and the tokenizer.

The files hold our own parameters under dotted names, e.g. `blocks.self_attention.query.weight`; reading and writing the
layouts of other projects is `kaleido_jax.porting`'s work.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx
from jax.sharding import Mesh

from kaleido_jax import porting
from kaleido_jax.config import from_json, to_json
from kaleido_jax.errors import InputError, StorageError
from kaleido_jax.models.layers import rounded
from kaleido_jax.models.text import Tokenizer, UMT5Config, UMT5Encoder
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.models.vision import VisionConfig, VisionEncoder
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import place, shardings
from kaleido_jax.typing import AnyArray, Array

M = TypeVar("M", bound=nnx.Module)

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
SCALE = ".int8_scale"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a model was trained for, and how it is sampled when nothing else is said.

    negative_prompt: what the text guidance leads away from; empty: from no text.
    """

    height: int
    width: int
    frames: int
    frames_per_second: int
    references: int
    text_tokens: int
    steps: int
    guidance: float
    shift: float
    negative_prompt: str = ""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A second transformer of the same sizes, for low noise, as Wan 2.2's A14B models have (`models.wan.experts`).

    boundary: the time in [0, 1] from which on the first one, for high noise, is asked. guidance: the second one's
    scale; the first one's stands in the defaults.
    """

    boundary: float
    guidance: float

    def __post_init__(self) -> None:
        if not 0.0 < self.boundary < 1.0:
            raise InputError(f"experts.boundary is {self.boundary}; expected a time between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """Everything of a model but its weights.

    method, scheme, options: how its token sequence is laid out, as `methods.registry.create` takes them. vision: of the
    image encoder, for a transformer that reads its tokens of the references. experts: if there are two transformers.
    """

    name: str
    method: str
    scheme: str
    options: tuple[str, ...] = ()
    transformer: WanConfig
    vae: VAEConfig
    text: UMT5Config
    vision: VisionConfig | None = None
    experts: Experts | None = None
    defaults: Defaults


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model ready to run."""

    config: BundleConfig
    transformer: WanTransformer
    vae: WanVAE
    text: UMT5Encoder
    tokenizer: Tokenizer
    vision: VisionEncoder | None = None
    transformer_2: WanTransformer | None = None

    @property
    def networks(self) -> dict[str, nnx.Module]:
        """All networks, by the names of their files."""
        names = ("transformer", "vae", "text", "vision", "transformer_2")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def parameters(module: nnx.Module) -> dict[str, Any]:
    """A module's parameters by dotted name, in sorted order."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    named = {".".join(map(str, path)): variable.get_value() for path, variable in flat}
    return dict(sorted(named.items()))


def merge(graph: nnx.GraphDef[M], values: Mapping[str, Array]) -> M:
    """The module that `graph` describes, with `values` by dotted name; the inverse of `parameters`. Works under jit."""
    flat = [(tuple(int(k) if k.isdigit() else k for k in name.split(".")), nnx.Param(v)) for name, v in values.items()]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def abstract(make: Callable[[], M]) -> tuple[nnx.GraphDef[M], dict[str, jax.ShapeDtypeStruct]]:
    """The graph and the shapes of the module that `make` makes, without making it."""
    module = nnx.eval_shape(make)
    return nnx.split(module)[0], parameters(module)


def save_bundle(folder: str | Path, bundle: Bundle, *, dtype: str = "float32") -> None:
    """Write a model folder; it appears under its name only when it is whole. `dtype` is as in `save_parameters`."""
    folder = Path(folder).absolute()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        document = {"format": FORMAT} | to_json(bundle.config)
        (partial / CONFIG).write_text(json.dumps(document, indent=1) + "\n")
        for part, module in bundle.networks.items():
            save_parameters(partial / f"{part}.safetensors", parameters(module), dtype=dtype)
        bundle.tokenizer.save(partial / TOKENIZER)
        if folder.exists():
            previous = folder.with_name(f".{folder.name}.previous-{os.getpid()}")
            folder.rename(previous)
            partial.rename(folder)
            shutil.rmtree(previous)
        else:
            partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(f"the model could not be written to {folder}: {error}") from error


def load_bundle(folder: str | Path, mesh: Mesh | None = None) -> Bundle:
    """Read a model folder. Raises InputError that names the file and what is wrong with it.

    Args:
      mesh: that transformers and text encoder lie on, of whose weights a process then reads its own shards; the rest is
        on the first device.
    """
    folder = Path(folder)
    config = load_config(folder)
    transformer, vae, text, vision = config.transformer, config.vae, config.text, config.vision
    return Bundle(
        config=config,
        transformer=load_module(
            folder / "transformer.safetensors", lambda: WanTransformer(transformer, nnx.Rngs(0)), mesh
        ),
        vae=load_module(folder / "vae.safetensors", lambda: WanVAE(vae, nnx.Rngs(0))),
        text=load_module(folder / "text.safetensors", lambda: UMT5Encoder(text, nnx.Rngs(0)), mesh),
        tokenizer=Tokenizer.load(folder / TOKENIZER),
        vision=None
        if vision is None
        else load_module(folder / "vision.safetensors", lambda: VisionEncoder(vision, nnx.Rngs(0))),
        transformer_2=None
        if config.experts is None
        else load_module(folder / "transformer_2.safetensors", lambda: WanTransformer(transformer, nnx.Rngs(0)), mesh),
    )


def load_config(folder: str | Path) -> BundleConfig:
    """The `config.json` of a model folder."""
    return from_json(BundleConfig, _document(Path(folder) / CONFIG), str(Path(folder) / CONFIG))


def load_vae(folder: str | Path) -> WanVAE:
    """Only the VAE of a folder whose `config.json` has a `vae` section; the rest of a model need not be there."""
    path = Path(folder) / CONFIG
    document = _document(path)
    if "vae" not in document:
        raise InputError(f"{path} has no vae section")
    config = from_json(VAEConfig, document["vae"], f"{path}: vae")
    return load_module(Path(folder) / "vae.safetensors", lambda: WanVAE(config, nnx.Rngs(0)))


def _document(path: Path) -> dict:
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is not a model folder: it has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}, the one this version reads")
    return document


def save_parameters(path: str | Path, values: Mapping[str, AnyArray], *, dtype: str = "float32") -> None:
    """Write parameters by dotted name.

    `dtype` "float16" halves the file and rounds to 11 bits; "int8" keeps large kernels as whole numbers up to 127 times
    a float32 scale of each output, under the kernel's name and `SCALE`, and the rest as float16.
    """
    stored: dict[str, np.ndarray] = {}
    for name, value in values.items():
        array = np.asarray(value, np.float32)
        if dtype == "int8" and array.ndim > 1 and array.shape[-2] >= 16:
            stored[name], stored[name + SCALE] = map(np.ascontiguousarray, rounded(array, axis=-2))
        else:
            stored[name] = np.ascontiguousarray(array.astype("float16" if dtype == "int8" else dtype))
    safetensors.numpy.save_file(stored, str(path), metadata={"format": "kaleido_jax"})


def holds_scales(path: str | Path) -> bool:
    """Whether a file holds whole numbers and their scales, as `save_parameters` writes them. A broken one does not."""
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            return any(name.endswith(SCALE) for name in file.keys())  # noqa: SIM118
    except (OSError, safetensors.SafetensorError):
        return False


def _unscaled(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stored tensors with int8 kernels multiplied by their scales."""
    scaled = {name for name, value in stored.items() if value.dtype == np.int8 and name + SCALE in stored}
    plain = {name: value for name, value in stored.items() if name.removesuffix(SCALE) not in scaled}
    return plain | {name: stored[name].astype(np.float32) * stored[name + SCALE] for name in scaled}


def load_module(path: str | Path, make: Callable[[], M], mesh: Mesh | None = None) -> M:
    """The module that `make` makes, with the weights of a safetensors file cast to its own dtypes.

    On a mesh they lie where `parallel.shardings` says, and a process reads the bytes of its own shards, except of files
    of whole numbers, which are those of small models.

    Raises InputError that lists all missing, unexpected and misshaped tensors at once.
    """
    graph, wanted = abstract(make)
    stored: Mapping[str, Any]
    if mesh is not None and Path(path).is_file() and not holds_scales(path):
        stored = porting.load(path, mesh=mesh, dtype="float32")[1]
    else:
        try:
            stored = _unscaled(safetensors.numpy.load_file(str(path)))
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"the weights {path} cannot be read: {error}") from error
    problems = [f"{name} is missing" for name in wanted if name not in stored]
    problems += [f"{name} is unexpected" for name in stored if name not in wanted]
    problems += [
        f"{name} has shape {stored[name].shape}, not {leaf.shape}"
        for name, leaf in wanted.items()
        if name in stored and stored[name].shape != leaf.shape
    ]
    if problems:
        raise InputError(f"{path} does not fit its config in {len(problems)} tensors: {'; '.join(problems[:20])}")
    values = {name: jnp.asarray(stored[name], leaf.dtype) for name, leaf in wanted.items()}
    return merge(graph, values if mesh is None else place(values, shardings(values, mesh)))
