"""A page that shows results: tables with intervals, the papers' beside them, plots, and the videos side by side."""

import html
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.evaluation import plots
from kaleido_jax.evaluation.comparison import Difference, Results, one_reference, paired, published_rows, shown
from kaleido_jax.evaluation.videos import pictures_of
from kaleido_jax.media.storage import make_writable_folder, written_whole

MAX_RUNS = len(plots.COLOURS)
PICTURES = 5  # of a video that is a folder of pictures
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #202124; background: #faf9f6; margin: 2rem auto; max-width: 1200px;
  padding: 0 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0 2rem; } td, th { padding: .3rem .7rem; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #ccc; }
tr.published td { color: #666; } small { color: #777; } svg text { font-size: 11px; fill: #333; }
.mark { display: inline-block; width: .8em; height: .8em; margin: 0 .4em 0 1em; border-radius: 2px; }
.case { display: flex; gap: 1rem; flex-wrap: wrap; border-top: 1px solid #ddd; padding: 1rem 0; }
.case figure { margin: 0; } .case video, .case img { max-height: 260px; max-width: 360px; border-radius: 4px; }
.case .references img { max-height: 90px; } .wrap { overflow-x: auto; } .plots { display: flex; flex-wrap: wrap; }
"""


def write_report(runs: Sequence[Results], folder: Path, *, videos: int = 50) -> Path:
    """Writes report.html into `folder`, with the videos of the first `videos` cases that all runs have.

    The page links to the videos where they are; the folder must stay where it is beside them.

    Raises:
      UsageError: there are too many runs, or two have one name.
      InputError: they have no score in common.
    """
    if not 1 <= len(runs) <= MAX_RUNS:
        raise UsageError(f"There are {len(runs)} runs; a report shows 1 to {MAX_RUNS}.")
    labels = _labels(runs)
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    if not names:
        raise InputError("The runs have no score in common; evaluate them with the same suite.")
    make_writable_folder(folder, 4_000_000)
    path = folder / "report.html"
    parts = [
        f"<h1>{html.escape(' and '.join(labels))}</h1>",
        _said(runs, labels),
        "<h2>Scores</h2>",
        _scores(runs, labels, names),
        *(_pair(runs[0], other, labels[0], label) for other, label in zip(runs[1:], labels[1:])),
        "<h2>All scores at once</h2>",
        plots.legend(labels),
        _radar(runs, labels, names),
        *_categories(runs, labels, names),
        "<h2>Videos</h2>",
        *_videos(runs, labels, names, folder, videos),
    ]
    title = html.escape(", ".join(labels))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _labels(runs: Sequence[Results]) -> list[str]:
    """The runs' names, with their folders' where two runs have one name."""
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else f"{run.name} ({run.folder.name})" for run in runs]
    if len(set(labels)) < len(labels):
        raise UsageError(f"Two results are both called {printable(labels[0])!r}; give folders of different names.")
    return labels


def _said(runs: Sequence[Results], labels: Sequence[str]) -> str:
    rows = []
    for run, label in zip(runs, labels):
        document = run.document
        encoders = "; ".join(f"{role}: {name}" for role, name in document["settings"]["encoders"].items()) or "none"
        failed = len(document["failed"])
        missing = "; ".join(f"{name}: {reason}" for name, reason in document["not_scored"].items())
        rows.append(
            f"<li><b>{html.escape(label)}</b>: {document['cases']} cases, {failed} failed (scored as the worst there "
            f"is); references for each case: {html.escape(run.references)}; encoders: {html.escape(encoders)}"
            + (f"<br><small>not scored: {html.escape(missing)}</small>" if missing else "")
        )
    return f"<ul>{''.join(rows)}</ul>"


def _scores(runs: Sequence[Results], labels: Sequence[str], names: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(name)}{'' if _higher(runs, name) else ' ↓'}</th>" for name in names)
    rows = []
    for run, label in zip(runs, labels):
        cells = "".join(_cell(run.metrics[name]) for name in names)
        rows.append(f"<tr><td>{html.escape(label)}</td><td>{html.escape(run.references)}</td>{cells}</tr>")
    for method, references, values in published_rows(names):
        cells = "".join(f"<td>{shown(values.get(name))}</td>" for name in names)
        rows.append(
            f'<tr class="published"><td>{html.escape(method)}</td><td>{html.escape(references)}</td>{cells}</tr>'
        )
    note = (
        "<p><small>Grey rows are the papers' own numbers, from their own test sets, encoders and references: they "
        "stand here for orientation and are no comparison on equal terms. ↓ lower is better.</small></p>"
    )
    return (
        f'<div class="wrap"><table><thead><tr><th></th><th>references</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _higher(runs: Sequence[Results], name: str) -> bool:
    return bool(runs[0].metrics[name]["higher_is_better"])


def _cell(found: dict) -> str:
    interval = f"{shown(found['low'])} to {shown(found['high'])}"
    return f"<td>{shown(found['mean'])}<br><small>{interval}; {found['count']}</small></td>"


def _pair(a: Results, b: Results, label_a: str, label_b: str) -> str:
    """b against a on the cases that both have."""
    alone = _differences("one reference on both sides", one_reference(a, b))
    rows = _differences("same cases", paired(a, b)) + alone
    if not rows:
        return f"<p>{html.escape(label_a)} and {html.escape(label_b)} have no case in common.</p>"
    said = (
        f"{html.escape(label_a)} received {html.escape(a.references)} references for each case, "
        f"{html.escape(label_b)} {html.escape(b.references)}."
    )
    if not alone:
        said += " No case has one reference on both sides; kaleido testset --references 1 makes a set of such cases."
    head = "<th></th><th>score</th><th>difference</th><th>95 % interval</th><th>better in</th><th>cases</th>"
    return (
        f"<h2>{html.escape(label_b)} minus {html.escape(label_a)}, case by case</h2><p>{said}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _differences(what: str, found: Sequence[Difference]) -> str:
    rows = []
    for d in found:
        strong = ("<b>", "</b>") if d.decided else ("", "")
        rows.append(
            f"<tr><td>{what}</td><td>{html.escape(d.metric)}</td><td>{strong[0]}{d.difference:+.3f}{strong[1]}</td>"
            f"<td>{d.low:+.3f} to {d.high:+.3f}</td><td>{html.escape(str(d.better))}</td><td>{d.cases}</td></tr>"
        )
    return "".join(rows)


def _radar(runs: Sequence[Results], labels: Sequence[str], names: Sequence[str]) -> str:
    if len(names) < 3:
        return "<p><small>A radar needs three scores.</small></p>"
    upward = lambda name, value: value if _higher(runs, name) else 1 - value
    series = {label: [upward(name, run.metrics[name]["mean"]) for name in names] for run, label in zip(runs, labels)}
    axes = [name if _higher(runs, name) else f"1 - {name}" for name in names]
    return plots.radar(axes, series) + "<p><small>The centre is 0, the rim 1.</small></p>"


def _categories(runs: Sequence[Results], labels: Sequence[str], names: Sequence[str]) -> list[str]:
    parts = []
    for name in names:
        groups: dict[str, dict[str, tuple[float, float, float]]] = {}
        for run, label in zip(runs, labels):
            for category, found in run.metrics[name]["categories"].items():
                groups.setdefault(category, {})[label] = (found["mean"], found["low"], found["high"])
        if groups:
            parts.append(f"<figure><figcaption>{html.escape(name)}</figcaption>{plots.bars(groups)}</figure>")
    return ["<h2>By category</h2><div class='plots'>", *parts, "</div>"] if parts else []


def _videos(runs: Sequence[Results], labels: Sequence[str], names: Sequence[str], folder: Path, most: int) -> list[str]:
    tables = [{item["case"]: item for item in run.document["videos"]} for run in runs]
    common = [case for case in tables[0] if all(case in table for table in tables)]
    parts = [f"<p><small>{min(most, len(common))} of {len(common)} cases.</small></p>"]
    for case in common[:most]:
        first = tables[0][case]
        pictures = "".join(
            f'<img src="{_link(runs[0], path, folder)}" alt="a reference">' for path in first["references"]
        )
        figures = [f'<figure class="references">{pictures}</figure>'] if pictures else []
        for run, label, table in zip(runs, labels, tables):
            values = ", ".join(f"{name} {shown(table[case]['values'].get(name))}" for name in names)
            figures.append(
                f"<figure>{_player(run, table[case]['video'], folder)}<figcaption>{html.escape(label)}<br>"
                f"<small>{html.escape(values)}</small></figcaption></figure>"
            )
        said = f"<b>{html.escape(case)}</b> {html.escape(first['category'])}: {html.escape(first['prompt'])}"
        parts.append(f'<p>{said}</p><div class="case">{"".join(figures)}</div>')
    return parts


def _link(run: Results, path: str, folder: Path) -> str:
    """A path that is relative to the results, as a link from the report."""
    return html.escape(quote(Path(os.path.relpath((run.folder / path).resolve(), folder.resolve())).as_posix()))


def _player(run: Results, path: str, folder: Path) -> str:
    video = run.folder / path
    if video.is_dir():
        files = pictures_of(video)
        chosen = files[:: max(len(files) // PICTURES, 1)][:PICTURES]
        return "".join(f'<img src="{_link(run, f"{path}/{file.name}", folder)}" alt="a frame">' for file in chosen)
    if video.suffix.lower() == ".gif":
        return f'<img src="{_link(run, path, folder)}" alt="the video">'
    return f'<video src="{_link(run, path, folder)}" controls loop muted autoplay playsinline></video>'
