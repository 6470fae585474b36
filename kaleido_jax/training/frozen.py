"""Networks that a run finds ready: the VAE, a text encoder that is not trained along, and what training starts from.

Each is read from a model folder of ours or from any checkpoint that `kaleido port` reads.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from kaleido_jax import porting
from kaleido_jax.bundle import (
    CONFIG,
    TOKENIZER,
    abstract,
    load_config,
    load_module,
    load_vae,
    merge,
    parameters,
)
from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.models.text import Tokenizer, UMT5Config, UMT5Encoder
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import MeshConfig, shardings
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.typing import Array


def on_host() -> Mesh:
    """A mesh of the processor alone, where a network is only passed through."""
    return MeshConfig().make([jax.local_devices(backend="cpu")[0]])


def is_model(folder: str | Path) -> bool:
    """Whether it is a model folder of ours, which may be only in part; one network that was ported is none."""
    try:
        document = json.loads((Path(folder) / CONFIG).read_text())
        return "format" in document and "family" not in document
    except (OSError, ValueError):
        return False


def find_vae(experiment: Experiment) -> WanVAE:
    """The VAE of `vae`, of `start_from`, or the one that is shipped, which only the miniature's latents are made with.

    Raises:
      InputError: it cannot be read. UsageError: none is named for encoded data, or it is no VAE.
    """
    named = experiment.vae or (experiment.start_from if is_model(experiment.start_from) else "")
    if not named:
        if experiment.data.text_embeddings:
            raise UsageError("vae is empty; name the folder of the VAE, such as Wan2.1-T2V-1.3B-Diffusers/vae")
        named = str(resources.files("kaleido_jax") / "weights" / "miniature")
    if is_model(named) or not Path(named).exists():
        return load_vae(named)
    config, weights = porting.load(named)
    if not isinstance(config, VAEConfig):
        raise UsageError(f"vae is {printable(named)}, which is a {type(config).__name__}; name a VAE of videos")
    return merge(abstract(lambda: WanVAE(config, nnx.Rngs(0)))[0], weights)


def load_text(experiment: Experiment, mesh: Mesh | None = None) -> tuple[UMT5Encoder, Tokenizer]:
    """The frozen text encoder and its tokenizer, from `text_encoder`, or from `start_from` if that is a model folder.

    Args:
      mesh: that the weights lie on; None: the first device.

    Raises:
      InputError: they cannot be read. UsageError: none is named, or its sizes are not those of `text`.
    """
    named = experiment.text_encoder or (experiment.start_from if is_model(experiment.start_from) else "")
    if not named:
        raise UsageError("text_encoder is empty; name the folder or file of the encoder that prompts are read with")
    folder, wanted = Path(named), experiment.text
    if is_model(folder):
        found = load_config(folder).text
        _check(experiment, "text_encoder", found, wanted)
        module = load_module(folder / "text.safetensors", lambda: UMT5Encoder(wanted, nnx.Rngs(0)))
        return module, Tokenizer.load(folder / TOKENIZER)
    found, weights = porting.load(folder, mesh=mesh)
    _check(experiment, "text_encoder", found, wanted)
    module = merge(abstract(lambda: UMT5Encoder(wanted, nnx.Rngs(0)))[0], weights)
    return module, Tokenizer.load(_tokenizer_of(folder))


def _tokenizer_of(path: Path) -> Path:
    """Where releases keep it: in the encoder's folder, in a folder beside it, or under its name beside the file."""
    beside = path if path.is_dir() else path.parent
    candidates = [beside, beside / "tokenizer", beside.parent / "tokenizer", beside / "google" / "umt5-xxl"]
    for folder in candidates:
        if any((folder / name).is_file() for name in (TOKENIZER, "spiece.model")):
            return folder
    raise InputError(f"There is no {TOKENIZER} or spiece.model in {', '.join(printable(str(c)) for c in candidates)}.")


