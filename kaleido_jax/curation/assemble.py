"""From clips that went through the stages to a data set: tiers, weights, cross pairs, shards and the audit table.

What a shard holds is decided by ids, and what it needs of the rest of the data (how frequent each category is, which
scenes there are) is small: so shards can be written by any process, in any order, again if need be.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.curation import pairs, pictures
from kaleido_jax.curation.dataset import SPLITS, ShardWriter, shard_name
from kaleido_jax.curation.models.protocol import loaded
from kaleido_jax.curation.records import Drop, Source, fraction
from kaleido_jax.curation.settings import Curation, Tier
from kaleido_jax.curation.store import Store, source_facts
from kaleido_jax.media.storage import written_whole

# Columns of the audit table: scores of subjects as score_..., of clips as clip_...
SCORES = ("detection", "area", "inside", "overlap", "brightness", "blur", "category", "face", "yaw", "pitch")
CLIP_SCORES = ("brightness", "blur", "motion")


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What a shard has to know of all the data: small, whatever the size of the input.

    categories: kept subjects of each. plates: the scenes for cross pairs. members: (clip, subject) of each identity and
    category, at most a few. mean_weight: of all samples before they are scaled to 1.
    """

    categories: Mapping[str, int]
    plates: Sequence[pairs.Plate]
    members: Mapping[tuple[str, str], Sequence[tuple[str, str]]]
    mean_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A clip that went through the stages; or a file that gave none, with why."""

    id: str
    source: Source | None = None
    dropped: Drop | None = None


MEMBERS = 16  # of one identity that redux references are taken from


def kept(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The kept candidates of a clip's facts."""
    return [] if facts["dropped"] else [one for one in facts["candidates"] if not one["dropped"]]


def plate_of(facts: Mapping[str, Any]) -> pairs.Plate | None:
    """The clip's scene as one that cross pairs may be set into."""
    if not facts["plate"] or not kept(facts):
        return None
    source = facts["source"]
    return pairs.Plate(fraction("plate", facts["id"]), facts["id"], source["id"], source["identity"])


def shard_of(identifier: str, shards: int) -> int:
    return int(fraction("shard", identifier) * shards)


def passes(one: Mapping[str, Any], tier: Tier) -> bool:
    """Whether a kept candidate belongs to the stricter tier; what no stage measured does not count against it."""
    scores = one["scores"]
    least = {"area": tier.area, "blur": tier.blur, "detection": tier.detection, "category": tier.category}
    if any(scores.get(name, value) < value for name, value in least.items()):
        return False
    return tier.brightness[0] <= scores.get("brightness", tier.brightness[0]) <= tier.brightness[1]


def weight(facts: Mapping[str, Any], categories: Mapping[str, int], balance: float) -> float:
    """How often to draw the clip before scaling: the mean of its subjects' (samples of the category) ** -balance."""
    return float(np.mean([categories[one["category"]] ** -balance for one in kept(facts)]))


def gather(all_facts: Iterable[Mapping[str, Any]], config: Curation) -> Whole:
    """What shards have to know of all the data, in one pass over the facts and one over the counts."""
    categories: Counter[str] = Counter()
    combinations: Counter[tuple[str, ...]] = Counter()
    plates: list[pairs.Plate] = []
    members: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for facts in all_facts:
        subjects = kept(facts)
        if not subjects:
            continue
        categories.update(one["category"] for one in subjects)
        combinations[tuple(one["category"] for one in subjects)] += 1
        if (plate := plate_of(facts)) is not None:
            plates = sorted([*plates, plate])[: config.pairs.plates]
        if facts["source"]["identity"]:
            for one in subjects:
                group = members.setdefault((facts["source"]["identity"], one["category"]), [])
                group.append((fraction("member", one["id"]), facts["id"], one["id"]))
                group.sort()
                del group[MEMBERS:]
    total = sum(
        count * float(np.mean([categories[name] ** -config.balance for name in names]))
        for names, count in sorted(combinations.items())
    )
    return Whole(
        categories=dict(categories),
        plates=tuple(plates),
        members={key: tuple((clip, subject) for _, clip, subject in group) for key, group in members.items()},
        mean_weight=total / max(sum(combinations.values()), 1),
    )


