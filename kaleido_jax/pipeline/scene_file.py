"""Scene files: YAML or JSON with the prompt of the scene and its shots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kaleido_jax.errors import InputError, KaleidoError, UsageError, printable, unknown_name
from kaleido_jax.media.images import read_bytes
from kaleido_jax.methods.scene import Scene, Shot
from kaleido_jax.pipeline.request import check_prompt, shown

MAX_BYTES = 1_000_000
MAX_SHOTS = 200
FIELDS = ("prompt", "shots", "sampling", "segments", "carried")
SHOT_FIELDS = ("prompt", "condition_on", "references", "clip", "extends")


def read_scene(path: str | Path, **changed: Any) -> Scene:
    """The scene that a file describes; `changed` are fields of `Scene` that are set otherwise.

    The file has the fields `prompt`, `shots`, `sampling`, `segments` and `carried` of `Scene`; a shot is its prompt, or
    the fields of `Shot`. Relative paths are looked for beside the file, then in the current folder.

    Raises:
      InputError: the file cannot be read, or is no scene; names the file, and the shot. UsageError: as `Scene` does.
    """
    path = Path(path)
    name = printable(str(path))
    try:
        text = read_bytes(path, MAX_BYTES, "a scene file").decode("utf-8-sig")
        document = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), 120)
        raise InputError(f"{name}: is neither YAML nor JSON ({reason}).") from None
    try:
        return _scene(document, path.parent, {**changed, "file": str(path)})
    except KaleidoError as error:
        raise type(error)(f"{name}: {error}") from None


def _scene(document: Any, beside: Path, changed: Mapping[str, Any]) -> Scene:
    if not isinstance(document, dict):
        raise InputError(f"holds {shown(document)}; a scene has the fields {', '.join(FIELDS)}.")
    _known(document, FIELDS, "the scene")
    shots = document.get("shots")
    if not isinstance(shots, list) or not shots:
        raise InputError(f"shots is {shown(shots)}; it must be a list of shots, each with its prompt.")
    if len(shots) > MAX_SHOTS:
        raise InputError(f"There are {len(shots)} shots, and at most {MAX_SHOTS} are taken; write several files.")
    fields: dict[str, Any] = {"shots": tuple(_shot(shot, number, beside) for number, shot in enumerate(shots, 1))}
    if document.get("prompt"):
        fields["prompt"] = check_prompt(document["prompt"])
    for key, kind in (("sampling", str), ("segments", bool), ("carried", int)):
        value = document.get(key)
        if value is None:
            continue
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            words = {str: "a word", bool: "true or false", int: "a whole number"}
            raise InputError(f"{key} is {shown(value)}; it must be {words[kind]}.")
        fields[key] = value
    return Scene(**{**fields, **{key: value for key, value in changed.items() if value is not None}})


def _shot(shot: Any, number: int, beside: Path) -> Shot:
    fields = {"prompt": shot} if isinstance(shot, str) else shot
    if not isinstance(fields, dict):
        raise InputError(f"Shot {number} is {shown(shot)}; give its prompt, or the fields {', '.join(SHOT_FIELDS)}.")
    _known(fields, SHOT_FIELDS, f"shot {number}")
    prompt, clip = fields.get("prompt"), fields.get("clip")
    if clip is not None and not isinstance(clip, str):
        raise InputError(f"The clip of shot {number} is {shown(clip)}; it must be the path of a file.")
    references = fields.get("references") or []
    if not isinstance(references, list) or not all(isinstance(file, str) and file for file in references):
        raise InputError(f"The references of shot {number} are {shown(references)}; give a list of paths.")
    chosen = fields.get("condition_on")
    if chosen is not None and (not isinstance(chosen, list) or not all(_is_number(other) for other in chosen)):
        raise InputError(f"condition_on of shot {number} is {shown(chosen)}; give a list of numbers of shots, from 1.")
    extends = fields.get("extends") or 0
    if not _is_number(extends):
        raise InputError(f"extends of shot {number} is {shown(extends)}; it must be the number of a shot.")
    return Shot(
        prompt=check_prompt(prompt) if prompt is not None and prompt != "" else "",
        condition_on=None if chosen is None else tuple(chosen),
        references=tuple(_file(file, beside) for file in references),
        clip=_file(clip, beside) if clip else "",
        extends=extends,
    )


def _known(fields: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for field in fields:
        if field not in known:
            raise UsageError(unknown_name(f"field of {where}", str(field), known))


def _file(name: str, beside: Path) -> str:
    return name if "\0" in name or not (beside / name).exists() else str(beside / name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
