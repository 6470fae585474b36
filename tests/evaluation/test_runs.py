"""Runs in our format and in those of VBench and OpenS2V-Eval; what is wrong with one is told."""

import json

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.runs import FORMAT, manifest_document, read_run
from kaleido_jax.evaluation.videos import masks_beside, pictures_of, read_frames_of, read_masks, white_surrounding


def test_vbench_folders(tmp_path):
    for name in ("a cat-0.mp4", "a cat-1.mp4", "a dog.gif", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    run = read_run(tmp_path)
    assert [(case.id, case.prompt) for case in run.cases] == [
        ("a cat-0", "a cat"), ("a cat-1", "a cat"), ("a dog", "a dog"),
    ]  # fmt: skip
    table = tmp_path / "prompts.json"
    table.write_text(json.dumps({"a cat-0.mp4": "a cat sleeps", "missing.mp4": "nobody"}))
    run = read_run(tmp_path, prompts=table)
    assert [case.prompt for case in run.cases] == ["a cat sleeps", "nobody"]
    assert run.extra == ("a cat-1.mp4", "a dog.gif")


def test_opens2v_cases(tmp_path):
    videos, table = tmp_path / "videos", tmp_path / "Open-Domain_Eval.json"
    videos.mkdir()
    table.write_text(json.dumps({
        "faceobj_14": {"img_paths": ["Images/a.png", "Images/b.png"], "prompt": "a man", "class_label": ["man", "cup"]},
    }))  # fmt: skip
    (case,) = read_run(videos, opens2v=table).cases
    assert (case.id, case.category, case.subjects) == ("faceobj_14", "faceobj", 2)
    assert case.references[1].path == tmp_path / "Images" / "b.png" and case.video == videos / "faceobj_14.mp4"


def test_a_manifest_is_written_and_read(run_folder):
    run = read_run(run_folder)
    written = json.loads((run_folder / "manifest.json").read_text())
    assert manifest_document("squares", run.cases, run_folder) == written
    assert run.cases[0].references[0].mask == run_folder / "right.mask.png"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d.update(format="other"), "format is 'other'"),
        (lambda d: d.update(cases=[]), "cases must be a list with at least one case"),
        (lambda d: d["cases"][1].update(id="right"), "two cases have the id 'right'"),
        (lambda d: d["cases"][1].update(id="a/b"), "the id 'a/b' cannot be a part of a file name"),
        (lambda d: d["cases"][1].update(vido="x"), "case 2: has the unknown field 'vido'"),
        (lambda d: d["cases"][0].update(video="../x.mp4"), "'../x.mp4' is no path inside the run's folder"),
        (lambda d: d["cases"][0].update(video=3), "case 1: video is 3; expected a text"),
        (lambda d: d["cases"][0].update(references=[{"subject": 1}]), "expected an object with a path"),
        (lambda d: d["cases"][0]["references"][0].update(subject=-1), "subject is -1; expected 0 (the scene) to 100"),
    ],
)
def test_a_wrong_manifest_is_told(run_folder, change, sentence):
    document = {"format": FORMAT, **json.loads((run_folder / "manifest.json").read_text())}
    change(document)
    (run_folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        read_run(run_folder)
    assert sentence in str(caught.value)


def test_a_wrong_folder_is_told(tmp_path):
    with pytest.raises(InputError, match=r"holds no manifest\.json and no videos"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        read_run(tmp_path / "none")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_run(tmp_path)


def test_gifs_and_masks(tmp_path):
    frames = [Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    video = read_frames_of(tmp_path / "a.gif")
    assert video.shape == (3, 6, 8, 3) and video[2, 0, 0].tolist() == [80, 0, 0]
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    with pytest.raises(InputError, match="is damaged or no GIF"):
        read_frames_of(tmp_path / "b.gif")
    masks = np.zeros((3, 6, 8), np.uint8)
    masks[:, 2, 2] = 2
    np.savez(tmp_path / "m.npz", masks=masks, subjects=np.array([1, 0]))
    found, subjects = read_masks(tmp_path / "m.npz", video)
    assert found.max() == 2 and subjects.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"masks are uint8 \[3, 6, 8\]; the video needs uint8 \[2, 6, 8\]"):
        read_masks(tmp_path / "m.npz", video[:2])
    np.savez(tmp_path / "m.npz", masks=masks, subjects=np.array([1]))
    with pytest.raises(InputError, match="one for each of 2 instances"):
        read_masks(tmp_path / "m.npz", video)


def test_what_is_inside_plain_white_is_the_subject():
    picture = np.full((12, 14, 3), 255, np.uint8)
    picture[3:9, 4:10] = 90
    picture[5:7, 6:8] = 255  # a white hole belongs to the subject
    mask = white_surrounding(picture)
    assert mask is not None and mask.sum() == 36 and mask[5, 6]
    assert white_surrounding(picture[3:9, 4:10]) is None  # nothing plain around it
    assert white_surrounding(np.full((4, 4, 3), 255, np.uint8)) is None  # nothing inside


def test_a_group_of_pictures_is_read_with_its_masks(tmp_path):
    """As kaleido generate --group writes it: the identity picture, its frames, and a grey mask of each."""
    names = ["identity", *(f"frame_{number}" for number in range(1, 12))]
    for number, name in enumerate(names):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"{name}.png")
        grey = np.zeros((4, 6), np.uint8)
        grey[1:3, 1:3], grey[3, 5] = 127, 254  # the first and the second of two characters
        Image.fromarray(grey).save(tmp_path / f"{name}.mask.png")
    (tmp_path / "record.json").write_text("{}")
    assert [path.stem for path in pictures_of(tmp_path)] == names
    video = read_frames_of(tmp_path)
    assert video[:, 0, 0, 0].tolist() == list(range(12))
    masks, subjects = masks_beside(tmp_path, video)
    assert masks.shape == (12, 4, 6) and subjects.tolist() == [1, 2]
    assert masks[0, 1, 1] == 1 and masks[0, 3, 5] == 2 and masks[0, 0, 0] == 0
    Image.new("L", (5, 4)).save(tmp_path / "frame_3.mask.png")
    with pytest.raises(InputError, match=r"frame_3.mask.png: is \[4, 5\]; the picture is \[4, 6\]"):
        masks_beside(tmp_path, video)
    (tmp_path / "frame_3.mask.png").unlink()
    assert masks_beside(tmp_path, video) is None
