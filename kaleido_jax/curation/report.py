"""A page that shows what a curation kept and dropped, and why.

It is a single HTML file that holds its pictures, works offline, and is the same bytes for the same data.
"""

import base64
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.curation import pictures
from kaleido_jax.curation.dataset import SPLITS
from kaleido_jax.curation.records import fraction
from kaleido_jax.curation.store import Store, write_bytes
from kaleido_jax.data.loader import stored_source
from kaleido_jax.errors import InputError

SHOWN = 12  # pictures a stage
HISTOGRAMS = (
    "clip_brightness", "clip_blur", "clip_motion", "score_detection", "score_area", "score_overlap",
    "score_brightness", "score_blur", "score_category", "score_face",
)  # fmt: skip
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem}
body{color:#202124;background:#faf9f6}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem}td,th{padding:.15rem .7rem .15rem 0;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{background:#d65430;height:.75rem;border-radius:2px}
.row{display:flex;flex-wrap:wrap;gap:.7rem}figure{margin:0;width:150px}figcaption{font-size:.75rem;color:#555}
img{max-width:150px;max-height:120px;border-radius:4px;background:#fff;border:1px solid #e0ded8}
.h{display:flex;align-items:flex-end;gap:1px;height:60px;width:200px}.h div{background:#0072b2;flex:1}
button{font:inherit;padding:.15rem .6rem}button.on{background:#d65430;color:#fff}
"""


def audit_rows(dataset: Path) -> list[dict[str, Any]]:
    """Every row of the audit table."""
    import pyarrow.parquet as pq

    paths = sorted(dataset.glob("audit-*.parquet"))
    if not paths:
        raise InputError(f"{dataset}: holds no audit table; give the output folder of kaleido curate.")
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def funnel(rows: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[tuple[str, int, Counter[str]]]:
    """(stage, candidates that reached it, those it dropped by reason), in the order of the stages."""
    dropped: dict[str, Counter[str]] = {}
    for row in rows:
        if not row["kept"]:
            dropped.setdefault(row["stage"], Counter())[row["reason"]] += 1
    left, result = len(rows), []
    for stage in [*order, *sorted(set(dropped) - set(order))]:
        lost = dropped.get(stage, Counter())
        result.append((stage, left, lost))
        left -= sum(lost.values())
    return result


ORDER = (
    "decoding", "slicing", "caption", "light", "taxonomy", "grounding", "segmentation", "detection", "size", "overlap",
    "subject light", "category", "faces",
)  # fmt: skip


def write_report(output: Path) -> Path:
    """Writes report.html beside the data set: funnel, categories, kinds, histograms, samples kept and dropped."""
    dataset, store = output / "dataset", Store(output)
    rows = sorted(audit_rows(dataset), key=lambda row: row["id"])
    kept = [row for row in rows if row["kept"]]
    parts = ["<h1>What was kept, and why not</h1>"]
    parts.append(f"<p>{len(rows)} candidates, {len(kept)} kept ({_share(len(kept), len(rows))}).</p>")
    parts += ["<h2>Funnel</h2>", _funnel_table(funnel(rows, ORDER))]
    tiers = Counter(row["tier"] for row in kept)
    parts.append(f"<p>Of the subjects kept, {tiers['sft']} pass the stricter tier too.</p>")
    parts += ["<h2>Categories</h2>", _bars(Counter(row["category"] for row in kept).most_common())]
    kinds = Counter(f"{row['kind']}{' (cross)' if row['cross'] else ''}" for row in kept)
    parts += ["<h2>References</h2>", _bars(kinds.most_common())]
    parts += ["<h2>Scores</h2>", '<div class="row">']
    for name in HISTOGRAMS:
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            parts.append(_histogram(name, values))
    parts += ["</div>", "<h2>Kept</h2>", '<div class="row">', *_kept_figures(dataset), "</div>"]
    for stage in [*ORDER, *sorted({row["stage"] for row in rows if not row["kept"]} - set(ORDER))]:
        lost = [row for row in rows if not row["kept"] and row["stage"] == stage]
        if lost:
            chosen = sorted(lost, key=lambda row: fraction("report", row["id"]))[:SHOWN]
            parts += [f"<h2>Dropped: {html.escape(stage)}</h2>", '<div class="row">']
            parts += [_dropped_figure(store, row) for row in chosen] + ["</div>"]
    path = output / "report.html"
    write_bytes(path, page("Curation", "\n".join(parts)).encode())
    return path


def page(title: str, body: str) -> str:
    """A whole HTML page in the reports' style."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><body>{body}</body></html>\n"
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _funnel_table(steps: Iterable[tuple[str, int, Counter[str]]]) -> str:
    lines = ["<table><tr><th>stage<th>reach it<th>dropped<th>why"]
    for stage, reached, lost in steps:
        why = ", ".join(f"{html.escape(reason)} {count}" for reason, count in sorted(lost.items()))
        lines.append(f'<tr><td>{html.escape(stage)}<td class="n">{reached}<td class="n">{sum(lost.values())}<td>{why}')
    return "\n".join([*lines, "</table>"])


def _bars(counts: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in counts), default=1)
    bar = lambda count: f'<div class="bar" style="width:{300 * count / most:.0f}px">'
    lines = [
        f'<tr><td>{html.escape(name)}<td class="n">{count}<td>{bar(count)}'
        for name, count in sorted(counts, key=lambda pair: (-pair[1], pair[0]))
    ]
    return "\n".join(["<table>", *lines, "</table>"])


def _histogram(name: str, values: Sequence[float]) -> str:
    counts, edges = np.histogram(np.asarray(values, np.float64), bins=20)
    bars = "".join(f'<div style="height:{100 * count / counts.max():.0f}%"></div>' for count in counts)
    label = f"{name}: {edges[0]:.3g} to {edges[-1]:.3g}"
    return f'<figure style="width:200px"><div class="h">{bars}</div><figcaption>{label}</figcaption></figure>'


def _kept_figures(dataset: Path) -> list[str]:
    """A frame and the references of a few samples."""
    source = stored_source(dataset, SPLITS[0])
    figures = []
    for number in sorted(range(len(source)), key=lambda number: fraction("report", number))[:SHOWN]:
        sample = source[number]
        for content, kind in zip(sample["references"], sample["reference_kinds"]):
            text = f"<b>{html.escape(kind.decode())}</b> {html.escape(sample['caption'].decode()[:90])}"
            figures.append(f"<figure>{image_tag(pictures.from_png(content))}<figcaption>{text}</figcaption></figure>")
    return figures


def _dropped_figure(store: Store, row: Mapping[str, Any]) -> str:
    """What is known of something dropped: its words, and its picture where one was kept."""
    facts = [row["reason"], row["category"] or "", row["path"] or "", (row["caption"] or "")[:90]]
    facts += [f"{name.removeprefix('score_')} {row[name]:.3g}" for name in HISTOGRAMS if row[name] is not None]
    words = "<br>".join(html.escape(fact) for fact in facts if fact)
    picture = store.thumbnail(row["clip"]) if row["clip"] else None
    return f"<figure>{image_tag(picture) if picture is not None else ''}<figcaption>{words}</figcaption></figure>"


def image_tag(picture: np.ndarray) -> str:
    """The picture, uint8 [h, w, 3], made small and put into an HTML tag."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((300, 240))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
