"""`kaleido generate` with a tiny FLUX.1 release: pictures, groups, their records, and every wrong request."""

import json
import os
import shlex

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.pipeline import text_to_image
from kaleido_jax.pipeline.record import file_sha256
from kaleido_jax.testing.tiny_flux import save_tiny_flux

GROUP = """in the forest#a red cat#walks
in the forest#a red cat#sleeps
on the beach#a red cat#walks
"""
SMALL = ["--size", "48x40", "--steps", "2"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return save_tiny_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture
def generate(kaleido, flux):
    return lambda *arguments: kaleido("generate", "--model", flux, *arguments)


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if the model is loaded: what is wrong must be told before."""

    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(text_to_image, "load_flux", load)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_picture_and_its_record(kaleido, generate, folder):
    code, out, err = generate("--prompt", "a red cat walks", "--out", "a/o.png", *SMALL)
    assert code == 0, err
    assert out == "a/o.png\n" and pixels("a/o.png").shape == (40, 48, 3)
    record = json.loads((folder / "a/o.json").read_text())
    assert record["request"]["prompt"] == "a red cat walks"
    assert record["outputs"] == {"o.png": file_sha256(folder / "a/o.png")}
    code, _, err = generate("--prompt", "a red cat walks", "--out", "a/o.png", *SMALL)
    assert code == 0 and "finished already" in err
    code, _, err = generate("--prompt", "a blue cat walks", "--out", "a/o.png", *SMALL)
    assert code == 2 and "was made with another prompt; give --overwrite" in err
    assert kaleido(*shlex.split(record["command"])[1:], "--out", "again.png")[0] == 0
    assert file_sha256(folder / "again.png") == file_sha256(folder / "a/o.png")


def test_a_group_with_a_given_identity_picture(generate, folder):
    (folder / "group.txt").write_text(GROUP)
    arguments = ["--method", "characonsist", "--group", "group.txt", "--option", "keep_background=True", *SMALL]
    code, out, err = generate(*arguments, "--reference", "cat.png", "--frames-at-once", "2")
    assert code == 0, err
    names = ["identity", "frame_1", "frame_2"]
    assert out.split() == [f"outputs/group_1/{name}.png" for name in names]
    assert sorted(os.listdir("outputs/group_1")) == sorted(
        ["record.json", *(f"{name}{ending}" for name in names for ending in (".png", ".mask.png"))]
    )
    assert set(np.unique(pixels("outputs/group_1/frame_1.mask.png"))) <= {0, 255}
    assert pixels("outputs/group_1/frame_2.png").shape == (40, 48, 3)
    request = json.loads((folder / "outputs/group_1/record.json").read_text())["request"]
    assert request["group"] == GROUP.split("\n")[:3] and request["method"]["keep_background"] is True
    assert len(request["identity"]) == 64
    code, _, err = generate(*arguments, "--reference", "cat.png")
    assert code == 0 and "finished already" in err
    code, _, err = generate(*arguments)
    assert code == 2 and "was made with another identity; give --overwrite" in err


BAD = [
    ([], 2, "There is no prompt; say what the picture shows with --prompt, or give --group FILE"),
    (["--method", "characonsist"], 2, "give a file of their prompts with --group FILE"),
    (["--method", "kaleido", "P"], 2, "--method is 'kaleido'; FLUX.1 runs characonsist"),
    (["P", "--frames", "5"], 2, "--frames is for videos"),
    (["P", "--lora", "x"], 2, "--lora is for videos"),
    (["P", "--reference", "cat.png"], 2, "--reference is for --group"),
    (["P", "--setting", "paper"], 2, "--setting is for --group"),
    (["P", "--size", "42x40"], 2, "width is 42; for this model it must be a multiple of 8, nearest: 40 and 48"),
    (["P", "--steps", "0"], 2, "steps is 0"),
    (["P", "--out", "o.mp4"], 2, "the name of a picture must end in .png"),
    (["G", "P"], 2, "--group brings its own prompts; leave out --prompt"),
    (["G", "--reference", "cat.png", "--reference", "dog.jpg"], 2, "There are 2 references; a group takes one"),
    (["G", "--reference", "none.png"], 65, "none.png"),
    (["G", "--setting", "papers"], 2, "There is no setting of characonsist 'papers'; did you mean 'paper'?"),
    (["G", "--option", "treshold=0.4"], 2, "has no field treshold; did you mean threshold?"),
    (["G", "--option", "threshold=high"], 2, "threshold=high is refused"),
    (["G", "--option", "erode=2"], 2, "erode is 2; it must be odd, such as 3"),
    (["G", "--option", "match_at=50"], 2, "match_at is 50; it must be from 0 to 49"),
    (["G", "--frames-at-once", "0"], 2, "frames-at-once is 0; it must be a whole number from 1 to 64"),
    (["--group", "none.txt"], 65, "none.txt"),
    (["--group", "bad.txt"], 65, "bad.txt, line 1: has 0 signs #"),
]


@pytest.mark.parametrize(("arguments", "code", "sentence"), BAD)
def test_wrong_requests(generate, folder, no_model, as_users_run_it, arguments, code, sentence):
    (folder / "group.txt").write_text(GROUP)
    (folder / "bad.txt").write_text("a cat\n")
    short = {"P": ["--prompt", "a cat"], "G": ["--group", "group.txt"]}
    before = sorted(os.listdir())
    found, out, err = generate(*(word for given in arguments for word in short.get(given, [given])))
    assert (found, out) == (code, "")
    assert sentence in err and err.count("\n") == 1 and "Traceback" not in err
    assert sorted(os.listdir()) == before


def test_options_of_pictures_with_another_model(kaleido, model, folder, flux):
    (folder / "group.txt").write_text(GROUP)
    code, _, err = kaleido("generate", "--model", model, "--group", "group.txt")
    assert code == 2 and "is no FLUX.1 release as diffusers lays it out: it has no folder transformer" in err
    code, _, err = kaleido("generate", "--model", model, "--prompt", "a cat", "--setting", "paper")
    assert code == 2 and "--setting is for pictures of FLUX.1" in err