def first_weights(experiment: Experiment, mesh: Mesh | None) -> dict[str, dict[str, Array]]:
    """What training starts from, by network and dotted name: `start_from`, a model folder or a released transformer.

    A start may lack the branches that ContextAnyone adds, which are new then, and add nothing until they are trained.

    Raises:
      InputError: it cannot be read. UsageError: its sizes are not the run's, or it has no text encoder to be trained.
    """
    named, trained = experiment.start_from, not experiment.data.text_embeddings
    if is_model(named) or not Path(named).exists():
        config, text = load_config(named), experiment.text
        transformer = _without_branches(experiment, config.transformer)
        _check(experiment, "start_from", config.transformer, transformer)
        make: dict[str, Callable[[], nnx.Module]] = {"transformer": lambda: WanTransformer(transformer, nnx.Rngs(0))}
        if trained:
            _check(experiment, "start_from", config.text, text)
            make["text"] = lambda: UMT5Encoder(text, nnx.Rngs(0))
        read = lambda part: load_module(Path(named) / f"{part}.safetensors", make[part], mesh)
        found = {part: parameters(read(part)) for part in make}
        return found | {"transformer": _with_branches(experiment, found["transformer"], mesh)}
    if trained:
        name = printable(named)
        raise UsageError(f"start_from is {name}; a run that trains its text encoder starts from a model folder")
    config, weights = porting.load(named, mesh=mesh, dtype="float32")
    _check(experiment, "start_from", config, _without_branches(experiment, config))
    return {"transformer": _with_branches(experiment, weights, mesh)}


def _without_branches(experiment: Experiment, found: Any) -> WanConfig:
    """The sizes that the run's start has to have: its transformer's, less the branches that `found` lacks.

    Those of the image tokens and of Emphasize-Attention start at zero in a network that has the latter.
    """
    wanted = experiment.transformer
    if not wanted.emphasis or not isinstance(found, WanConfig):
        return wanted
    base = dataclasses.replace(wanted, emphasis=found.emphasis)
    if found.image_dim is None:
        base = dataclasses.replace(base, image_dim=None, image_positions=None)
    if base != wanted and experiment.lora.rank:
        raise UsageError(
            f"lora.rank is {experiment.lora.rank}, but {printable(experiment.start_from)} lacks branches of the run's "
            "transformer (emphasis, image_dim); what is new is trained whole, so set lora.rank=0"
        )
    return base


def _with_branches(experiment: Experiment, weights: dict[str, Array], mesh: Mesh | None) -> dict[str, Array]:
    """The weights, and those of the run's transformer that they lack, drawn by the run's seed."""
    make = lambda: WanTransformer(experiment.transformer, nnx.Rngs(experiment.seed))
    missing = {name: leaf for name, leaf in abstract(make)[1].items() if name not in weights}
    if not missing:
        return weights
    where = None if mesh is None else shardings(missing, mesh)

    def draw() -> dict[str, Array]:  # of the whole network, whose other parts the compiler leaves out
        made = parameters(make())
        return {name: made[name] for name in missing}

    return dict(sorted((weights | jax.jit(draw, out_shardings=where)()).items()))


def _check(experiment: Experiment, field: str, found: Any, wanted: Any) -> None:
    """Raises UsageError unless the sizes are those that the experiment names; it may compute in another dtype."""
    if type(found) is type(wanted):
        names = [each.name for each in dataclasses.fields(wanted) if each.name != "dtype"]
        other = [name for name in names if getattr(found, name) != getattr(wanted, name)]
        if not other:
            return
        has, needs = (", ".join(f"{name}={getattr(which, name)}" for name in other) for which in (found, wanted))
    else:
        has, needs = found, wanted
    what = "text" if isinstance(wanted, UMT5Config) else "transformer"
    name = printable(getattr(experiment, field) or experiment.start_from)
    raise UsageError(f"{field} is {name}, whose {what} has {has}; the run's has {needs}")


def digest(module: nnx.Module) -> str:
    """The first 16 digits of a SHA-256 of a network's names, shapes and small parameters, which all training moves."""
    seen = hashlib.sha256()
    for name, value in parameters(module).items():
        seen.update(f"{name} {tuple(value.shape)}".encode())
        if value.ndim < 2 or value.size <= 65_536:
            seen.update(np.asarray(value).astype(np.float32).tobytes())
    return seen.hexdigest()[:16]
