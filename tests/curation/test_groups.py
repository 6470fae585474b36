"""AnyID's groups, LCT's scenes and ContextAnyone's edited frames, from facts."""

import numpy as np
import pytest

from kaleido_jax.curation.groups import (
    CHANGES,
    GroupRules,
    edited_reference,
    group_drop,
    half_body,
    identity_groups,
    scenes,
)
from kaleido_jax.curation.models.endpoint import EndpointWriter, prompt
from kaleido_jax.endpoints import Endpoint
from tests.curation.test_models import endpoint  # noqa: F401


def facts(number: int, identity="ann", subjects=1, shot=0, source="v", dropped=None, **scores) -> dict:
    found = [
        {
            "id": f"s{number}-{n}", "category": "woman", "dropped": None, "box": [4.0, 2.0, 20.0, 42.0],
            "faces": [[8.0, 3.0, 14.0, 9.0]] if number % 2 else [], "scores": {"blur": 100.0, **scores},
        }
        for n in range(subjects)
    ]  # fmt: skip
    return {
        "id": f"c{number}", "source": {"id": source, "identity": identity}, "shot": shot, "begin": float(shot),
        "caption": f"shot {shot}", "dropped": dropped, "candidates": found,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"identity": ""}, "no identity"),
        ({"subjects": 0}, "no subject"),
        ({"subjects": 2}, "several subjects"),
        ({"blur": 10.0}, "blurred"),
        ({"yaw": -80.0}, "extreme pose"),
        ({"pitch": 50.0}, "extreme pose"),
    ],
)
def test_who_may_be_in_a_group(changes, reason):
    drop = group_drop(facts(0, **changes), GroupRules())
    assert (drop and drop.reason) == reason


def test_groups_have_a_target_a_primary_and_assistants_of_one_identity():
    everything = [facts(n) for n in range(8)] + [facts(20, "bob"), facts(21, "eve"), facts(22, "eve", blur=1.0)]
    groups = list(identity_groups(everything, GroupRules()))
    assert groups == list(identity_groups(everything[::-1], GroupRules()))
    assert [group.target.clip for group in groups] == [f"c{n}" for n in range(8)]  # bob and eve have one clip each
    for group in groups:
        members = [group.target, group.primary, *group.assistants]
        assert len({member.clip for member in members}) == len(members) and 2 <= len(members) <= 6
        assert group.target.modality == "clip"
        assert all(member.face is not None for member in members if member.modality == "face")
    assert len({group.primary.modality for group in groups}) > 1


def test_half_bodies_are_the_upper_part():
    boxes = [half_body((4.0, 2.0, 20.0, 42.0), str(n)) for n in range(20)]
    assert all(box[:3] == (4.0, 2.0, 20.0) and 20.0 <= box[3] <= 28.0 for box in boxes) and len(set(boxes)) > 10


def test_scenes_are_runs_of_shots_that_follow_each_other():
    drop = {"stage": "light", "reason": "dark"}
    kept = [0, 1, 2, 4, 5, 7]
    everything = [facts(n, shot=n, dropped=None if n in kept else drop) for n in range(8)]
    everything += [facts(30, shot=0, source="w")]
    found = list(scenes(everything[::-1], " | ".join))
    assert [scene.clips for scene in found] == [("c0", "c1", "c2"), ("c4", "c5")]
    assert found[0].caption == "shot 0 | shot 1 | shot 2"
    assert [len(scene.clips) for scene in scenes(everything, " ".join, most=2)] == [2, 2]


def test_edits_are_kept_only_if_the_judge_agrees():
    frame = np.zeros((8, 8, 3), np.uint8)

    def edited(clip="c", **scores):
        return edited_reference(
            clip,
            frame,
            "a woman reads",
            write=lambda change, picture, caption: f"{change}: {caption}",
            edit=lambda picture, instruction: picture + np.uint8(1),
            judge=lambda before, after, instruction: {"identity": 5.0, "change": 5.0, "quality": 5.0, **scores},
        )

    good = edited()
    assert good.dropped is None and (good.picture == 1).all() and good.instruction == f"{good.change}: a woman reads"
    bad = edited(identity=3.0)
    assert bad.picture is None and bad.dropped.reason == "identity"
    assert {edited(str(n)).change for n in range(20)} == set(CHANGES)


def test_the_writer_behind_an_endpoint(endpoint):  # noqa: F811
    url, answers, asked = endpoint
    writer = EndpointWriter(endpoint=Endpoint(url=url, model="m", sleep=lambda seconds: None))
    frame = np.zeros((8, 8, 3), np.uint8)
    answers += ['{"caption": "A day."}', '{"instruction": "Let her run."}']
    assert writer.summarise(["one", "two"]) == "A day." and "2. two" in str(asked[0])
    assert writer.write("action", frame, "a woman reads") == "Let her run." and "a woman reads" in str(asked[1])
    answers += ['{"identity": 9, "change": 1, "quality": 1}', '{"identity": 5, "change": 4, "quality": 4.5}']
    assert writer.judge(frame, frame, "Let her run.") == {"identity": 5.0, "change": 4.0, "quality": 4.5}
    assert "1 to 5" in asked[3]["messages"][-1]["content"]


def test_prompts_are_filled_in():
    for name, values in (
        ("caption", {}), ("scene", {"captions": "x"}), ("edit_action", {"caption": "x"}),
        ("edit_environment", {"caption": "x"}), ("edit_filter", {"instruction": "x"}),
    ):  # fmt: skip
        text = prompt(name, **values)
        assert "$" not in text and "JSON" in text
