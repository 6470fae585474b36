"""The three files of a video: whole, repeatable, found again, and never in the way of something else."""

import dataclasses
import errno
import json
import os
import shlex

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.errors import StorageError, UsageError
from kaleido_jax.pipeline import outputs as module
from kaleido_jax.pipeline.generation import Generation
from kaleido_jax.pipeline.outputs import Found, Outputs
from kaleido_jax.pipeline.record import file_sha256, request_of
from kaleido_jax.pipeline.references import read_references
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.testing.tiny import TINY_CONFIG, save_tiny_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def generation(tmp_path, model):
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "cat.png")
    references = read_references([tmp_path / "cat.png"], height=32, width=48, frames=5, frames_per_second=8)
    return Generation(
        video=random.integers(0, 256, (5, 32, 48, 3), dtype=np.uint8),
        prompt="a red cat; rm -rf $HOME",
        references=references,
        settings=Settings(seed=7).resolved(TINY_CONFIG),
        config=TINY_CONFIG,
        folder=model,
    )


def request(generation):
    g = generation
    return request_of(g.prompt, g.references, g.settings, g.config, g.folder)


def files(folder):
    return sorted(name for name in os.listdir(folder) if name != "cat.png")


def test_three_files(generation, tmp_path):
    paths = generation.save(tmp_path / "new" / "out.mp4")
    assert files(tmp_path / "new") == ["out.json", "out.mp4", "out.sheet.png"]
    assert set(paths) == {"video", "sheet", "record"} and all(path.exists() for path in paths.values())
    with Image.open(paths["sheet"]) as sheet:
        assert sheet.width > 500


def test_the_record_holds_what_is_needed(generation, tmp_path, model):
    record = json.loads(generation.save(tmp_path / "out.mp4")["record"].read_text())
    asked = record["request"]
    assert asked["prompt"] == generation.prompt and asked["settings"]["seed"] == 7
    assert asked["references"][0]["sha256"] == generation.references[0].sha256
    assert asked["model"]["weights"] == {
        name: file_sha256(model / name)
        for name in ("text.safetensors", "tokenizer.json", "transformer.safetensors", "vae.safetensors")
    }
    assert {"jax", "numpy", "av", "python"} <= set(record["made_with"])
    assert record["outputs"]["out.mp4"] == file_sha256(tmp_path / "out.mp4")
    words = shlex.split(record["command"])
    assert words[:2] == ["kaleido", "generate"] and words[words.index("--prompt") + 1] == generation.prompt
    assert words[words.index("--seed") + 1] == "7" and words[words.index("--size") + 1] == "48x32"


def test_a_second_save_is_refused_unless_it_is_the_same(generation, tmp_path):
    generation.save(tmp_path / "out.mp4")
    generation.save(tmp_path / "out.mp4")
    other = dataclasses.replace(generation, prompt="a dog")
    with pytest.raises(UsageError, match=r"made with another prompt; overwrite it or"):
        other.save(tmp_path / "out.mp4")
    other.save(tmp_path / "out.mp4", overwrite=True)
    assert json.loads((tmp_path / "out.json").read_text())["request"]["prompt"] == "a dog"


def test_finished_means_that_everything_is_as_asked(generation, tmp_path):
    outputs = Outputs.of(tmp_path / "out.mp4")
    assert outputs.found(request(generation)) == (Found.NOTHING, "")
    generation.save(outputs.video)
    assert outputs.found(request(generation)) == (Found.FINISHED, "")
    for change in ({"prompt": "a dog"}, {"settings": Settings(seed=8).resolved(TINY_CONFIG)}, {"references": ()}):
        assert outputs.found(request(dataclasses.replace(generation, **change)))[0] is Found.OTHER


@pytest.mark.parametrize("name", ["out.mp4", "out.sheet.png", "out.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_file_is_not_finished(generation, tmp_path, name, damage):
    outputs = Outputs.of(tmp_path / "out.mp4")
    generation.save(outputs.video)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20] if damage == "cut" else b"[1, 2]")
    found, words = outputs.found(request(generation))
    assert found is Found.OTHER and words


def test_weights_belong_to_the_request(generation, tmp_path):
    outputs = Outputs.of(tmp_path / "out.mp4")
    generation.save(outputs.video)
    other = dataclasses.replace(generation, folder=save_tiny_bundle(tmp_path / "other", seed=1))
    assert "another model" in outputs.found(request(other))[1]


@pytest.mark.parametrize("step", ["write_mp4", "contact_sheet", "record_of", "file_sha256"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), ValueError()])
def test_nothing_is_left_if_any_step_fails(generation, tmp_path, monkeypatch, step, error):
    real = getattr(module, step)

    def fail(*args, **kwargs):
        real(*args, **kwargs)
        raise error

    Outputs.of(tmp_path / "out.mp4").check(generation, overwrite=False)
    monkeypatch.setattr(module, step, fail)
    with pytest.raises((type(error), StorageError)):
        Outputs.of(tmp_path / "out.mp4").write(generation)
    assert files(tmp_path) == []


def test_names_and_places_that_cannot_be(generation, tmp_path):
    with pytest.raises(UsageError, match=r"must end in \.mp4"):
        generation.save(tmp_path / "out.avi")
    (tmp_path / "dir.mp4").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        generation.save(tmp_path / "dir.mp4", overwrite=True)
    with pytest.raises(StorageError, match="is a file, not a folder"):
        generation.save(tmp_path / "cat.png" / "out.mp4")


def test_an_input_is_never_overwritten(generation, tmp_path):
    os.link(tmp_path / "cat.png", tmp_path / "out.sheet.png")
    with pytest.raises(UsageError, match="would overwrite an input"):
        generation.save(tmp_path / "out.mp4", overwrite=True)
