"""The record of a video: everything that is needed to make it again, as JSON."""

import functools
import hashlib
import json
import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaleido_jax.config import to_json
from kaleido_jax.errors import InputError

if TYPE_CHECKING:
    from kaleido_jax.bundle import BundleConfig
    from kaleido_jax.methods.scene import Scene
    from kaleido_jax.pipeline.loras import LoraFile
    from kaleido_jax.pipeline.references import Reference
    from kaleido_jax.pipeline.request import Settings

FORMAT = "kaleido_jax generation 1"
_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "pillow", "av", "tokenizers")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _weights(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> dict[str, str]:
    return {name: file_sha256(folder / name) for name, _, _ in stamps}


def weights_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file and the tokenizer of a model folder, by name; read once while they stay the same."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")])
    if not files:
        raise InputError(f"The model folder {folder} holds no weights (*.safetensors).")
    return _weights(folder, tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


def request_of(
    prompt: str,
    references: "tuple[Reference, ...]",
    settings: "Settings",
    config: "BundleConfig",
    folder: Path | None,
    loras: "Sequence[LoraFile]" = (),
    scene: "Scene | None" = None,
) -> dict[str, Any]:
    """What determines the pixels: equal requests on equal hardware and versions give equal videos."""
    return {
        "prompt": prompt,
        "references": [{"subject": r.subject, "frames": len(r.pixels), "sha256": r.sha256} for r in references],
        "settings": to_json(settings),
        "model": {"config": json.loads(json.dumps(to_json(config))), "weights": weights_of(folder) if folder else None},
        "loras": [file.request() for file in loras],
        "scene": _scene_request(scene),
        "version": _version("kaleido_jax"),
    }


def _scene_request(scene: "Scene | None") -> dict[str, Any] | None:
    """What a scene asks for, without the names of its files, whose pixels are among the references."""
    if scene is None:
        return None
    shots = [
        {
            "prompt": shot.prompt,
            "condition_on": None if shot.condition_on is None else list(shot.condition_on),
            "references": len(shot.references),
            "clip": bool(shot.clip),
            "extends": shot.extends,
        }
        for shot in scene.shots
    ]
    return {"sampling": scene.sampling, "segments": scene.segments, "carried": scene.carried, "shots": shots}


def record_of(
    request: dict[str, Any],
    references: "tuple[Reference, ...]",
    settings: "Settings",
    model: str,
    outputs: dict[str, str],
    loras: "Sequence[LoraFile]" = (),
    scene: "Scene | None" = None,
) -> dict[str, Any]:
    """The whole record: the request, what it was made on and with, the files' hashes, and the command to repeat it."""
    command = _command(request["prompt"], references, settings, model, loras, scene)
    files = [reference.name for reference in references]
    return {"format": FORMAT, "request": request, "files": files, "command": command} | made() | {"outputs": outputs}


def made() -> dict[str, Any]:
    """With which libraries, and on which device."""
    import jax

    device = jax.devices()[0]
    return {
        "made_with": {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES},
        "made_on": {
            "platform": f"{platform.system()} {platform.machine()}",
            "backend": device.platform,
            "device": device.device_kind,
        },
    }


def read_record(path: Path) -> dict[str, Any] | None:
    """The record at `path`, or None if there is none or it is none of ours."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def differences(record: dict[str, Any], request: dict[str, Any]) -> list[str]:
    """Names of the parts of a request that are not as in the record; empty: the same video."""
    recorded = record.get("request")
    if not isinstance(recorded, dict):
        return ["everything"]
    return [name for name, value in request.items() if recorded.get(name) != value]


def _command(
    prompt: str,
    references: "tuple[Reference, ...]",
    settings: "Settings",
    model: str,
    loras: "Sequence[LoraFile]",
    scene: "Scene | None",
) -> str | None:
    """The command line that asks for this video again, or None if a reference or a scene came from memory."""
    if not all(reference.name for reference in references) or (scene is not None and not scene.file):
        return None
    subjects: dict[int, list[str]] = {}
    for reference in references:
        subjects.setdefault(reference.subject, []).append(reference.name)
    words = ["kaleido", "generate"]
    if scene is None:
        for names in subjects.values():
            words += ["--reference", ",".join(names)]
        words += ["--prompt", prompt]
    else:
        words += ["--scene", scene.file]
        words += ["--sampling", scene.sampling] if scene.sampling else []
    words += ["--model", model, "--size", f"{settings.width}x{settings.height}"]
    for file in loras:
        words += [file.option, f"{file.path}:{file.strength}"]
    for name in ("frames", "seed", "steps", "guidance", "shift", "sampler", "decode"):
        words += [f"--{name}", str(getattr(settings, name))]
    if settings.reference_cache != "exact":
        words += ["--reference-cache", settings.reference_cache]
    return shlex.join(words)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
