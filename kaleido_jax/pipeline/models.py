"""Models by name: those that come with the package, and folders."""

import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from kaleido_jax.errors import InputError, UsageError, printable, unknown_name

if TYPE_CHECKING:
    from kaleido_jax.bundle import BundleConfig

DEFAULT = "miniature"
METHODS = ("kaleido", "anyid", "contextanyone", "lct", "wan")  # of methods.registry, which would load jax


def shipped() -> dict[str, Path]:
    """Folders of the models that come with the package, by name."""
    weights = Path(str(resources.files("kaleido_jax"))) / "weights"
    folders = sorted(weights.iterdir()) if weights.is_dir() else []
    return {folder.name: folder for folder in folders if (folder / "config.json").is_file()}


def find(model: str | Path) -> Path:
    """The folder of a model that is named or given as a path.

    Raises:
      UsageError: there is neither; says the nearest name.
    """
    names = shipped()
    if str(model) in names:
        return names[str(model)]
    if os.path.isdir(model):
        return Path(model)
    if os.path.exists(model):
        raise UsageError(f"The model {printable(str(model))!r} is a file; give the folder that holds its config.json.")
    if isinstance(model, Path) or "/" in str(model):
        raise UsageError(f"There is no model folder {printable(str(model))!r}.")
    raise UsageError(f"{unknown_name('model', str(model), names)} The path of a model folder works too.")


def is_flux(model: str | Path) -> bool:
    """Whether a model is a folder that holds a FLUX.1 release as diffusers lays it out."""
    return os.path.isdir(os.path.join(model, "transformer")) and os.path.isdir(os.path.join(model, "text_encoder_2"))


def check_method(method: str | None, config: "BundleConfig") -> None:
    """Raises UsageError unless `method` (None: the model's own) exists and is what the model was trained with."""
    if method is not None and method not in METHODS:
        raise UsageError(unknown_name("method", method, METHODS))
    if config.method not in METHODS:
        raise InputError(
            f"The model {config.name} has method {printable(config.method)!r}; this version runs {', '.join(METHODS)}."
        )
    if method not in (None, config.method):
        raise UsageError(f"The model {config.name} was trained with method {config.method}, not {method}.")
