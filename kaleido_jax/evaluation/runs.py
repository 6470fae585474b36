"""A run: a folder of videos and what each of them was asked to show, in our format or another project's."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.media.images import read_bytes

FORMAT = "kaleido_jax run 1"
MANIFEST = "manifest.json"
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".gif")
MAX_BYTES = 200_000_000
# What may make an id: it becomes a part of file names.
_ID = re.compile(r"[^/\\\0]{1,200}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One reference picture.

    path: of the picture. subject: whose, from 1; 0 for the scene. mask: a picture that is white where the subject is,
    or None: then a plain white surrounding is told from the subject, and without one the subject is not cut out.
    """

    path: Path
    subject: int = 1
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RunCase:
    """One video and what it was asked to show.

    id: names it among all. video: a clip, or a folder of pictures in the order of their names. prompt: what it was
    asked for. references: what the model received. category: such as "human"; "" if there is none. masks: an .npz with
    `masks` uint8 [f, h, w], the number of the instance seen at each pixel (0 none), and `subjects` int [i], the subject
    that instance i + 1 was found as (0 unknown); or None. world: what the case
    shows, for cases of the procedural world.
    """

    id: str
    video: Path
    prompt: str = ""
    references: tuple[Reference, ...] = ()
    category: str = ""
    masks: Path | None = None
    world: Mapping[str, Any] | None = None

    @property
    def subjects(self) -> int:
        """How many subjects the references show."""
        return max((reference.subject for reference in self.references), default=0)


@dataclass(frozen=True, kw_only=True)
class Run:
    """All cases of a folder. extra: videos in it that belong to no case."""

    folder: Path
    name: str
    cases: tuple[RunCase, ...]
    extra: tuple[str, ...] = field(default=())


def read_run(
    folder: Path, *, prompts: Path | None = None, opens2v: Path | None = None, opens2v_pictures: Path | None = None
) -> Run:
    """The run in `folder`.

    With a manifest.json it is one of ours. Otherwise it is a flat folder of videos as VBench's custom input has it:
    `prompts` is VBench's JSON {file name: prompt}, and without it the prompt is the file's name without its ending and
    a trailing -<number>. With `opens2v`, a case JSON of OpenS2V-Eval, videos are <case>.mp4 and references the
    img_paths, below `opens2v_pictures` or beside the JSON.

    Raises:
      InputError: the folder, the manifest or one of its cases is wrong; the sentence names it.
    """
    if not folder.is_dir():
        raise InputError(f"{printable(str(folder))}: there is no such folder of videos.")
    if opens2v is not None:
        cases = _opens2v(folder, opens2v, opens2v_pictures or opens2v.parent)
    elif prompts is None and (folder / MANIFEST).is_file():
        return read_manifest(folder)
    else:
        cases = _vbench(folder, prompts)
    if not cases:
        raise InputError(f"{printable(str(folder))}: holds no {MANIFEST} and no videos ({', '.join(VIDEO_SUFFIXES)}).")
    return Run(folder=folder, name=folder.name, cases=cases, extra=_extra(folder, cases))


def read_manifest(folder: Path) -> Run:
    """The run that manifest.json in `folder` tells of; paths in it are relative to it."""
    path = folder / MANIFEST
    document = read_json(path)
    where = printable(str(path))
    if document.get("format") != FORMAT:
        raise InputError(f"{where}: format is {document.get('format')!r}; expected {FORMAT!r}.")
    entries = document.get("cases")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: cases must be a list with at least one case.")
    cases = tuple(_case(folder, entry, f"{where}, case {number}") for number, entry in enumerate(entries, 1))
    _unique(cases, where)
    name = document.get("name")
    name = name if isinstance(name, str) and name else folder.name
    return Run(folder=folder, name=name, cases=cases, extra=_extra(folder, cases))


def manifest_document(name: str, cases: tuple[RunCase, ...], folder: Path) -> dict[str, Any]:
    """The manifest of `cases`, whose paths lie below `folder`, as JSON."""
    relative = lambda path: None if path is None else path.relative_to(folder).as_posix()
    entries = []
    for case in cases:
        entry = asdict(case)
        entry |= {"video": relative(case.video), "masks": relative(case.masks)}
        entry["references"] = [
            {"path": relative(r.path), "subject": r.subject} | ({"mask": relative(r.mask)} if r.mask else {})
            for r in case.references
        ]
        entries.append({key: value for key, value in entry.items() if value not in (None, "", []) or key == "prompt"})
    return {"format": FORMAT, "name": name, "cases": entries}


