"""The files of preference pairs, and which pairs are worth training on.

A folder of pairs has `pairs.jsonl`, one line a pair: two clips that a model made of one request, the request, and what
annotators look at. `votes.jsonl` holds one line a judgement. `select` writes the pairs of which one clip is better
along both tracks as a preference file, which training reads.
"""

import dataclasses
import json
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kaleido_jax.config import from_json, to_json
from kaleido_jax.errors import InputError, StorageError, UsageError, printable, unknown_name

PAIRS, VOTES = "pairs.jsonl", "votes.jsonl"
# Identity: which clip keeps the identity better, beside all clips of its group. Control: which one fits the prompt
# better, beside the primary reference, and keeps what the prompt does not name.
TRACKS = ("identity", "control")
SIDES = ("a", "b")
CHOICES = (*SIDES, "same")
TARGET = 1000  # valid pairs that the paper trains on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """Two clips of one request. All files are relative to the folder.

    a, b: the clips. prompt: the differential prompt. references: the primary one first. group: every clip and picture
    of the identity that annotators of the identity see. latents: an .npz with `a`, `b` [f, h, w, z], `references`
    [r, f, h, w, z] and `reference_frames` [r]. seeds: of the clips. truth: what the procedural world knows, if it is of
    that.
    """

    id: str
    prompt: str
    references: tuple[str, ...]
    group: tuple[str, ...]
    a: str
    b: str
    latents: str
    seeds: tuple[int, int]
    truth: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.references, *self.group, self.a, self.b)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """A judgement of a pair along one track, by a person or an automatic judge."""

    pair: str
    track: str
    choice: str
    by: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """A pair to be trained on. latents: relative to the preference file's folder, as those of `Pair`."""

    pair: str
    prompt: str
    latents: str
    chosen: str
    rejected: str


def read_pairs(folder: str | Path) -> dict[str, Pair]:
    """The pairs of a folder by id. Raises InputError for a line that is none, or for an id that comes twice."""
    pairs: dict[str, Pair] = {}
    for where, line in _lines(Path(folder) / PAIRS, "a folder of pairs, see `kaleido pairs sample`"):
        pair = _read(Pair, line, where)
        if pair.id in pairs:
            raise InputError(f"{where}: the pair {printable(pair.id)!r} is there already.")
        for file in (*pair.files, pair.latents):
            if not inside(Path(folder), file):
                raise InputError(f"{where}: {printable(file)!r} leads out of the folder.")
        pairs[pair.id] = pair
    return pairs


def read_votes(folder: str | Path, pairs: Mapping[str, Pair]) -> list[Vote]:
    """The votes of a folder; there may be none. Raises InputError for one of no pair, track or side that there is."""
    path = Path(folder) / VOTES
    if not path.exists():
        return []
    votes = []
    for where, line in _lines(path, "a file of votes"):
        vote = _read(Vote, line, where)
        for what, value, known in (
            ("pair", vote.pair, pairs),
            ("track", vote.track, TRACKS),
            ("choice", vote.choice, CHOICES),
        ):
            if value not in known:
                raise InputError(f"{where}: {unknown_name(what, str(value), list(known)[:20])}")
        votes.append(vote)
    return votes


def append(folder: str | Path, name: str, record: Pair | Vote) -> None:
    """Adds a line to a file of the folder, whole: a stop loses at most what was not yet given. Raises StorageError."""
    path = Path(folder) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(record), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{printable(str(path))} cannot be written: {error.strerror}.") from error


def dominating(pairs: Mapping[str, Pair], votes: Sequence[Vote]) -> dict[str, str]:
    """Which side of a pair is better along both tracks, for the pairs of which one is ("strict Pareto dominance").

    A track is won by the side with strictly more votes than the other side, and not fewer than "same".

    Raises:
      InputError: somebody voted for both sides of a pair along one track.
    """
    counts: dict[tuple[str, str], dict[str, int]] = {}
    seen: dict[tuple[str, str, str], str] = {}
    for vote in votes:
        key = (vote.pair, vote.track, vote.by)
        if key in seen:
            if seen[key] != vote.choice:
                raise InputError(
                    f"{printable(vote.by)} judged the {vote.track} of pair {printable(vote.pair)} twice, once "
                    f"{seen[key]!r} and once {vote.choice!r}; keep one of the two lines of {VOTES}."
                )
            continue
        seen[key] = vote.choice
        track = counts.setdefault((vote.pair, vote.track), dict.fromkeys(CHOICES, 0))
        track[vote.choice] += 1
    winners = {}
    for name in pairs:
        sides = {_winner(counts.get((name, track))) for track in TRACKS}
        if len(sides) == 1 and (side := sides.pop()):
            winners[name] = side
    return winners


