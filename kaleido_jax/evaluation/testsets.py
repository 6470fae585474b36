"""Test sets in the forms of the papers: references, prompts, a manifest to evaluate by, and jobs for kaleido generate.

Subjects come from a folder of pictures, FOLDER/<category>/<subject>/<picture>, or from the procedural world's held-out
split, whose families stand for the categories. The papers' own pictures and prompts are not published; these are their
forms: how many subjects, references and cases there are, and what a case consists of.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from kaleido_jax.data.captions import caption
from kaleido_jax.data.drawing import generator, pick
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.scenes import SCENES
from kaleido_jax.data.world import World
from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.evaluation.runs import MANIFEST, Reference, RunCase, manifest_document
from kaleido_jax.media.images import read_image
from kaleido_jax.media.storage import make_writable_folder, written_whole
from kaleido_jax.names import lookup
from kaleido_jax.pipeline.group_file import Picture as GroupPicture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CATEGORIES = ("human", "animal", "cartoon", "object")
KALEIDO_REFERENCES, KALEIDO_MULTIPLE = 400, 175  # "400 high-quality reference images and over 170 multisubject cases"
PEOPLE, PICTURES = 50, 5  # AnyID's
SETS, SET_PICTURES = 25, 5  # of CharaConsist's forms; the paper gives no numbers
SCENES_OF_SHOTS, SHOTS = 40, 4  # likewise LCT's
ACTIONS = ("walks slowly", "turns around", "looks up", "stands still", "moves to the left", "comes closer")
PLACES = ("on a beach", "in a snowy forest", "in a busy street", "in a bright kitchen", "on a stage", "in a garden")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Someone or something with pictures. category, name: such as "animal" and "dog". number: which one."""

    category: str
    name: str
    number: int


@runtime_checkable
class Catalogue(Protocol):
    """Where subjects, their pictures and words for them come from."""

    def subjects(self, categories: Sequence[str], count: int) -> list[Subject]:
        """At most `count` subjects of these categories, taking turns."""
        ...

    def pictures(self, subject: Subject, count: int) -> list[np.ndarray]:
        """At most `count` pictures of it, uint8 `[h, w, 3]`."""
        ...

    def prompt(self, number: int, subjects: Sequence[Subject], *, scene: int | None = None) -> str:
        """A sentence about them, another one for every number; scene: the place stays the same for the same one."""
        ...

    def parts(self, number: int, subject: Subject, *, scene: int) -> tuple[str, str, str]:
        """(place, subject, what it does) in words, another doing for every number, the same place for the same one."""
        ...

    def truth(self, subjects: Sequence[Subject]) -> Mapping[str, object] | None:
        """What the manifest says of them for the world's own judges."""
        ...


