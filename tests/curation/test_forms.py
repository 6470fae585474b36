"""A curation written out as AnyID's groups, LCT's scenes and ContextAnyone's edits, and read back."""

import io
from dataclasses import dataclass, replace

import av
import numpy as np
import pytest

from kaleido_jax.curation.engine import curate
from kaleido_jax.curation.forms import rows, write_edits, write_groups, write_scenes
from kaleido_jax.curation.groups import half_body
from kaleido_jax.curation.models.endpoint import EndpointModel
from kaleido_jax.curation.pictures import from_png
from kaleido_jax.curation.settings import GroupRules
from kaleido_jax.errors import UsageError
from kaleido_jax.media.video import write_mp4
from tests.curation.scenery import FRAMES, SIZE, ball_video, tiny


@dataclass(frozen=True)
class Writer:
    """A language model that always says the same, and an editor that turns pictures upside down."""

    identity: float = 5.0

    def load(self) -> "Writer":
        return self

    def describer(self) -> "Writer":
        return self

    def describe(self, shown, elements):
        assert shown.ndim == 3 or len(shown) == 3  # a picture, or the key frames of a clip
        what = "two" if shown.ndim == 4 else "one"
        return {name: f"{what} {name}" if name == next(iter(elements)) else name for name in elements}

    def similarity(self, element, one, other):
        return float(one == other)

    def summarise(self, captions):
        return f"{len(captions)} shots"

    def write(self, change, frame, caption):
        return f"another {change}: {caption}"

    def judge(self, frame, edited, instruction):
        np.testing.assert_array_equal(edited, frame[::-1])
        return {"identity": self.identity, "change": 5.0, "quality": 5.0}

    def edit(self, picture, instruction):
        return picture[::-1]

    def vary(self, picture, mask, phrase, seed):
        return picture, mask


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Three videos of one ball; one of them has two shots."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "in" / "ann").mkdir(parents=True)
    for number, video in enumerate((ball_video(0), ball_video(3), np.concatenate([ball_video(0), ball_video(6)]))):
        write_mp4(folder / "in" / "ann" / f"{number}.mp4", video, 8)
        (folder / "in" / "ann" / f"{number}.txt").write_text(f"A striped ball rolls, take {number}.")
    config = replace(tiny(), reader="identities", groups=GroupRules(blur=1.0, elements="object"))
    curate(config, folder / "in", folder / "out", None)
    return folder / "out", config


def frames(content: bytes) -> int:
    with av.open(io.BytesIO(content)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_groups(curated):
    output, config = curated
    assert write_groups(output, config) == 4  # every clip is a target once
    found = list(rows(output / "groups" / "groups.jsonl"))
    assert all(group["prompt"] == "" and group["identity"] == "ann" for group in found)
    spoken = replace(config, models=replace(config.models, writer=Writer()))
    write_groups(output, spoken)
    found = list(rows(output / "groups" / "groups.jsonl"))
    members = [member for group in found for member in (group["primary"], *group["assistants"])]
    assert {member["modality"] for member in members} == {"half body", "clip"}  # a ball has no face
    for member in members:
        content = (output / "groups" / member["file"]).read_bytes()
        if member["modality"] == "clip":
            assert frames(content) == FRAMES
        else:
            x0, y0, x1, y1 = half_body(tuple(member["body"]), f"{member['clip']} {member['subject']}")
            height, width = from_png(content).shape[:2]
            assert abs(width - (x1 - x0)) <= 1 and abs(height - (y1 - y0)) <= 1
    for group in found:
        assert frames((output / "groups" / group["target"]["file"]).read_bytes()) == FRAMES
        # Only what differs from a primary reference that is a picture is said.
        if group["primary"]["modality"] == "clip":
            assert group["prompt"] == "the subject"
        else:
            assert group["prompt"].startswith("the subject two ")


def test_scenes(curated):
    output, config = curated
    assert write_scenes(output, config) == 1
    (scene,) = rows(output / "scenes" / "scenes.jsonl")
    assert scene["captions"] == ["A striped ball rolls, take 2."] * 2 and scene["caption"].count("take 2.") == 2
    assert [frames((output / "scenes" / file).read_bytes()) for file in scene["files"]] == [FRAMES, FRAMES]
    write_scenes(output, replace(config, models=replace(config.models, writer=Writer())))
    (scene,) = rows(output / "scenes" / "scenes.jsonl")
    assert scene["caption"] == "2 shots"


def test_edits_are_kept_if_the_judge_agrees_and_made_once(curated, tmp_path, monkeypatch):
    output, config = curated
    with pytest.raises(UsageError, match=r"needs models\.writer"):
        write_edits(output, config)
    asked = replace(config, models=replace(config.models, writer=Writer(), editor=Writer()))
    assert write_edits(output, asked) == 4
    found = list(rows(output / "edits" / "edits.jsonl"))
    assert {row["change"] for row in found} <= {"action", "environment"}
    for row in found:
        assert row["instruction"].startswith(f"another {row['change']}: A striped ball") and row["dropped"] is None
        assert from_png((output / "edits" / f"{row['clip']}.png").read_bytes()).shape == (SIZE, SIZE, 3)
    # Another judge is not asked: what is done is done.
    worse = replace(config, models=replace(config.models, writer=Writer(identity=1.0), editor=Writer()))
    assert write_edits(output, worse) == 4
    for path in (output / "edits" / "work").iterdir():
        path.unlink()
    assert write_edits(output, worse) == 0
    assert {row["dropped"] for row in rows(output / "edits" / "edits.jsonl")} == {"identity"}


def test_a_writer_behind_an_endpoint_describes_too():
    writer = EndpointModel(url="http://127.0.0.1:1/v1", model="m").load()
    assert writer.describer().model is writer.endpoint and writer.endpoint.model == "m"