def _winner(count: Mapping[str, int] | None) -> str:
    if count is None:
        return ""
    for side, other in (SIDES, SIDES[::-1]):
        if count[side] > count[other] and count[side] >= count["same"]:
            return side
    return ""


def select(folder: str | Path, destination: str | Path) -> tuple[int, int]:
    """Writes the preference file of a folder's pairs; returns how many pairs it has and how many there are.

    Raises:
      InputError: a line is wrong, votes contradict each other, or no pair is worth training on.
      UsageError: the destination is not in the folder, where the latents are.
    """
    folder, destination = Path(folder), Path(destination)
    pairs = read_pairs(folder)
    winners = dominating(pairs, read_votes(folder, pairs))
    if not winners:
        raise InputError(f"Of {len(pairs)} pairs none has a clip that is better along both tracks; judge more of them.")
    if destination.resolve().parent != folder.resolve():
        raise UsageError(f"{printable(str(destination))} must be in {printable(str(folder))}, where the latents are.")
    lines = []
    for name, side in winners.items():
        other = SIDES[1 - SIDES.index(side)]
        pair = pairs[name]
        preference = Preference(pair=name, prompt=pair.prompt, latents=pair.latents, chosen=side, rejected=other)
        lines.append(json.dumps(to_json(preference), ensure_ascii=False))
    partial = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
        partial.replace(destination)
    except OSError as error:
        raise StorageError(f"{printable(str(destination))} cannot be written: {error.strerror}.") from error
    return len(winners), len(pairs)


def read_preferences(path: str | Path) -> list[Preference]:
    """The pairs of a preference file, `latents` made absolute.

    Raises:
      InputError: naming the line, for one that is no preference, whose latents are not there, or which prefers another
        clip of a pair than an earlier line does.
    """
    path = Path(path)
    found: dict[str, tuple[str, Preference]] = {}
    for where, line in _lines(path, "a preference file, see `kaleido pairs select`"):
        preference = _read(Preference, line, where)
        if {preference.chosen, preference.rejected} != set(SIDES):
            raise InputError(
                f"{where}: chosen is {preference.chosen!r} and rejected {preference.rejected!r}; one is a, the other b."
            )
        if preference.pair in found:
            earlier, other = found[preference.pair]
            if other.chosen != preference.chosen:
                raise InputError(
                    f"{where}: prefers clip {preference.chosen} of pair {printable(preference.pair)}, and {earlier} "
                    f"prefers clip {other.chosen}; take one of the two lines out."
                )
            continue
        if not inside(path.parent, preference.latents) or not (path.parent / preference.latents).is_file():
            raise InputError(f"{where}: there are no latents {printable(preference.latents)!r} beside the file.")
        whole = dataclasses.replace(preference, latents=str(path.parent / preference.latents))
        found[preference.pair] = where.rpartition(", ")[2], whole
    if not found:
        raise InputError(f"{printable(str(path))} holds no pair; write it with `kaleido pairs select`.")
    return [preference for _, preference in found.values()]


def inside(folder: Path, name: str) -> bool:
    """Whether a relative name stays inside the folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts and "\\" not in name and "\0" not in name


def _lines(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, JSON object) of every line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{printable(str(path))} cannot be read ({error}); it must be {what}.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{printable(str(path))}, line {number}"
        try:
            document = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: is not valid JSON ({error}).") from None
        if not isinstance(document, dict):
            raise InputError(f"{where}: is no JSON object.")
        yield where, document


def _read(cls: Any, document: Mapping[str, Any], where: str) -> Any:
    """The record, its texts and lists checked."""
    for field in dataclasses.fields(cls):
        value = document.get(field.name)
        kinds = {str: (str, "a text"), dict: (dict, "an object")}
        kind, words = kinds.get(typing.get_origin(field.type) or field.type, (list, "a list"))
        required = field.default_factory is dataclasses.MISSING
        if (value is not None or required) and not isinstance(value, kind):
            raise InputError(f"{where}: {field.name} is {printable(repr(value), 40)}; it must be {words}.")
    try:
        return from_json(cls, document, where)
    except InputError as error:
        raise InputError(f"{error}.") from None