class Folder:
    """FOLDER/<category>/<subject>/<picture>; category folders are named human, animal, cartoon, object."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise InputError(f"{printable(str(folder))}: there is no such folder of pictures.")
        self._files: dict[Subject, list[Path]] = {}
        for place in sorted(folder.glob("*/*")):
            files = (
                sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES) if place.is_dir() else []
            )
            if files:
                subject = Subject(category=place.parent.name, name=place.name, number=len(self._files))
                self._files[subject] = files
        if not self._files:
            raise InputError(f"{printable(str(folder))}: holds no pictures as <category>/<subject>/<picture>.")

    def subjects(self, categories: Sequence[str], count: int) -> list[Subject]:
        lists = [[subject for subject in self._files if subject.category == category] for category in categories]
        for category, found in zip(categories, lists):
            if not found:
                raise InputError(f"There are no subjects of the category {category!r}; this form needs them.")
        return _in_turns(lists, count)

    def pictures(self, subject: Subject, count: int) -> list[np.ndarray]:
        return [read_image(file) for file in self._files[subject][:count]]

    def prompt(self, number: int, subjects: Sequence[Subject], *, scene: int | None = None) -> str:
        rng = generator(0x7E57, number)
        action = pick(rng, ACTIONS)
        place = pick(rng if scene is None else generator(0x7E58, scene), PLACES)
        names = " and ".join(f"the {subject.name.replace('_', ' ')}" for subject in subjects)
        if len(subjects) > 1:
            return f"{names} are together {place}, and the first {action}"
        return f"{names} {action} {place}"

    def parts(self, number: int, subject: Subject, *, scene: int) -> tuple[str, str, str]:
        return _parts(number, f"the {subject.name.replace('_', ' ')}", scene)

    def truth(self, subjects: Sequence[Subject]) -> Mapping[str, object] | None:
        return None


class Procedural:
    """The world's held-out subjects: creatures stand for humans and animals, drawings for cartoons."""

    _FAMILIES: Mapping[str, tuple[str, ...]] = {
        "human": ("creature",), "animal": ("creature",), "cartoon": ("blob", "polygon", "strokes", "cutout"),
        "object": ("object",),
    }  # fmt: skip

    def __init__(self, world: World):
        self._world = world
        self._identity = functools.lru_cache(maxsize=2048)(world.identity)

    def subjects(self, categories: Sequence[str], count: int) -> list[Subject]:
        share = -(-count // len(categories))
        lists: list[list[Subject]] = [[] for _ in categories]
        number = 1
        while any(len(found) < share for found in lists):
            looks = self._world.looks(self._identity(number))
            for category, found in zip(categories, lists):
                if len(found) < share and looks.family in self._FAMILIES[category]:
                    found.append(Subject(category=category, name=looks.noun, number=number))
                    break
            number += 2  # odd numbers are held out
        return _in_turns(lists, count)

    def pictures(self, subject: Subject, count: int) -> list[np.ndarray]:
        identity = self._identity(subject.number)
        return [self._world.picture(identity, 2**30 + 8 * subject.number + i, split="heldout") for i in range(count)]

    def prompt(self, number: int, subjects: Sequence[Subject], *, scene: int | None = None) -> str:
        rng = generator(0x7E57, number)
        motions = tuple(pick(rng, MOTIONS) for _ in subjects)
        place = pick(rng if scene is None else generator(0x7E58, scene), tuple(SCENES))
        looks = tuple(self._world.looks(self._identity(subject.number)) for subject in subjects)
        return caption(rng, looks[:2], motions[:2], place, False)

    def parts(self, number: int, subject: Subject, *, scene: int) -> tuple[str, str, str]:
        looks = self._world.looks(self._identity(subject.number))
        return _parts(number, " ".join(word for word in ("a", looks.colour, looks.texture, looks.noun) if word), scene)

    def truth(self, subjects: Sequence[Subject]) -> Mapping[str, object] | None:
        return {"identities": [subject.number for subject in subjects]}


def _parts(number: int, subject: str, scene: int) -> tuple[str, str, str]:
    return pick(generator(0x7E58, scene), PLACES), subject, pick(generator(0x7E57, number), ACTIONS)


def _in_turns(lists: Sequence[list[Subject]], count: int) -> list[Subject]:
    """One of each list, again and again, until there are `count` or no more."""
    longest = max(map(len, lists))
    rows = [[found[i] for found in lists if i < len(found)] for i in range(longest)]
    return [subject for row in rows for subject in row][:count]


@dataclass
class Draft:
    """A case to be written: which subjects with how many pictures each, category and prompt.

    lines: of a group of pictures, the prompt of each as CharaConsist's files have it. shots: of a scene, the prompts of
    its shots; the prompt is then the scene's.
    """

    id: str
    category: str
    prompt: str
    subjects: list[Subject] = field(default_factory=list)
    pictures: int = 1
    lines: list[GroupPicture] = field(default_factory=list)
    shots: list[str] = field(default_factory=list)


def kaleido(catalogue: Catalogue) -> list[Draft]:
    """Kaleido, 5.2: humans, animals, cartoons and objects; 400 references, 175 cases of several subjects.

    With fewer subjects, the same share of cases with several. Every reference is in one case.
    """
    subjects = catalogue.subjects(CATEGORIES, KALEIDO_REFERENCES)
    multiple = len(subjects) * KALEIDO_MULTIPLE // KALEIDO_REFERENCES
    drafts = []
    for number in range(multiple):
        pair = subjects[2 * number : 2 * number + 2]
        category = "+".join(sorted({subject.category for subject in pair}))
        drafts.append(Draft(f"multiple_{number}", category, catalogue.prompt(number, pair), pair))
    for number, subject in enumerate(subjects[2 * multiple :]):
        prompt = catalogue.prompt(KALEIDO_MULTIPLE + number, [subject])
        drafts.append(Draft(f"single_{number}", subject.category, prompt, [subject]))
    return drafts


def anyid(catalogue: Catalogue) -> list[Draft]:
    """AnyID: 50 people with 5 references each, the first one primary; 50 prompts about the person alone (IPT2V), and 50
    with an element, which is subject 2 (IEPT2V)."""
    people = catalogue.subjects(("human",), PEOPLE)
    elements = catalogue.subjects(("object",), PEOPLE)
    drafts = []
    for number, person in enumerate(people):
        drafts.append(Draft(f"ipt2v_{number}", "IPT2V", catalogue.prompt(number, [person]), [person], PICTURES))
        both = [person, elements[number % len(elements)]]
        drafts.append(Draft(f"iept2v_{number}", "IEPT2V", catalogue.prompt(PEOPLE + number, both), both, PICTURES))
    return sorted(drafts, key=lambda draft: draft.category, reverse=True)


def characonsist(catalogue: Catalogue) -> list[Draft]:
    """CharaConsist: sets of pictures of one character, in one place (keep) or in another for each (switch).

    The prompts of a set are joined by " || ". There are no references.
    """
    drafts = []
    for number, subject in enumerate(catalogue.subjects(("human", "animal"), SETS)):
        for kind in ("keep", "switch"):
            scenes = [number if kind == "keep" else 100 * number + i for i in range(SET_PICTURES)]
            parts = [catalogue.parts(100 * number + i, subject, scene=scene) for i, scene in enumerate(scenes)]
            lines = [GroupPicture(background=place, characters=(who,), action=does) for place, who, does in parts]
            prompt = " || ".join(line.prompt for line in lines)
            drafts.append(Draft(f"{kind}_{number}", kind, prompt, lines=lines))
    return drafts


def lct(catalogue: Catalogue) -> list[Draft]:
    """LCT: scenes of shots, as "SCENE || SHOT || SHOT ..."; there are no references."""
    drafts = []
    for number, subject in enumerate(catalogue.subjects(("human", "animal"), SCENES_OF_SHOTS)):
        shots = [catalogue.prompt(100 * number + i, [subject], scene=number) for i in range(SHOTS + 1)]
        drafts.append(Draft(f"scene_{number}", "scene", " || ".join(shots), shots=shots))
    return drafts


FORMS: Mapping[str, Callable[[Catalogue], list[Draft]]] = {
    "kaleido": kaleido, "anyid": anyid, "characonsist": characonsist, "lct": lct,
}  # fmt: skip


def write_test_set(
    form: str, catalogue: Catalogue, folder: Path, *, cases: int | None = None, references: int | None = None
) -> tuple[RunCase, ...]:
    """Writes manifest.json and what `kaleido generate` makes the cases from into an empty folder.

    Videos are expected at videos/<case>.mp4. With references, these and jobs.jsonl are written: `kaleido generate
    --prompts FOLDER/jobs.jsonl --out FOLDER/videos`. Scenes are scenes/<case>.json: `--scene FOLDER/scenes/<case>.json
    --out FOLDER/videos/<case>.mp4`. Groups of pictures are keep.txt and switch.txt: `--group FOLDER/keep.txt --out
    FOLDER/videos/keep`.

    Args:
      cases: only the first so many of each category.
      references: at most so many pictures of a subject, so that methods that take one are compared on equal terms.

    Raises:
      UsageError: there is no such form, or the folder is not empty.
      InputError: the catalogue lacks subjects that the form needs, or a picture cannot be read.
    """
    make = lookup(FORMS, form, "form of a test set")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{printable(str(folder))} is not empty; give another --out.")
    drafts = make(catalogue)
    if cases is not None:
        count: dict[str, int] = {}
        kept = []
        for draft in drafts:
            count[draft.category] = count.get(draft.category, 0) + 1
            kept += [draft] if count[draft.category] <= cases else []
        drafts = kept
    for draft in drafts:
        draft.pictures = min(draft.pictures, references or draft.pictures)
    make_writable_folder(folder / "references", 50_000 * sum(len(d.subjects) * d.pictures for d in drafts))
    if not any(draft.subjects for draft in drafts):
        (folder / "references").rmdir()
    done = tuple(_written(draft, catalogue, folder) for draft in drafts)
    done = tuple(_in_groups(drafts, done, folder))
    document = manifest_document(f"{form} test set", done, folder)
    _write(folder / MANIFEST, json.dumps(document, indent=1, ensure_ascii=False))
    jobs = [_job(case, folder) for case in done if case.references]
    if jobs:
        _write(folder / "jobs.jsonl", "\n".join(json.dumps(job, ensure_ascii=False) for job in jobs))
    return done


def _in_groups(drafts: Sequence[Draft], cases: Sequence[RunCase], folder: Path) -> Iterator[RunCase]:
    """The cases, those of groups where `kaleido generate --group` puts their pictures; writes the groups' files."""
    groups: dict[str, list[str]] = {}
    for draft, case in zip(drafts, cases):
        if draft.lines:
            groups.setdefault(draft.category, []).append("\n".join(line.line for line in draft.lines))
            video = folder / "videos" / draft.category / f"group_{len(groups[draft.category])}"
            case = dataclasses.replace(case, video=video)
        yield case
    for category, texts in groups.items():
        _write(folder / f"{category}.txt", "\n\n".join(texts))


def _written(draft: Draft, catalogue: Catalogue, folder: Path) -> RunCase:
    references = []
    for subject, who in enumerate(draft.subjects, 1):
        count = draft.pictures if subject == 1 else 1  # an element has one picture
        for number, picture in enumerate(catalogue.pictures(who, count)):
            path = folder / "references" / f"{draft.id}_{subject}_{number}.png"
            with written_whole(path) as temporary:
                Image.fromarray(picture).save(temporary)
            references.append(Reference(path=path, subject=subject))
    if draft.shots:
        (folder / "scenes").mkdir(exist_ok=True)
        scene, *shots = draft.shots
        _write(folder / "scenes" / f"{draft.id}.json", json.dumps({"prompt": scene, "shots": shots}, indent=1))
    return RunCase(
        id=draft.id, video=folder / "videos" / f"{draft.id}.mp4", prompt=draft.prompt, references=tuple(references),
        category=draft.category, world=catalogue.truth(draft.subjects) if draft.subjects else None,
    )  # fmt: skip


def _job(case: RunCase, folder: Path) -> dict[str, object]:
    """A line for `kaleido generate --prompts`."""
    groups: dict[int, list[str]] = {}
    for reference in case.references:
        groups.setdefault(reference.subject, []).append(reference.path.relative_to(folder).as_posix())
    return {"prompt": case.prompt, "references": list(groups.values()), "out": f"{case.id}.mp4"}


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
