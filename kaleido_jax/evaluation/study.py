"""Blind studies with people: two videos and the questions of a paper, or a ranking of several videos.

A study is a page `index.html` with copies of the videos under names that say
nothing, below `page/`: give participants that. Which video is whose stands in `key.json` beside it: keep that.
Votes are exported by the page as JSON and put together by `tally`.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.evaluation.comparison import Results
from kaleido_jax.evaluation.intervals import Share, mean_interval
from kaleido_jax.evaluation.runs import read_json
from kaleido_jax.evaluation.videos import pictures_of
from kaleido_jax.media.storage import make_writable_folder, storage_error, written_whole
from kaleido_jax.names import lookup

FORMAT, VOTES = "kaleido_jax study 1", "kaleido_jax votes 1"
MAX_RANKED = 6
PAGE = Path(__file__).with_name("study.html")
# Questions as the papers name them: Kaleido's user study (section 5.3) and AnyID's.
QUESTIONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "kaleido": (
        ("video quality", "Which video looks better?"),
        ("prompt alignment", "Which video shows better what the text says?"),
        ("s2v consistency", "In which video do the subjects look more like the reference pictures?"),
        ("s2v decoupling", "Which video copies less of the reference pictures' backgrounds and poses?"),
    ),
    "anyid": (
        ("identity fidelity", "In which video is the person more like the one of the reference pictures?"),
        ("element consistency", "In which video do clothes and things look more like those of the references?"),
        ("prompt controllability", "Which video does better what the text asks for?"),
        ("visual quality", "Which video looks better?"),
    ),
    "ranking": (("rank", "Order the videos from best (1) to worst."),),
}


def write_study(runs: Sequence[Results], folder: Path, *, questions: str, cases: int, seed: int) -> Path:
    """Makes the page of a study of `cases` cases that all runs have; returns its path.

    Two runs are compared side by side with a question set of QUESTIONS; with "ranking", two to `MAX_RANKED` runs are
    ordered. Sides and cases are drawn from `seed`; each participant sees the cases in another order.

    Raises:
      UsageError: the number of runs does not fit the questions, or the folder is not empty.
      InputError: the runs have no case in common, or a video is missing.
    """
    asked = lookup(QUESTIONS, questions, "set of questions")
    if questions == "ranking" and not 2 <= len(runs) <= MAX_RANKED:
        raise UsageError(f"There are {len(runs)} runs; a ranking takes 2 to {MAX_RANKED}.")
    if questions != "ranking" and len(runs) != 2:
        raise UsageError(f"There are {len(runs)} runs; side by side takes 2, and --questions ranking more.")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise UsageError(f"Two runs are both called {printable(names[0])!r}; their manifests must name them apart.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{printable(str(folder))} is not empty; give another --out.")
    tables = [{item["case"]: item for item in run.document["videos"]} for run in runs]
    common = [case for case in tables[0] if all(case in table for table in tables)]
    if not common:
        raise InputError("The runs have no case in common; a study needs the same cases in all of them.")
    rng = np.random.Generator(np.random.PCG64(seed))
    chosen = [common[i] for i in sorted(rng.permutation(len(common))[:cases].tolist())]
    make_writable_folder(folder / "page" / "media", 4_000_000)
    shown, key = [], {}
    for number, case in enumerate(chosen):
        order = rng.permutation(len(runs)).tolist()
        files = []
        for side, which in enumerate(order):
            name = f"{number:04d}{chr(ord('a') + side)}"
            files.append(_copied(runs[which], tables[which][case]["video"], folder / "page" / "media", name))
        first = tables[0][case]
        references = [
            _copied(runs[0], path, folder / "page" / "media", f"{number:04d}r{i}")
            for i, path in enumerate(first["references"])
        ]
        item = f"{number:04d}"
        shown.append({"item": item, "prompt": first["prompt"], "videos": files, "references": references})
        key[item] = {"case": case, "sides": [names[which] for which in order]}
    document = {
        "questions": [{"name": name, "text": text} for name, text in asked],
        "ranking": questions == "ranking",
        "items": shown,
        "format": VOTES,
        "study": hashlib.sha256(json.dumps([questions, key]).encode()).hexdigest()[:16],
    }
    # Inside a script, nothing may end it: < is written as an escape.
    data = json.dumps(document).replace("<", "\\u003c")
    page = PAGE.read_text(encoding="utf-8").replace("/*DATA*/null", data)
    path = folder / "page" / "index.html"
    hidden = {"format": FORMAT, "study": document["study"], "questions": [name for name, _ in asked], "items": key}
    for file, content in ((path, page), (folder / "key.json", json.dumps(hidden, indent=1) + "\n")):
        with written_whole(file) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return path


def _copied(run: Results, path: str, folder: Path, name: str) -> list[str]:
    """The links, from the page, of a copy of a file, or of all pictures of a folder."""
    source = run.folder / path
    if not source.exists():
        raise InputError(f"{printable(str(source))}: is missing; a study needs every video.")
    sources = pictures_of(source) if source.is_dir() else [source]
    links = []
    for number, file in enumerate(sources):
        copy = folder / (f"{name}_{number:03d}{file.suffix.lower()}" if source.is_dir() else name + file.suffix.lower())
        try:
            shutil.copyfile(file, copy)
        except OSError as error:
            raise storage_error(copy, error) from error
        links.append(quote(f"media/{copy.name}"))
    return links


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the votes say.

    wins: of each question, the run that is named first in `pair`, how often it won and of how many decided votes; ties:
    votes for neither. ranks: of each run, mean score of its place and the 95 % interval over votes, where the best of n
    counts n and the last 1 (LCT's average human rank). participants, votes: how many.
    """

    pair: tuple[str, ...]
    wins: Mapping[str, Share]
    ties: Mapping[str, int]
    ranks: Mapping[str, tuple[float, float, float]]
    participants: int
    votes: int


