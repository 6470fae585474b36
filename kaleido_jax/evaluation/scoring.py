"""Scoring all cases of a run, one after another, so that an interrupted run goes on where it was.

The folder of results holds `settings.json` (everything that the values depend on), `scores*.jsonl` (a line a case,
written when it is scored), and at the end `results.json`, `vbench.json` (VBench's own form) and `scores.parquet`.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.errors import InputError, StorageError, UsageError, printable
from kaleido_jax.evaluation.comparison import FORMAT
from kaleido_jax.evaluation.evidence import NO_BACKGROUND, Evidence, NotApplicable, Tools, backgrounds, prompts_of
from kaleido_jax.evaluation.intervals import mean_interval
from kaleido_jax.evaluation.runs import Run, RunCase
from kaleido_jax.evaluation.suites import ELSEWHERE, METRICS
from kaleido_jax.evaluation.videos import reference_mask
from kaleido_jax.media.images import read_image
from kaleido_jax.media.storage import storage_error, written_whole

# VBench's code averages these over frames of all videos, not over videos.
FRAME_WEIGHTED = ("subject_consistency", "background_consistency")
ABSENT, BROKEN, UNREADABLE = "missing video", "broken video", "unreadable"


class Scores:
    """The scores of a folder: those that are there, and those that are added.

    Args:
      folder: made if it is missing.
      settings: what the values depend on. Raises UsageError if the folder holds scores of others.
      shard: (number, of how many) that this process scores; it then writes a file of its own.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], shard: tuple[int, int] = (1, 1)):
        self.folder, self.settings = folder, dict(settings)
        self._file = folder / ("scores.jsonl" if shard == (1, 1) else f"scores-{shard[0]}-of-{shard[1]}.jsonl")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "settings.json"
            if path.exists() and json.loads(path.read_text(encoding="utf-8")) != self.settings:
                raise UsageError(
                    f"{printable(str(folder))} holds scores of another run, encoder or option; give another --out."
                )
            if not path.exists():
                with written_whole(path) as temporary:
                    temporary.write_text(json.dumps(self.settings, indent=1) + "\n", encoding="utf-8")
            self.entries = _read(folder)
        except OSError as error:
            raise storage_error(folder, error) from error
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise InputError(f"{printable(str(folder))}: settings.json is not JSON; give another --out.") from None
        self._whole_line()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Writes one case's line; it is on the disk when this returns."""
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(self._file, error) from error
        self.entries[entry["case"]] = _merged(self.entries.get(entry["case"]), entry)

    def _whole_line(self) -> None:
        """An interrupted last line gets its end, so that what comes after it is not lost with it."""
        if self._file.exists() and self._file.stat().st_size:
            with self._file.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("scores*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                entries[entry["case"]] = _merged(entries.get(entry["case"]), entry)
            except (ValueError, KeyError, TypeError):  # an interrupted run's last line
                continue
    return entries


def _merged(before: Mapping[str, Any] | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Two lines of a case are one if they are of the same files: later values win. Otherwise the later line."""
    if before is None or (before["video"], before.get("inputs")) != (entry["video"], entry.get("inputs")):
        return dict(entry)
    return {**entry, "values": {**before["values"], **entry["values"]}}


def fingerprint(path: Path) -> str:
    """SHA-256 of a video, or of the names and contents of a folder's files; "" if it is not there."""
    try:
        total = hashlib.sha256()
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if path.is_dir():
                total.update(file.name.encode(errors="surrogateescape"))
            with file.open("rb") as content:
                total.update(hashlib.file_digest(content, "sha256").digest())
        return total.hexdigest()
    except OSError:
        return ""


def score_run(
    run: Run,
    names: Sequence[str],
    tools: Tools,
    scores: Scores,
    *,
    given: Mapping[str, Mapping[str, float]],
    shard: tuple[int, int] = (1, 1),
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Scores every case that `scores` lacks.

    Args:
      names: of METRICS.
      given: values from other programs, by metric and case.
      progress: called before a case is scored with its number, how many there are, and its id.
    """
    cases = run.cases[shard[0] - 1 :: shard[1]]
    for number, case in enumerate(cases, 1):
        files = {"video": fingerprint(case.video), "inputs": _inputs(case)}
        entry = scores.entries.get(case.id)
        done = entry["values"] if entry is not None and files.items() <= entry.items() else {}
        # What was not to be had may be given now; what was scored stays.
        theirs = {name: given[name][case.id] for name in names if case.id in given.get(name, {})}
        known = lambda name: done.get(name, {}).get("value")
        missing = [name for name in names if known(name) is None or theirs.get(name, known(name)) != known(name)]
        if missing:
            if progress:
                progress(number, len(cases), case.id)
            scores.add(score_case(case, missing, tools, files, given))


def _inputs(case: RunCase) -> str:
    """SHA-256 over what a case is compared with: its references and all masks."""
    paths = [case.masks, *(path for reference in case.references for path in (reference.path, reference.mask))]
    digests = [fingerprint(path) if path else "-" for path in paths]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def score_case(
    case: RunCase,
    names: Iterable[str],
    tools: Tools,
    files: Mapping[str, str],
    given: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """The line of one case: each value with its status.

    A missing or broken video gets each metric's worst value, if the case and the tools have what the metric needs. A
    score has no value if a reference, a mask or a file of features that it needs is missing or broken: that is not the
    video's fault.
    """
    status, evidence = "scored", None
    if not files["video"]:
        status = ABSENT
    else:
        try:
            evidence = Evidence(case, tools)
        except InputError as error:
            status = f"{BROKEN}: {error}"
    values: dict[str, dict[str, Any]] = {}
    for name in names:
        metric = METRICS[name]
        if case.id in given.get(name, {}):
            values[name] = {"value": float(given[name][case.id]), "status": "given"}
        elif evidence is not None:
            try:
                value = metric.function(evidence)
                values[name] = {"value": float(value), "status": status}
                if not np.isfinite(value):
                    values[name] = {"value": None, "status": f"not applicable: the value is {value}"}
            except NotApplicable as reason:
                values[name] = {"value": None, "status": f"not applicable: {reason}"}
            except InputError as error:
                values[name] = {"value": None, "status": f"{UNREADABLE}: {error}"}
        else:
            try:
                lacking = None if name in given else _lacking(case, metric.needs, tools)
                values[name] = {"value": None, "status": f"not applicable: {lacking}"}
                if not lacking:
                    values[name] = {"value": metric.worst, "status": status}
            except InputError as error:
                values[name] = {"value": None, "status": f"{UNREADABLE}: {error}"}
    entry = {"case": case.id, **files, "category": case.category, "references": len(case.references)}
    frames = 0 if evidence is None else len(evidence.video)
    readers = {"CLIP": tools.text, "ViCLIP": tools.viclip}
    parts = {"CLIP": prompts_of(case.prompt, frames if case.video.is_dir() else 0), "ViCLIP": [case.prompt]}
    cut = {
        name: sum(reader.cut(part) for part in parts[name])
        for name, reader in readers.items()
        if reader is not None and case.prompt
    }
    cut = {name: count for name, count in cut.items() if count}
    return entry | {"frames": frames, "prompt_tokens_cut": cut, "values": values}


def _lacking(case: RunCase, needs: Sequence[str], tools: Tools) -> str | None:
    for need in needs:
        if need == "references" and not case.references:
            return "the case has no references"
        beside = not case.video.suffix  # masks lie beside the pictures of a group
        if need == "masks" and case.masks is None and not beside and not (tools.world_detector and case.world):
            return "the case has no masks, which tell the subjects from the background"
        if need == "prompt" and (not case.prompt or tools.text is None):
            return "there is no prompt, or no CLIP with a text tower"
        if need == "reference backgrounds":
            pictures = [read_image(reference.path) for reference in case.references]
            masks = [reference_mask(*pair) for pair in zip(case.references, pictures)]
            if not backgrounds(case, pictures, masks):
                return NO_BACKGROUND
            continue
        if need == ELSEWHERE:
            return "another program scores it, and gave no value"
        if need.startswith("faces:"):
            lacking = tools.lacks_faces(need.removeprefix("faces:"))
            if lacking:
                return lacking
            continue
        if need == "a prompt" and not case.prompt:
            return "the case has no prompt"
        loaded = {**tools.encoders, **tools.networks}
        if need not in ("references", "masks", "prompt", "a prompt") and loaded.get(need) is None:
            return f"there is no encoder for the role {need} (--encoder {need}=PATH)"
    return None


def results(run: Run, names: Sequence[str], scores: Scores, *, as_published: bool) -> dict[str, Any]:
    """All that the scores say: of each metric its mean with its interval, of all cases and of each category.

    Raises:
      InputError: not every case has been scored.
    """
    entries = [scores.entries.get(case.id) for case in run.cases]
    left = [
        case.id for case, entry in zip(run.cases, entries) if entry is None or not set(names) <= set(entry["values"])
    ]
    if left:
        raise InputError(
            f"{len(left)} of {len(run.cases)} cases are not scored yet, {printable(left[0])!r} first; "
            "run the other shards, or this command without --shard."
        )
    present = [entry for entry in entries if entry is not None]
    metrics, unscored = {}, {}
    for name in names:
        rows = [(entry, entry["values"][name]) for entry in present]
        scored = [(entry, value) for entry, value in rows if value["value"] is not None]
        if scored:
            metrics[name] = _summary(name, rows, as_published=as_published)
        else:
            unscored[name] = rows[0][1]["status"].removeprefix("not applicable: ")
    failed, unreadable = (_with_status(present, kinds) for kinds in ((ABSENT, BROKEN), (UNREADABLE,)))
    cut = {entry["case"]: entry["prompt_tokens_cut"] for entry in present if entry["prompt_tokens_cut"]}
    counts = [entry["references"] for entry in present]
    beside = lambda path: Path(os.path.relpath(path.resolve(), scores.folder.resolve())).as_posix()
    items = [
        {
            "case": case.id, "category": case.category, "prompt": case.prompt, "video": beside(case.video),
            "references": [beside(reference.path) for reference in case.references],
            "values": {name: entry["values"][name]["value"] for name in names},
        }
        for case, entry in zip(run.cases, present)
    ]  # fmt: skip
    return {
        "format": FORMAT,
        "run": run.name,
        "settings": scores.settings,
        "cases": len(present),
        "references": {"least": min(counts), "most": max(counts), "mean": float(np.mean(counts))},
        "metrics": metrics,
        "not_scored": unscored,
        "failed": failed,
        "unreadable": {case: said.removeprefix(f"{UNREADABLE}: ") for case, said in unreadable.items()},
        "extra_videos": list(run.extra),
        "prompt_tokens_cut": cut,
        "videos": items,
    }


def _with_status(entries: Sequence[Mapping[str, Any]], kinds: tuple[str, ...]) -> dict[str, str]:
    """By case, what stands with the first of its values that has a status of these kinds."""
    said = {entry["case"]: [value["status"] for value in entry["values"].values()] for entry in entries}
    found = {case: [status for status in all_ if status.startswith(kinds)] for case, all_ in said.items()}
    return {case: statuses[0] for case, statuses in found.items() if statuses}


def _summary(name: str, rows: list, *, as_published: bool) -> dict[str, Any]:
    scored = [(entry, value) for entry, value in rows if value["value"] is not None]
    by_frames = as_published and name in FRAME_WEIGHTED

    def mean(chosen: list) -> dict[str, Any]:
        values = np.array([value["value"] for _, value in chosen], float)
        frames = np.array([max(entry["frames"] - 1, 0) for entry, _ in chosen], float)
        weights = frames if by_frames and frames.all() else None
        middle, low, high = mean_interval(values, weights)
        return {"mean": middle, "low": low, "high": high, "count": len(values)}

    metric = METRICS[name]
    reasons: dict[str, int] = {}
    for _, value in rows:
        if value["value"] is None:
            reasons[value["status"]] = reasons.get(value["status"], 0) + 1
    categories = sorted({entry["category"] for entry, _ in scored} - {""})
    failed = sum(value["status"].startswith((ABSENT, BROKEN)) for _, value in scored)
    return mean(scored) | {
        "higher_is_better": metric.higher,
        "source": metric.source,
        "failed": failed,
        "left_out": reasons,
        "categories": {
            category: mean([row for row in scored if row[0]["category"] == category]) for category in categories
        },
    }


def write_results(folder: Path, run: Run, document: Mapping[str, Any], scores: Scores) -> list[Path]:
    """results.json, vbench.json, and scores.parquet where pyarrow is installed; the paths that were written."""
    entries = [scores.entries[case.id] for case in run.cases]
    names = [*document["metrics"], *document["not_scored"]]
    written = [folder / "results.json", folder / "vbench.json"]
    published = document["settings"]["as_published"]
    theirs = {
        name: [
            document["metrics"][name]["mean"],
            [
                {
                    "video_path": str(case.video),
                    "video_results": entry["values"][name]["value"] * _given_scale(name, as_published=published),
                }
                for case, entry in zip(run.cases, entries)
                if entry["values"][name]["value"] is not None
            ],
        ]
        for name in document["metrics"]
    }
    for path, content in zip(written, (document, theirs)):
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return written
    columns: dict[str, list] = {key: [] for key in ("case", "category", "references", "metric", "value", "status")}
    for entry in entries:
        for name in names:
            value = entry["values"][name]
            row = (entry["case"], entry["category"], entry["references"], name, value["value"], value["status"])
            for column, cell in zip(columns.values(), row):
                column.append(cell)
    kinds = [pyarrow.string(), pyarrow.string(), pyarrow.int32(), pyarrow.string(), pyarrow.float64(), pyarrow.string()]
    table = pyarrow.table(columns, schema=pyarrow.schema(list(zip(columns, kinds))))
    path = folder / "scores.parquet"
    try:
        with written_whole(path) as temporary:
            parquet.write_table(table, temporary)
    except pyarrow.ArrowException as error:
        raise StorageError(f"Cannot write {printable(str(path))}: {printable(str(error), 100)}.") from error
    return [*written, path]


def _given_scale(name: str, *, as_published: bool) -> float:
    """How many times a value of ours VBench's is: it writes imaging quality of a video in 0 to 100."""
    return 100.0 if name == "imaging_quality" and not as_published else 1.0


def read_given(path: Path, run: Run, *, as_published: bool) -> dict[str, dict[str, float]]:
    """Values of other programs in VBench's form, {dimension: [mean, [{video_path, video_results}]]}, by case.

    VBench writes imaging quality of a video in 0 to 100 and its mean in 0 to 1; values are brought to 0 to 1 unless
    as_published.

    Raises:
      InputError: the file is of another form, or names a metric or a case that does not exist.
    """
    from kaleido_jax.evaluation.runs import read_json

    where = printable(str(path))
    known = {case.video.name: case.id for case in run.cases}
    out: dict[str, dict[str, float]] = {}
    for name, found in read_json(path).items():
        if name not in METRICS:
            raise InputError(f"{where}: {printable(name)!r} is no score; known: {', '.join(METRICS)}.")
        if not isinstance(found, list) or len(found) != 2 or not isinstance(found[1], list):
            raise InputError(f'{where}: {name} must be [mean, [{{"video_path": ..., "video_results": ...}}]].')
        scale = _given_scale(name, as_published=as_published)
        values = out.setdefault(name, {})
        for entry in found[1]:
            video = Path(str(entry.get("video_path", ""))).name if isinstance(entry, dict) else ""
            value = entry.get("video_results") if isinstance(entry, dict) else None
            if video not in known:
                raise InputError(f"{where}: {name} names the unknown case {printable(video)!r}.")
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise InputError(
                    f"{where}: {name} of {printable(video)!r} is {printable(repr(value), 60)}; not a number."
                )
            values[known[video]] = float(value) / scale
    return out
