"""Scenes on a tiny model: what is given stays, what is chosen matters, and a cache changes nothing."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.errors import InputError, KaleidoError, UsageError
from kaleido_jax.media.video import write_mp4
from kaleido_jax.methods import scene as planning
from kaleido_jax.methods.scene import Scene, Shot
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.pipeline.references import read_references
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.pipeline.scene_file import read_scene
from kaleido_jax.pipeline.scenes import SceneMaker
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle

FRAMES = 5


def of(attention):
    config = dataclasses.replace(TINY_CONFIG, method="lct", scheme="interleaved", options=(f"attention={attention}",))
    return Pipeline(tiny_bundle(config))


@pytest.fixture(scope="module")
def pipeline():
    return of("bidirectional")


@pytest.fixture
def files(tmp_path):
    """A clip and a picture."""
    random = np.random.default_rng(0)
    write_mp4(tmp_path / "clip.mp4", random.integers(0, 256, (FRAMES, 32, 48, 3), dtype=np.uint8), 8)
    Image.fromarray(random.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(tmp_path / "cat.png")
    return tmp_path


def maker(pipeline, scene, **fields):
    settings = Settings(**fields).resolved(pipeline.config)
    size = {"height": 32, "width": 48, "frames": FRAMES, "frames_per_second": 8}
    return SceneMaker(pipeline, scene, read_references(scene.files, **size), settings, lambda what, done, total: None)


def test_the_cache_of_finished_shots_changes_nothing():
    """A causal model keeps keys and values; told to see every earlier shot, it runs all of them anew. One of 255."""
    causal = of("causal")
    kept = causal(scene=Scene.of(["a", "a cat", "a dog"]), steps=2).video
    chosen = Scene(prompt="a", shots=(Shot(prompt="a cat"), Shot(prompt="a dog", condition_on=(1,))))
    again = causal(scene=chosen, steps=2).video
    assert kept.shape == (2 * FRAMES, 32, 48, 3)
    assert np.abs(kept.astype(int) - again).max() <= 1


def test_a_clip_is_its_shot_and_others_are_made_after_it(pipeline, files):
    shots = (Shot(prompt="a cat", clip=str(files / "clip.mp4")), Shot(prompt="a dog"))
    given = maker(pipeline, Scene(shots=shots), steps=2)
    video = given.make()
    np.testing.assert_array_equal(video[:FRAMES], given.pixels[1])
    alone = maker(pipeline, Scene(shots=shots[1:]), steps=2).make()
    assert np.abs(video[FRAMES:].astype(int) - alone).mean() > 0.1


def test_a_shot_goes_on_from_the_last_frame_of_another(pipeline, files):
    """Its first latent frame ends on that frame's latents, whatever the network says. 1e-5: rounding of the steps."""
    shots = (Shot(prompt="a cat", clip=str(files / "clip.mp4")), Shot(extends=1))
    given = maker(pipeline, Scene(shots=shots), steps=2, sampler="unipc_wan")
    video = given.make()
    assert video.shape == (2 * FRAMES - 1, 32, 48, 3)
    last = given._encoded(given.pixels[1][-1:])
    # Wan's UniPC starts at 0.999 of the noise before the shift, so 0.0003 of the start stays.
    np.testing.assert_allclose(given.latents[2][:, :1], last, atol=2e-3)


def test_long_scenes_and_pictures_from_a_file_and_the_record(pipeline, files, monkeypatch):
    monkeypatch.setattr(planning, "MOST_SHOTS", 2)
    (files / "scene.yaml").write_text(
        "prompt: a\nshots:\n- a cat walks\n- prompt: a dog\n  references: [cat.png]\n- a red cat\ncarried: 1\n"
    )
    made = pipeline(scene=files / "scene.yaml", steps=1)
    assert made.video.shape == (3 * FRAMES, 32, 48, 3)
    made.save(files / "scene.mp4")
    record = json.loads((files / "scene.json").read_text())
    assert record["request"]["scene"]["shots"][1]["references"] == 1
    assert f"--scene {files / 'scene.yaml'}" in record["command"]
    Image.new("RGB", (48, 32), (0, 90, 200)).save(files / "cat.png")
    other = pipeline(scene=files / "scene.yaml", steps=1).video.astype(int)
    changed = np.abs(other - made.video).reshape(3, -1).mean(axis=1)
    assert changed[0] == 0 and changed[1] > 0.01


def test_a_scene_file_may_be_json_and_is_changed_from_outside(tmp_path):
    path = tmp_path / "scene.json"
    path.write_text(json.dumps({"prompt": "a film", "shots": ["a cat", {"prompt": "a dog", "condition_on": [1]}]}))
    expected = (Shot(prompt="a cat"), Shot(prompt="a dog", condition_on=(1,)))
    assert read_scene(path) == Scene(prompt="a film", shots=expected, file=str(path))
    with pytest.raises(UsageError, match=r"scene.json: Shot 2 says .* sampling is joint"):
        read_scene(path, sampling="joint")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shots: [a, {prompt: b, condition: [1]}]", "no field of shot 2 'condition'; did you mean 'condition_on'"),
        ("shot: [a]", "no field of the scene 'shot'; did you mean 'shots'"),
        ("- a", "a scene has the fields prompt, shots"),
        ("shots: a cat", "shots is 'a cat'; it must be a list"),
        ("shots: [a, 3]", "Shot 2 is 3; give its prompt"),
        ("shots: [a, {prompt: ''}]", "Shot 2 has no prompt"),
        ("shots: [{prompt: a, condition_on: 1}]", "condition_on of shot 1 is 1; give a list"),
        ("shots: [{prompt: a, references: cat.png}]", "references of shot 1 are 'cat.png'; give a list"),
        ("shots: [{prompt: a, extends: one}]", "extends of shot 1 is 'one'"),
        ("shots: [{prompt: a, clip: 3}]", "The clip of shot 1 is 3"),
        ("shots: [a]\nsegments: 3", "segments is 3; it must be true or false"),
        ("shots: [a", "is neither YAML nor JSON"),
        ("shots: !!python/object/apply:os.getcwd []", "is neither YAML nor JSON"),
    ],
)
def test_scene_files_that_are_wrong(tmp_path, text, words):
    (tmp_path / "scene.yaml").write_text(text)
    with pytest.raises(KaleidoError, match=f"scene.yaml: .*{words}") as caught:
        read_scene(tmp_path / "scene.yaml")
    assert isinstance(caught.value, InputError | UsageError)
