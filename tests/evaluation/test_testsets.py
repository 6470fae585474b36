"""Test sets have the papers' forms, and what they write is read again as it is."""

import collections
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.cli.jobs import read_jobs
from kaleido_jax.cli.main import main
from kaleido_jax.data.world import World
from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.runs import read_run
from kaleido_jax.evaluation.testsets import FORMS, Folder, Procedural, Subject, write_test_set
from kaleido_jax.pipeline.group_file import read_groups
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.pipeline.scene_file import read_scene


class Names:
    """A catalogue of any number of subjects without pictures."""

    def subjects(self, categories, count):
        return [Subject(category=categories[i % len(categories)], name=f"n{i}", number=i) for i in range(count)]

    def pictures(self, subject, count):
        return [np.full((4, 4, 3), subject.number % 256, np.uint8)] * count

    def prompt(self, number, subjects, *, scene=None):
        return f"{number} {scene}: " + " and ".join(subject.name for subject in subjects)

    def parts(self, number, subject, *, scene):
        return f"in place {scene}", subject.name, f"does {number}"

    def truth(self, subjects):
        return None


def test_the_forms_have_the_papers_numbers():
    cases = FORMS["kaleido"](Names())
    assert sum(len(case.subjects) for case in cases) == 400
    assert sum(len(case.subjects) > 1 for case in cases) == 175
    assert {subject.category for case in cases for subject in case.subjects} == {"human", "animal", "cartoon", "object"}
    cases = FORMS["anyid"](Names())
    assert collections.Counter(case.category for case in cases) == {"IPT2V": 50, "IEPT2V": 50}
    assert {case.pictures for case in cases} == {5} and len({case.subjects[0].name for case in cases}) == 50
    assert all(len(case.prompt.split(" || ")) == 5 for case in FORMS["characonsist"](Names()))
    keep, switch = FORMS["characonsist"](Names())[:2]
    scenes = lambda case: {part.split()[2] for part in case.prompt.split(" || ")}
    assert len(scenes(keep)) == 1 and len(scenes(switch)) == 5
    assert all(len(case.prompt.split(" || ")) == 5 for case in FORMS["lct"](Names()))  # the scene and four shots


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, place in enumerate(("human/anna", "human/ben", "animal/dog", "cartoon/fox", "object/red_cup")):
        folder = tmp_path / "pictures" / place
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20 + number, 30), (40 * number, 80 * i, 90)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def test_a_set_of_ones_own_pictures_is_read_again(pictures, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(["testset", "anyid", "--out", str(out), "--pictures", str(pictures)]) == 0
    assert "4 cases, 2 of several subjects, 14 references" in capsys.readouterr().out
    run = read_run(out)
    case = next(case for case in run.cases if case.category == "IEPT2V")
    assert [reference.subject for reference in case.references] == [1, 1, 1, 2]
    assert "the red cup" in case.prompt and case.video == out / "videos" / f"{case.id}.mp4"
    jobs = read_jobs(out / "jobs.jsonl", out / "videos", Settings())
    assert [job.out for job in jobs] == [case.video for case in run.cases]
    assert all(Path(file).is_file() for job in jobs for files in job.references for file in files)
    assert [len(job.references) for job in jobs] == [case.subjects for case in run.cases]
    alone = tmp_path / "alone"
    assert main(["testset", "anyid", "--out", str(alone), "--pictures", str(pictures), "--references", "1"]) == 0
    one = read_run(alone)
    assert [case.prompt for case in one.cases] == [case.prompt for case in run.cases]
    assert {len(case.references) for case in one.cases} == {1, 2}  # the person, and the element where there is one
    assert main(["testset", "anyid", "--out", str(tmp_path / "none"), "--references", "0"]) == 2
    assert "--references is 0; it must be at least 1." in capsys.readouterr().err
    assert main(["testset", "anyid", "--out", str(out)]) == 2
    assert "is not empty; give another --out" in capsys.readouterr().err


def test_what_a_form_lacks_is_told(pictures, tmp_path, capsys):
    assert main(["testset", "anydi", "--out", str(tmp_path / "x")]) == 2
    assert "did you mean 'anyid'" in capsys.readouterr().err
    for file in (pictures / "animal" / "dog").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no subjects of the category 'animal'"):
        FORMS["kaleido"](Folder(pictures))
    with pytest.raises(InputError, match="holds no pictures as <category>/<subject>/<picture>"):
        Folder(pictures / "human" / "anna")


def test_the_worlds_subjects_are_enough_for_kaleidos_form():
    drafts = FORMS["kaleido"](Procedural(World(32)))
    assert len(drafts) == len({draft.id for draft in drafts}) == 225 and all(draft.prompt for draft in drafts)
    numbers = [subject.number for draft in drafts for subject in draft.subjects]
    assert len(numbers) == len(set(numbers)) == 400  # no subject is in two cases
    kinds = collections.Counter(subject.category for draft in drafts for subject in draft.subjects)
    assert kinds == dict.fromkeys(("human", "animal", "cartoon", "object"), 100)


def test_the_worlds_subjects_are_held_out(tmp_path):
    catalogue = Procedural(World(32))
    subjects = catalogue.subjects(("human", "object"), 4)
    assert [subject.category for subject in subjects] == ["human", "object"] * 2
    assert all(subject.number % 2 == 1 for subject in subjects)
    a, b = catalogue.pictures(subjects[0], 2)
    assert a.shape == (32, 32, 3) and (a != b).any()
    assert catalogue.prompt(3, subjects[:2]) == catalogue.prompt(3, subjects[:2])
    assert all(part for part in catalogue.parts(3, subjects[0], scene=1))
    cases = write_test_set("lct", catalogue, tmp_path / "set", cases=1)
    assert [case.id for case in cases] == ["scene_0"] and not (tmp_path / "set" / "jobs.jsonl").exists()
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["cases"][0]["prompt"].count("||") == 4
    scene = read_scene(tmp_path / "set" / "scenes" / "scene_0.json")
    assert " || ".join((scene.prompt, *(shot.prompt for shot in scene.shots))) == manifest["cases"][0]["prompt"]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["manifest.json", "scenes"]


def test_sets_of_pictures_are_groups_to_generate(tmp_path):
    cases = write_test_set("characonsist", Names(), tmp_path / "set", cases=2)
    for kind in ("keep", "switch"):
        groups = read_groups(tmp_path / "set" / f"{kind}.txt")
        mine = [case for case in cases if case.category == kind]
        assert [case.prompt for case in mine] == [
            " || ".join(picture.prompt for picture in group.pictures) for group in groups
        ]
        places = [len({picture.background for picture in group.pictures}) for group in groups]
        assert places == [1 if kind == "keep" else 5] * 2
        # Where kaleido generate --group keep.txt --out videos/keep puts them.
        assert [case.video for case in mine] == [tmp_path / "set" / "videos" / kind / f"group_{n}" for n in (1, 2)]
    assert read_run(tmp_path / "set").cases[0].video == cases[0].video