def sample(store: Store, facts: Mapping[str, Any], whole: Whole, config: Curation) -> dict[str, Any]:
    """The sample of a clip with kept subjects, as `dataset.features` says."""
    subjects = kept(facts)
    references = [_reference(store, facts, one, whole, config) for one in subjects]
    rows = [(made["picture"], place + 1, made) for place, made in enumerate(references)]
    if facts["plate"] and fraction("scene reference", facts["id"]) < config.pairs.scenes:
        rows.append((store.plate(facts["id"]), 0, {"kind": "plate", "donor": "", "cross": False}))
    masks = [store.masks(facts["id"], one["id"])[one["frame"]] for one in subjects]
    strings = lambda values: np.array([value.encode() for value in values], object)
    source = facts["source"]
    return {
        "id": facts["id"],
        "caption": facts["caption"],
        "license": source["license"],
        "dataset": source["dataset"],
        "url": source["url"],
        "video": store.video(facts["id"]),
        "fps": config.frames.fps,
        "references": np.array([pictures.png(np.ascontiguousarray(picture)) for picture, _, _ in rows], object),
        "reference_subjects": np.array([subject for _, subject, _ in rows], np.int32),
        "reference_kinds": strings([made["kind"] for _, _, made in rows]),
        "reference_donors": strings([made["donor"] for _, _, made in rows]),
        "reference_cross": np.array([made["cross"] for _, _, made in rows], np.int32),
        "phrases": strings([one["phrase"] for one in subjects]),
        "categories": strings([one["category"] for one in subjects]),
        "boxes": np.array([one["box"] for one in subjects], np.float32).reshape(-1, 4),
        "frames": np.array([facts["keys"][one["frame"]] for one in subjects], np.int32),
        "masks": np.array([pictures.png(mask.astype(np.uint8) * 255) for mask in masks], object),
        "weight": np.float32(weight(facts, whole.categories, config.balance) / whole.mean_weight),
    }


def _reference(store: Store, facts, one, whole: Whole, config: Curation) -> dict[str, Any]:
    """The reference of a subject: picture, kind, donor (the source of the scene behind it), whether a cross pair."""
    chosen = reference_plan(facts, one, whole, config)
    clip, subject, frame = chosen["clip"], chosen["subject"], chosen["frame"]
    if frame is None:
        frame = next(other["frame"] for other in store.facts(clip)["candidates"] if other["id"] == subject)
    picture, mask = store.key_frame(clip, frame), store.masks(clip, subject)[frame]
    if chosen["kind"] == "redux" and clip == facts["id"] and config.models.editor is not None:
        picture, mask = loaded(config.models.editor).vary(picture, mask, one["phrase"], one["id"])
    if chosen["plate"]:
        picture = pairs.paste(picture, mask, store.plate(chosen["plate"]), one["id"])
    elif chosen["kind"] == "crop":
        picture = pairs.crop(picture, pictures.box_of(mask))
    else:
        picture = pairs.segment(picture, mask)
    return {**chosen, "picture": picture}


def reference_plan(facts, one, whole: Whole, config: Curation) -> dict[str, Any]:
    """Of what the reference of a subject is made, told by facts alone.

    Where a cross pair has no scene to go to, or a pose no editor and no other video, the subject is cut out instead:
    kind and cross say what it became.
    """
    source, plan = facts["source"], pairs.plan(one["id"], config.pairs)
    clip, subject, seen = facts["id"], one["id"], one["seen"]
    kind = plan.kind
    if kind == "redux":
        other = pairs.partner(one["id"], facts["id"], source["identity"], one["category"], whole.members)
        if other is not None:
            clip, subject = other
        elif config.models.editor is None:
            kind = "segment"
    scene = pairs.donor(one["id"], source["id"], source["identity"], whole.plates) if plan.elsewhere else None
    if kind == "inpainting" and scene is None:
        kind = "segment"
    # A key frame that shows the subject well, not always the one with the best box.
    frames = [number for number, share in enumerate(seen) if share >= 0.5 * max(seen)]
    frame = frames[int(fraction("frame", one["id"]) * len(frames))] if clip == facts["id"] else None
    return {
        "kind": kind,
        "plate": "" if scene is None else scene.clip,
        "donor": "" if scene is None else scene.source,
        "cross": scene is not None or kind == "redux",
        "clip": clip,
        "subject": subject,
        "frame": frame,
    }