def _case(folder: Path, entry: Any, where: str) -> RunCase:
    known = {"id", "video", "prompt", "references", "category", "masks", "world"}
    if not isinstance(entry, dict):
        raise InputError(f"{where}: is {printable(repr(entry), 60)}; expected an object with id and video.")
    unknown = sorted(set(entry) - known)
    if unknown:
        raise InputError(
            f"{where}: has the unknown field {printable(unknown[0])!r}; known: {', '.join(sorted(known))}."
        )
    texts = {key: entry.get(key, "") for key in ("id", "video", "prompt", "category")}
    for key, text in texts.items():
        if not isinstance(text, str) or (key in ("id", "video") and not text):
            raise InputError(f"{where}: {key} is {printable(repr(text), 60)}; expected a text.")
    references = entry.get("references", [])
    if not isinstance(references, list):
        raise InputError(f'{where}: references must be a list, such as [{{"path": "a.png", "subject": 1}}].')
    masks, world = entry.get("masks"), entry.get("world")
    return RunCase(
        id=texts["id"],
        video=_inside(folder, texts["video"], where),
        prompt=texts["prompt"],
        references=tuple(_reference(folder, reference, where) for reference in references),
        category=texts["category"],
        masks=None if masks is None else _inside(folder, masks, where),
        world=world if isinstance(world, dict) else None,
    )


def _reference(folder: Path, entry: Any, where: str) -> Reference:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise InputError(f"{where}: a reference is {printable(repr(entry), 60)}; expected an object with a path.")
    subject = entry.get("subject", 1)
    if not isinstance(subject, int) or not 0 <= subject <= 100:
        raise InputError(f"{where}: subject is {printable(repr(subject), 60)}; expected 0 (the scene) to 100.")
    mask = entry.get("mask")
    return Reference(
        path=_inside(folder, entry["path"], where),
        subject=subject,
        mask=None if mask is None else _inside(folder, mask, where),
    )


def _inside(folder: Path, name: Any, where: str) -> Path:
    if not isinstance(name, str) or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{where}: {printable(repr(name), 100)} is no path inside the run's folder.")
    return folder / name


def _unique(cases: tuple[RunCase, ...], where: str) -> None:
    seen: set[str] = set()
    for case in cases:
        if not _ID.fullmatch(case.id) or case.id in (".", ".."):
            raise InputError(f"{where}: the id {printable(repr(case.id), 100)} cannot be a part of a file name.")
        if case.id in seen:
            raise InputError(f"{where}: two cases have the id {printable(case.id)!r}; give each its own.")
        seen.add(case.id)


def _vbench(folder: Path, prompts: Path | None) -> tuple[RunCase, ...]:
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if prompts is None:
        return tuple(RunCase(id=path.stem, video=path, prompt=re.sub(r"-\d+$", "", path.stem)) for path in videos)
    table = read_json(prompts)
    wrong = next((key for key, text in table.items() if not isinstance(text, str)), None)
    if wrong is not None:
        raise InputError(f"{printable(str(prompts))}: the prompt of {printable(wrong)!r} is no text.")
    # Keys are file names, in VBench's own files also paths.
    cases = tuple(RunCase(id=Path(key).stem, video=folder / Path(key).name, prompt=text) for key, text in table.items())
    _unique(cases, printable(str(prompts)))
    return cases


def _opens2v(folder: Path, path: Path, pictures: Path) -> tuple[RunCase, ...]:
    cases = []
    for key, entry in read_json(path).items():
        where = f"{printable(str(path))}, case {printable(key)!r}"
        paths = entry.get("img_paths") if isinstance(entry, dict) else None
        if not isinstance(paths, list) or not all(isinstance(x, str) for x in paths):
            raise InputError(f"{where}: img_paths must be a list of paths of pictures.")
        prompt = entry.get("prompt", "")
        if not isinstance(prompt, str):
            raise InputError(f"{where}: prompt is {printable(repr(prompt), 60)}; expected a text.")
        references = tuple(
            Reference(path=_inside(pictures, name, where), subject=number) for number, name in enumerate(paths, 1)
        )
        category = re.sub(r"_\d+$", "", key)
        cases.append(
            RunCase(id=key, video=folder / f"{key}.mp4", prompt=prompt, references=references, category=category)
        )
    _unique(tuple(cases), printable(str(path)))
    return tuple(cases)


def _extra(folder: Path, cases: tuple[RunCase, ...]) -> tuple[str, ...]:
    """Videos beside those of the cases that no case names."""
    named = {case.video for case in cases}
    folders = {case.video.parent for case in cases} | {folder}
    found = (path for one in sorted(folders) if one.is_dir() for path in one.iterdir())
    return tuple(
        sorted(
            path.relative_to(folder).as_posix()
            for path in found
            if path.suffix.lower() in VIDEO_SUFFIXES and path not in named
        )
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError that names the file."""
    where = printable(str(path))
    try:
        document = json.loads(read_bytes(path, MAX_BYTES, "a JSON file").decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError | InputError):
            raise
        raise InputError(f"{where}: is not JSON ({printable(str(error), 100)}).") from None
    if not isinstance(document, dict):
        raise InputError(f"{where}: holds a {type(document).__name__}; expected a JSON object.")
    return document
