"""A finished curation as training data of three other papers: AnyID's groups, LCT's scenes, ContextAnyone's edits.

`groups` says what belongs together; here it is written out, with pictures and clips as files of their own and one JSON
object a line, which `rows` reads back. What is said in words comes from `models.writer`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kaleido_jax.curation import groups, pictures
from kaleido_jax.curation.assemble import kept
from kaleido_jax.curation.models.protocol import loaded
from kaleido_jax.curation.report import audit_rows
from kaleido_jax.curation.settings import Curation
from kaleido_jax.curation.store import Store, write_bytes
from kaleido_jax.errors import UsageError
from kaleido_jax.methods import differential


def all_facts(output: Path) -> Iterator[Mapping[str, Any]]:
    """The facts of every clip of the curation in `output`, by id."""
    store = Store(output)
    for identifier in sorted({row["clip"] for row in audit_rows(output / "dataset") if row["clip"]}):
        yield store.facts(identifier)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file that this module wrote."""
    with path.open() as file:
        yield from map(json.loads, file)


def write_groups(output: Path, config: Curation) -> int:
    """AnyID's identity groups: groups/groups.jsonl, the target as target.mp4 and references as PNG or MP4 beside it.

    The prompt says what differs between the primary reference and the target, in the elements `config.groups.elements`
    (`methods.differential`); without `models.writer` it is "", and `kaleido describe` can say it later. Returns how
    many groups.
    """
    store, lines = Store(output), []
    for group in groups.identity_groups(all_facts(output), config.groups):
        folder = output / "groups" / group.target.clip
        write_bytes(folder / "target.mp4", store.video(group.target.clip))
        members = []
        for number, member in enumerate((group.primary, *group.assistants), 1):
            name = f"ref{number}.{'mp4' if member.modality == 'clip' else 'png'}"
            content = store.video(member.clip) if member.modality == "clip" else pictures.png(_shown(store, member))
            write_bytes(folder / name, content)
            members.append({**asdict(member), "file": f"{group.target.clip}/{name}"})
        lines.append(
            {
                "identity": group.identity,
                "target": {**asdict(group.target), "file": f"{group.target.clip}/target.mp4"},
                "primary": members[0],
                "assistants": members[1:],
                "prompt": _difference(store, group, config),
            }
        )
    return _write(output / "groups" / "groups.jsonl", lines)


def _shown(store: Store, member: groups.Member) -> np.ndarray:
    """What a member shows as a picture: the face, or the upper half of the body."""
    facts = store.facts(member.clip)
    frame = next(one["frame"] for one in facts["candidates"] if one["id"] == member.subject)
    picture = store.key_frame(member.clip, frame)
    if member.modality == "face":
        assert member.face is not None
        box = member.face
    else:
        box = groups.half_body(member.body, f"{member.clip} {member.subject}")
    x0, y0, x1, y1 = pictures.whole_box(box, *picture.shape[:2])
    return picture[y0:y1, x0:x1]


def _difference(store: Store, group: groups.IdentityGroup, config: Curation) -> str:
    if config.models.writer is None:
        return ""
    writer = loaded(config.models.writer)
    elements = differential.load_elements(config.groups.elements)
    whole = lambda clip: np.stack([store.key_frame(clip, number) for number in range(len(store.facts(clip)["keys"]))])
    primary = group.primary
    shown = whole(primary.clip) if primary.modality == "clip" else _shown(store, primary)
    describer = writer.describer()
    return differential.prompt(differential.differing(shown, whole(group.target.clip), elements, describer, describer))


def write_scenes(output: Path, config: Curation) -> int:
    """LCT's scenes: scenes/scenes.jsonl, with a caption and an MP4 each shot, and one caption of the whole.

    Without `models.writer` the whole caption is that of every shot, one after the other. Returns how many scenes.
    """
    store = Store(output)
    summarise = " ".join if config.models.writer is None else loaded(config.models.writer).summarise
    usable = (facts if kept(facts) else {**facts, "dropped": facts["dropped"] or True} for facts in all_facts(output))
    lines = []
    for scene in groups.scenes(usable, summarise):
        name = f"{scene.source}-{scene.clips[0]}"
        files = [f"{name}/shot{number}.mp4" for number in range(1, len(scene.clips) + 1)]
        for file, clip in zip(files, scene.clips):
            write_bytes(output / "scenes" / file, store.video(clip))
        lines.append({**asdict(scene), "files": files})
    return _write(output / "scenes" / "scenes.jsonl", lines)


def write_edits(output: Path, config: Curation) -> int:
    """ContextAnyone's references: edits/edits.jsonl, with a PNG for every edit that the judge let pass.

    One frame of every kept clip is edited in action or in environment by `models.editor`, as `models.writer` says, and
    judged. A clip that is done is not asked for again. Returns how many edits passed.

    Raises:
      UsageError: the configuration has no model that writes, or none that edits as it is told.
    """
    models = config.models
    if models.writer is None or models.editor is None or not hasattr(loaded(models.editor), "edit"):
        raise UsageError(
            "--write edits needs models.writer, and a models.editor with a method edit(picture, instruction)"
        )
    store, writer, editor = Store(output), loaded(config.models.writer), loaded(config.models.editor)
    lines = []
    for facts in all_facts(output):
        if not kept(facts):
            continue
        done = output / "edits" / "work" / f"{facts['id']}.json"
        if not done.is_file():
            made = groups.edited_reference(
                facts["id"],
                store.key_frame(facts["id"], kept(facts)[0]["frame"]),
                facts["caption"],
                write=writer.write,
                edit=editor.edit,
                judge=writer.judge,
            )
            if made.picture is not None:
                write_bytes(output / "edits" / f"{facts['id']}.png", pictures.png(made.picture))
            told = {"clip": facts["id"], "change": made.change, "instruction": made.instruction}
            drop = None if made.dropped is None else made.dropped.reason
            write_bytes(done, json.dumps({**told, "scores": dict(made.scores), "dropped": drop}).encode())
        lines.append(json.loads(done.read_text()))
    _write(output / "edits" / "edits.jsonl", lines)
    return sum(line["dropped"] is None for line in lines)


def _write(path: Path, lines: list[dict[str, Any]]) -> int:
    write_bytes(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode())
    return len(lines)


FORMS: dict[str, Callable[[Path, Curation], int]] = {
    "groups": write_groups,
    "scenes": write_scenes,
    "edits": write_edits,
}