def audit_rows(facts: Mapping[str, Any], whole: Whole, config: Curation) -> Iterator[dict[str, Any]]:
    """A row for every candidate of a clip, or one for a clip that has none."""
    source = facts["source"]
    strict = bool(kept(facts)) and all(passes(one, config.tier) for one in kept(facts))
    base = {
        "clip": facts["id"],
        "shot": facts["shot"],
        "begin": facts["begin"],
        "end": facts["end"],
        "caption": facts["caption"],
        **{f"clip_{name}": facts["scores"].get(name) for name in CLIP_SCORES},
        **source_columns(source),
    }
    for one in facts["candidates"]:
        drop = facts["dropped"] or one["dropped"]
        row = {**base, "id": one["id"], "level": "subject", "phrase": one["phrase"], "category": one["category"]}
        row |= {f"score_{name}": one["scores"].get(name) for name in SCORES}
        row |= {"box": one["box"], "kept": drop is None, "stage": drop["stage"] if drop else ""}
        row |= {"reason": drop["reason"] if drop else "", "tier": ""}
        if drop is None:
            made = reference_plan(facts, one, whole, config)
            row |= {"tier": "sft" if strict else "pretrain", "kind": made["kind"], "cross": made["cross"]}
            row |= {
                "donor": made["donor"],
                "weight": weight(facts, whole.categories, config.balance) / whole.mean_weight,
            }
        yield row
    if not facts["candidates"]:
        drop = facts["dropped"] or {"stage": "grounding", "reason": "not found"}
        yield {**base, "id": facts["id"], "level": "clip", "kept": False, **drop}


def source_row(source: Source, stage: str, reason: str) -> dict[str, Any]:
    """The row of a file that gave no clip."""
    columns = source_columns(source_facts(source))
    return {"id": source.id, "level": "file", "kept": False, "stage": stage, "reason": reason, **columns}


def source_columns(source: Mapping[str, Any]) -> dict[str, Any]:
    names = ("path", "dataset", "license", "url", "identity")
    extra = json.dumps(source["extra"], sort_keys=True)
    return {"source": source["id"], **{name: source[name] for name in names}, "extra": extra}


def audit_schema() -> Any:
    import pyarrow as pa

    texts = "id level source clip path dataset license url identity extra caption phrase category"
    texts += " stage reason tier kind donor"
    numbers = [
        "begin",
        "end",
        "weight",
        *(f"score_{name}" for name in SCORES),
        *(f"clip_{name}" for name in CLIP_SCORES),
    ]
    return pa.schema(
        [(name, pa.string()) for name in texts.split()]
        + [("shot", pa.int32()), ("kept", pa.bool_()), ("cross", pa.bool_()), ("box", pa.list_(pa.float32()))]
        + [(name, pa.float64()) for name in numbers]
    )


def write_audit(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows, sorted by id, as one Parquet file: equal rows give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = audit_schema()
    ordered = sorted(rows, key=lambda row: (row["source"], row.get("begin") or 0.0, row["id"]))
    table = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in ordered], schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def write_shard(
    store: Store, number: int, entries: Sequence[Entry], whole: Whole, config: Curation, folder: Path
) -> dict[str, Any]:
    """Writes shard `number` of every split and of the audit table, unless they are there; says what they hold."""
    done = folder / f"shard-{number:05d}.json"
    if done.is_file():
        return json.loads(done.read_text())
    rows, clips = [], []
    for entry in sorted(entries, key=lambda entry: entry.id):
        identifier = entry.id
        if entry.source is not None and entry.dropped is not None:
            rows.append(source_row(entry.source, entry.dropped.stage, entry.dropped.reason))
            continue
        facts = store.facts(identifier)
        found = list(audit_rows(facts, whole, config))
        rows += found
        tiers = {row["tier"] for row in found if row["kept"]}
        if tiers:
            clips.append((identifier, "sft" in tiers))
    writer, result = ShardWriter(), {"number": number}
    for split in SPLITS:
        chosen = [identifier for identifier, strict in clips if strict or split == "pretrain"]
        samples = (sample(store, store.facts(identifier), whole, config) for identifier in chosen)
        result[split] = writer.write(folder / shard_name(split, number, config.shards), samples)
    write_audit(folder / f"audit-{number:05d}.parquet", rows)
    with written_whole(done) as temporary:
        temporary.write_text(json.dumps(result, sort_keys=True))
    return result
