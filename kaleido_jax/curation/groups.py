"""Other papers' forms of a curated data set: AnyID's identity groups, LCT's scenes, ContextAnyone's edited frames.

They are made from the facts that the stages left (`store`), by plain functions: clips of one source or of one identity
are put together, and language models are asked with the prompts in `prompts/`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaleido_jax.curation import pictures
from kaleido_jax.curation.assemble import kept
from kaleido_jax.curation.records import Drop, choose, fraction
from kaleido_jax.curation.settings import GroupRules

MODALITIES = ("face", "half body", "clip")
MOST_SHOTS = 9  # of a scene (LCT, section 4.1)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A subject of a clip as a reference: what of it is shown (one of MODALITIES), its body's and face's box."""

    clip: str
    subject: str
    modality: str
    body: pictures.Box
    face: pictures.Box | None


@dataclass(frozen=True, kw_only=True)
class IdentityGroup:
    """A target clip, the primary reference that a prompt speaks of, and assistants that show the identity alone."""

    identity: str
    target: Member
    primary: Member
    assistants: tuple[Member, ...]


def group_drop(facts: Mapping[str, Any], rules: GroupRules) -> Drop | None:
    """Why a clip cannot be a member of a group, or None."""
    subjects = kept(facts)
    if not facts["source"]["identity"]:
        return Drop(stage="groups", reason="no identity")
    if not subjects:
        return Drop(stage="groups", reason="no subject")
    if rules.single and len(subjects) > 1:
        return Drop(stage="groups", reason="several subjects")
    scores = subjects[0]["scores"]
    if scores["blur"] < rules.blur:
        return Drop(stage="groups", reason="blurred")
    if abs(scores.get("yaw", 0.0)) > rules.yaw or abs(scores.get("pitch", 0.0)) > rules.pitch:
        return Drop(stage="groups", reason="extreme pose")
    return None


def identity_groups(all_facts: Iterable[Mapping[str, Any]], rules: GroupRules) -> Iterator[IdentityGroup]:
    """Every usable clip once as a target, with references from other clips of its identity, drawn by ids alone."""
    identities: dict[str, list[Mapping[str, Any]]] = {}
    for facts in all_facts:
        if group_drop(facts, rules) is None:
            identities.setdefault(facts["source"]["identity"], []).append(facts)
    for identity in sorted(identities):
        clips = sorted(identities[identity], key=lambda facts: facts["id"])
        low, high = rules.references
        for target in clips:
            others = [facts for facts in clips if facts["id"] != target["id"]]
            if len(others) < low:
                continue
            others.sort(key=lambda facts: fraction("group", target["id"], facts["id"]))
            count = low + int(fraction("group size", target["id"]) * (min(high, len(others)) - low + 1))
            members = [_member(facts, target["id"]) for facts in others[:count]]
            whole = _member(target, target["id"], "clip")
            yield IdentityGroup(identity=identity, target=whole, primary=members[0], assistants=tuple(members[1:]))


def _member(facts: Mapping[str, Any], target: str, modality: str = "") -> Member:
    one = kept(facts)[0]
    face = tuple(one["faces"][0]) if one["faces"] else None
    shares = {name: 1.0 for name in MODALITIES if name != "face" or face is not None}
    return Member(
        clip=facts["id"],
        subject=one["id"],
        modality=modality or choose(shares, "modality", target, one["id"]),
        body=tuple(one["box"]),
        face=face,
    )


def half_body(body: pictures.Box, seed: str) -> pictures.Box:
    """The upper part of a body's box, from 45 % of its height to 65 %: tight or wide as the seed says."""
    x0, y0, x1, y1 = body
    return x0, y0, x1, y0 + (0.45 + 0.2 * fraction("half body", seed)) * (y1 - y0)


@dataclass(frozen=True, kw_only=True)
class SceneOfShots:
    """Consecutive shots of one source with a caption each, and one of the whole (LCT, section 4.1)."""

    source: str
    clips: tuple[str, ...]
    captions: tuple[str, ...]
    caption: str


def scenes(
    all_facts: Iterable[Mapping[str, Any]],
    summarise: Callable[[Sequence[str]], str],
    *,
    fewest: int = 2,
    most: int = MOST_SHOTS,
) -> Iterator[SceneOfShots]:
    """Runs of shots that follow each other in a source without one that was dropped between them.

    Args:
        summarise: the captions of the shots -> one of the scene.
    """
    sources: dict[str, list[Mapping[str, Any]]] = {}
    for facts in all_facts:
        sources.setdefault(facts["source"]["id"], []).append(facts)
    for source in sorted(sources):
        run: list[Mapping[str, Any]] = []
        for facts in [*sorted(sources[source], key=lambda facts: facts["begin"]), None]:
            follows = facts is not None and (not run or facts["shot"] == run[-1]["shot"] + 1)
            if facts is not None and facts["dropped"] is None and facts["caption"] and follows and len(run) < most:
                run.append(facts)
                continue
            if len(run) >= fewest:
                captions = tuple(one["caption"] for one in run)
                clips = tuple(one["id"] for one in run)
                yield SceneOfShots(source=source, clips=clips, captions=captions, caption=summarise(captions))
            run = [facts] if facts is not None and facts["dropped"] is None and facts["caption"] else []


@dataclass(frozen=True, kw_only=True)
class EditedReference:
    """A frame of a clip with its subject in another action or place (ContextAnyone, section 4.1).

    picture: uint8 [h, w, 3], or None where it was dropped. change: "action" or "environment". instruction: what the
    editor was told. scores: of the filter's questions, 1 to 5.
    """

    picture: np.ndarray | None
    change: str
    instruction: str
    scores: Mapping[str, float]
    dropped: Drop | None


CHANGES = ("action", "environment")
QUESTIONS = ("identity", "change", "quality")


def edited_reference(
    clip: str,
    frame: np.ndarray,
    caption: str,
    *,
    write: Callable[[str, np.ndarray, str], str],
    edit: Callable[[np.ndarray, str], np.ndarray],
    judge: Callable[[np.ndarray, np.ndarray, str], Mapping[str, float]],
    least: float = 4.0,
) -> EditedReference:
    """Edits a frame and keeps the edit only if the judge finds the same subject, the change that was asked for, and no
    fault.

    Args:
        clip: its id, which draws what is changed.
        write: (change, frame, caption) -> the instruction for the editor.
        edit: (frame, instruction) -> the edited frame.
        judge: (frame, edited, instruction) -> a score from 1 to 5 for each of QUESTIONS.
        least: of every score.
    """
    change = choose(dict.fromkeys(CHANGES, 1.0), "edit", clip)
    instruction = write(change, frame, caption)
    edited = edit(frame, instruction)
    scores = dict(judge(frame, edited, instruction))
    worst = next((name for name in QUESTIONS if scores[name] < least), None)
    drop = None if worst is None else Drop(stage="edit filter", reason=worst)
    picture = edited if drop is None else None
    return EditedReference(picture=picture, change=change, instruction=instruction, scores=scores, dropped=drop)
