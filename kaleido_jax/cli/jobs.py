"""What `kaleido generate` is asked to make: from its options, from lines `prompt@@picture@@...`, or from JSON lines."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaleido_jax.errors import InputError, UsageError, nearest_name, printable
from kaleido_jax.media.images import read_bytes
from kaleido_jax.pipeline.request import Settings, check_prompt, shown

if TYPE_CHECKING:
    from kaleido_jax.methods.scene import Scene

MAX_BYTES = 20_000_000
MAX_JOBS = 10_000
NUMBERS = ("seed", "frames", "steps", "guidance", "shift")
WORDS = ("sampler", "decode", "reference_cache")
FIELDS = ("prompt", "references", "out", "size", *WORDS, *NUMBERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make.

    references: the files of each subject. where: how errors name the line that it came from. scene: of shots, if it is
    one; the references are then those of its shots.
    """

    prompt: str
    references: tuple[tuple[str, ...], ...]
    settings: Settings
    out: Path
    where: str = ""
    scene: "Scene | None" = None


def settings_of(values: Mapping[str, Any]) -> Settings:
    """Settings from the options or fields that are given (not None). Raises UsageError that names the wrong one."""
    given = {name: values[name] for name in (*NUMBERS, *WORDS) if values.get(name) is not None}
    if values.get("size") is not None:
        given["width"], given["height"] = _size(values["size"])
    return Settings(**given)


def _size(size: Any) -> tuple[int, int]:
    """(width, height) of "96x64", "96" or 96."""
    match = re.fullmatch(r"(\d{1,5})(?:[x×*](\d{1,5}))?", str(size), re.ASCII)
    if match is None or isinstance(size, bool):
        raise UsageError(f"size is {shown(size)}; write WIDTHxHEIGHT in pixels, such as 96x96.")
    return int(match[1]), int(match[2] or match[1])


def subject_files(words: str) -> tuple[str, ...]:
    """The files of one subject: `A.png`, or several pictures of it as `A1.png,A2.png`."""
    if os.path.exists(words) if "\0" not in words else False:  # a name may hold a comma
        return (words,)
    files = tuple(word for word in words.split(",") if word)
    if not files:
        raise UsageError("A reference has an empty file name; give the path of a picture.")
    return files


def read_jobs(path: Path, folder: Path, settings: Settings) -> list[Job]:
    """The jobs of a file, one a line; its fields override `settings`. Videos go to `folder`, named by line.

    Lines are `prompt@@picture@@picture...`, of which only the part before the first @@ is the prompt, or JSON objects
    with the fields of `FIELDS`. Relative paths of pictures are looked for beside the file, then in the current folder.

    Raises:
      InputError: for the first wrong line, named by its number; nothing has been made then.
    """
    name = printable(str(path))
    try:
        text = read_bytes(path, MAX_BYTES, "a text file of prompts").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    # Not splitlines(): a prompt may hold U+2028 and the like.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{name}: holds no prompt; write one a line, as prompt@@picture@@picture.")
    if len(lines) > MAX_JOBS:
        raise InputError(f"{name}: has {len(lines)} prompts, and at most {MAX_JOBS} are taken; split the file.")
    jobs, taken = [], {}
    for number, line in lines:
        where = f"{name}, line {number}"
        try:
            fields = _json_fields(line) if line.startswith("{") else _plain_fields(line)
            job = _job(fields, number, path.parent, folder, settings, where)
        except (InputError, UsageError) as error:
            raise InputError(f"{where}: {error}") from None
        if job.out in taken:
            raise InputError(f"{where}: writes {printable(str(job.out))}, as line {taken[job.out]} does.")
        taken[job.out] = number
        jobs.append(job)
    return jobs


def _plain_fields(line: str) -> dict[str, Any]:
    prompt, *pictures = line.split("@@")
    return {"prompt": prompt, "references": [list(subject_files(words.strip())) for words in pictures]}


def _json_fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON ({error}).") from None
    for field in fields:
        if field not in FIELDS:
            nearest = nearest_name(field, FIELDS)
            hint = f"did you mean {nearest!r}?" if nearest else f"known: {', '.join(FIELDS)}."
            raise InputError(f"There is no field {printable(field)!r}; {hint}")
    return fields


def _job(fields: Mapping[str, Any], number: int, beside: Path, folder: Path, settings: Settings, where: str) -> Job:
    own = {name: getattr(settings, name) for name in (*NUMBERS, *WORDS)}
    own |= {name: value for name, value in fields.items() if name in own and value is not None}
    whole = settings_of(own | {"size": fields.get("size")})
    if fields.get("size") is None:
        whole = dataclasses.replace(whole, height=settings.height, width=settings.width)
    return Job(
        prompt=check_prompt(fields.get("prompt")),
        references=tuple(_files(fields.get("references"), beside)),
        settings=whole,
        out=folder / _out(fields.get("out"), number),
        where=where,
    )


def _files(references: Any, beside: Path) -> Iterator[tuple[str, ...]]:
    if not isinstance(references, list) or not references:
        raise InputError("There is no reference picture; give a list of them, one entry a subject.")
    for entry in references:
        files = [entry] if isinstance(entry, str) else entry
        if not isinstance(files, list) or not files or not all(isinstance(file, str) and file for file in files):
            raise InputError(
                f"A reference is {shown(entry)}; give the path of a picture, or a list of paths of one subject."
            )
        yield tuple(file if "\0" in file or not (beside / file).exists() else str(beside / file) for file in files)


def _out(name: Any, number: int) -> Path:
    """The name inside the output folder: what the line says, or its number. It can never leave that folder."""
    if name is None:
        return Path(f"{number:04d}.mp4")
    if not isinstance(name, str) or not name.endswith(".mp4") or not name.isprintable():
        raise InputError(f"out is {shown(name)}; it must be a file name that ends in .mp4.")
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise InputError(f"out is {shown(name)}; it must be a relative path inside the output folder.")
    return path