def tally(key: Path, votes: Sequence[Path]) -> Tally:
    """Puts the exported votes of a study together. A participant's later vote on an item replaces the earlier one.

    Raises:
      InputError: a file is of another study or broken, or names items that do not exist.
    """
    hidden = read_json(key)
    if hidden.get("format") != FORMAT:
        raise InputError(f"{printable(str(key))}: format is {hidden.get('format')!r}; expected {FORMAT!r}.")
    found: dict[tuple[str, str, str], Any] = {}
    for path in votes:
        document = read_json(path)
        if document.get("format") != VOTES or document.get("study") != hidden["study"]:
            raise InputError(f"{printable(str(path))}: holds no votes of the study {hidden['study']!r}.")
        person = str(document.get("participant", path.name))
        for vote in document.get("votes", []):
            item, question = (str(vote.get(field)) if isinstance(vote, dict) else "" for field in ("item", "question"))
            if item not in hidden["items"] or question not in hidden["questions"]:
                raise InputError(f"{printable(str(path))}: a vote names the unknown {printable(item)!r}, {question!r}.")
            found[person, item, question] = _checked(vote.get("choice"), hidden["items"][item]["sides"], path)
    names = tuple(sorted({side for item in hidden["items"].values() for side in item["sides"]}))
    wins, ties = {}, {}
    places: dict[str, list[float]] = {name: [] for name in names}
    for question in hidden["questions"]:
        choices = [(hidden["items"][item]["sides"], c) for (_, item, q), c in found.items() if q == question]
        for sides, order in (pair for pair in choices if isinstance(pair[1], list)):
            for place, side in enumerate(order):
                places[sides[side]].append(float(len(sides) - place))
        decided = [sides[choice] for sides, choice in choices if isinstance(choice, int) and choice >= 0]
        if question != "rank":
            wins[question] = Share(decided.count(names[0]), len(decided))
            ties[question] = sum(choice == -1 for _, choice in choices)
    ranks = {name: mean_interval(np.array(values)) for name, values in places.items() if values}
    people = len({person for person, _, _ in found})
    return Tally(pair=names, wins=wins, ties=ties, ranks=ranks, participants=people, votes=len(found))


def _checked(choice: Any, sides: Sequence[str], path: Path) -> Any:
    """A side (-1 for neither), or for a ranking all sides from best to worst."""
    if isinstance(choice, list) and sorted(map(str, choice)) == sorted(map(str, range(len(sides)))):
        return choice
    if isinstance(choice, int) and not isinstance(choice, bool) and -1 <= choice < len(sides):
        return choice
    shown = printable(repr(choice), 60)
    raise InputError(f"{printable(str(path))}: a choice is {shown}; expected -1 to {len(sides) - 1} or an order.")
