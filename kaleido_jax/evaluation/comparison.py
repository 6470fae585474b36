"""Results side by side: two runs on the same cases, and the papers' tables."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.errors import InputError, printable
from kaleido_jax.evaluation.intervals import Share, mean_interval
from kaleido_jax.evaluation.runs import read_json

FORMAT = "kaleido_jax scores 1"
PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True, kw_only=True)
class Results:
    """What `kaleido evaluate` wrote in a folder. name: of the run. document: results.json."""

    folder: Path
    name: str
    document: Mapping[str, Any]

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Any]]:
        return self.document["metrics"]

    @property
    def references(self) -> str:
        """How many references its cases have, in words."""
        counts = self.document["references"]
        least, most = counts["least"], counts["most"]
        return str(least) if least == most else f"{least} to {most}, {counts['mean']:.2f} on average"


def read_results(folder: Path) -> Results:
    """The results in a folder. Raises InputError if there are none, or they are no results of ours."""
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{printable(str(folder))}: holds no results.json; run kaleido evaluate first.")
    document = read_json(path)
    if document.get("format") != FORMAT:
        raise InputError(f"{printable(str(path))}: format is {document.get('format')!r}; expected {FORMAT!r}.")
    return Results(folder=folder, name=str(document["run"]), document=document)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much higher a score is in run b than in run a, on the same cases.

    difference, low, high: the mean with its 95 % interval. better: how often b is better, of those cases that differ.
    cases: compared.
    """

    metric: str
    difference: float
    low: float
    high: float
    better: Share
    cases: int

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired(a: Results, b: Results, *, references: int | None = None) -> list[Difference]:
    """The differences of every score that both have, over the cases that both have.

    references: only cases to which both runs gave exactly so many references.
    """
    values_a, values_b = ({item["case"]: item for item in run.document["videos"]} for run in (a, b))
    common = [case for case in values_a if case in values_b]
    if references is not None:
        common = [c for c in common if len(values_a[c]["references"]) == references == len(values_b[c]["references"])]
    found = []
    for name in a.metrics:
        if name not in b.metrics:
            continue
        pairs = [(values_a[case]["values"].get(name), values_b[case]["values"].get(name)) for case in common]
        differences = np.array([y - x for x, y in pairs if x is not None and y is not None], float)
        if len(differences):
            mean, low, high = mean_interval(differences)
            sign = 1 if a.metrics[name]["higher_is_better"] else -1
            better = Share(int((sign * differences > 0).sum()), int((differences != 0).sum()))
            found.append(
                Difference(metric=name, difference=mean, low=low, high=high, better=better, cases=len(differences))
            )
    return found


def published_rows(names: Sequence[str]) -> list[tuple[str, str, Mapping[str, float]]]:
    """(method and table, references, values) of every row of the papers that has one of these scores."""
    document = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return [
        (f"{row['method']} ({table['paper']}, {table['table']})", row["references"], row["values"])
        for table in document["tables"]
        for row in table["rows"]
        if set(names) & set(row["values"])
    ]


def one_reference(a: Results, b: Results) -> list[Difference]:
    """`paired` over the cases with one reference on both sides, for runs of which one got more than the other."""
    return paired(a, b, references=1)


def shown(value: float | None) -> str:
    """A score as it stands in tables."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"
