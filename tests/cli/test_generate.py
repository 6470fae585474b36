"""`kaleido generate` on a tiny model: what it makes, and every wrong input told before the model is loaded."""

import json
import os
import shlex

import av
import numpy as np
import pytest
from PIL import Image

from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.pipeline.record import file_sha256

PROMPT = "a red cat walks left"


@pytest.fixture
def generate(kaleido, model):
    return lambda *arguments: kaleido("generate", "--model", model, *arguments)


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if the model is loaded: what is wrong must be told before."""

    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Pipeline, "load", load)


def outputs(folder):
    return sorted(name for name in os.listdir(folder) if name not in ("cat.png", "dog.jpg"))


def test_a_video_its_sheet_and_its_record(generate, folder):
    code, out, err = generate(
        "--reference", "cat.png", "--reference", "dog.jpg", "--prompt", PROMPT, "--out", "a/o.mp4"
    )
    assert code == 0, err
    assert out == "a/o.mp4\n" and outputs(folder / "a") == ["o.json", "o.mp4", "o.sheet.png"]
    with av.open("a/o.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5 and frames[0].shape == (32, 48, 3)
    with Image.open("a/o.sheet.png") as sheet:
        assert sheet.width > 500
    for words in ("loading the model tiny", "compiling the transformer", "sampling", "made a/o.mp4"):
        assert words in err


def test_python_takes_the_same_path(generate, folder, model):
    generate("--reference", "cat.png,dog.jpg", "--prompt", PROMPT, "--out", "cli.mp4", "--seed", "3", "--steps", "2")
    pipeline = Pipeline.load(model, compile_cache=False)
    made = pipeline(references=[["cat.png", "dog.jpg"]], prompt=PROMPT, seed=3, steps=2)
    made.save("python.mp4")
    # A program from the compile cache and one compiled anew may round differently in the last bit: compared by pixel
    # levels after the video codec, which a different seed or path would miss by tens.
    with Image.open("cli.sheet.png") as ours, Image.open("python.sheet.png") as theirs:
        difference = np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16))
    assert difference.mean() < 1.0


def test_the_recorded_command_makes_it_again(kaleido, generate, folder):
    generate("--reference", "cat.png,dog.jpg", "--prompt", PROMPT, "--out", "o.mp4", "--seed", "3", "--steps", "2")
    command = json.loads((folder / "o.json").read_text())["command"]
    assert kaleido(*shlex.split(command)[1:], "--out", "again.mp4")[0] == 0
    assert file_sha256(folder / "o.mp4") == file_sha256(folder / "again.mp4")


def test_what_is_finished_is_skipped(generate, folder, monkeypatch):
    arguments = ["--reference", "cat.png", "--prompt", PROMPT, "--out", "o.mp4"]
    assert generate(*arguments)[0] == 0
    before = os.stat("o.mp4").st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "load", None)
        code, _, err = generate(*arguments)
        assert code == 0 and "finished already" in err and os.stat("o.mp4").st_mtime_ns == before
        code, _, err = generate(*arguments, "--seed", "1")
        assert code == 2 and "made with another settings; give --overwrite" in err
    assert generate(*arguments, "--seed", "1", "--overwrite")[0] == 0
    assert os.stat("o.mp4").st_mtime_ns != before


def test_a_file_of_prompts(generate, folder):
    (folder / "prompts.txt").write_text(f"{PROMPT}@@cat.png\na blue dog@@dog.jpg@@cat.png\n")
    code, out, err = generate("--prompts", "prompts.txt", "--out", "videos", "--steps", "1")
    assert code == 0, err
    assert out.split() == ["videos/0001.mp4", "videos/0002.mp4"] and len(outputs(folder / "videos")) == 6
    assert json.loads((folder / "videos/0001.json").read_text())["request"]["prompt"] == PROMPT
    assert "video 2 of 2" in err
    # What was finished before an interruption is not made again.
    for name in ("0002.mp4", "0002.sheet.png", "0002.json"):
        (folder / "videos" / name).unlink()
    code, out, err = generate("--prompts", "prompts.txt", "--out", "videos", "--steps", "1")
    assert code == 0 and out.split() == ["videos/0002.mp4"] and "0001.mp4 is finished already" in err


def test_notes_about_the_prompt_and_the_references(generate, folder):
    pictures = ["--reference", "cat.png,cat.png,dog.jpg", "--reference", "dog.jpg"]
    code, _, err = generate(*pictures, "--prompt", "a zebra walks left a red cat walks left", "--steps", "1")
    assert code == 0 and outputs(folder) == ["out.json", "out.mp4", "out.sheet.png"]
    assert "note: There are 4 reference pictures, and the model was trained with at most 3" in err
    assert "of which the first 8 are kept" in err and '"zebra"' in err
    assert "UserWarning" not in err and ".py:" not in err


BAD = [
    # wrong usage: 2
    ([], 2, "There is no prompt"),
    (["--prompt", PROMPT], 2, "There is no reference picture"),
    (["--reference", "cat.png"], 2, "There is no prompt"),
    (["--prompts", "p.txt", "--prompt", PROMPT], 2, "--prompts brings its own"),
    (["R", "--seed", "-1"], 2, "seed is -1; it must be a whole number from 0 to 4294967295"),
    (["R", "--seed", "9" * 5000], 2, "seed is "),
    (["R", "--seed", "4294967296"], 2, "seed is 4294967296"),
    (["R", "--steps", "0"], 2, "steps is 0; it must be a whole number from 1 to 100"),
    (["R", "--steps", "1e9"], 2, "steps is 1000000000.0; it must be a whole number"),
    (["R", "--steps", "many"], 2, "steps is 'many'"),
    (["R", "--guidance", "nan"], 2, "guidance is nan; it must be a number from 0 to 100"),
    (["R", "--guidance", "inf"], 2, "guidance is inf"),
    (["R", "--guidance=-1"], 2, "guidance is -1"),
    (["R", "--shift", "0"], 2, "shift is 0"),
    (["R", "--size", "100x96"], 2, "width is 100; for this model it must be a multiple of 16, nearest: 96 and 112"),
    (["R", "--size", "96x100"], 2, "height is 100"),
    (["R", "--size", "8"], 2, "multiple of 16, nearest: 16"),
    (["R", "--size", "big"], 2, "size is 'big'; write WIDTHxHEIGHT"),
    (["R", "--size", "99999x99999"], 2, "it must be a whole number from 1 to 2048"),
    (["R", "--frames", "18"], 2, "frames is 18; for this model it must be 4 n + 1, nearest: 17 and 21"),
    (["R", "--frames", "0"], 2, "frames is 0"),
    (["R", "--sampler", "eular"], 2, "There is no sampler 'eular'; did you mean 'euler'?"),
    (["R", "--method", "kaledo"], 2, "There is no method 'kaledo'; did you mean 'kaleido'?"),
    (["R", "--model", "no/such/folder"], 2, "There is no model folder 'no/such/folder'"),
    (["R", "--model", "cat.png"], 2, "is a file; give the folder"),
    (["R", "--model", "miniatur"], 2, "There is no model 'miniatur'"),
    (["R", "--out", "o.avi"], 2, "must end in .mp4"),
    (["R", "--out", "there.mp4"], 2, "there.mp4 exists and has no record"),
    (["R", "--out", "folder.mp4", "--overwrite"], 2, "is a folder"),
    (["--prompt", PROMPT, *["--reference", "cat.png"] * 17], 2, "17 reference pictures, and at most 16"),
    # bad input: 65
    (["--reference", "none.png", "--prompt", PROMPT], 65, "none.png: there is no such file"),
    (["--reference", "empty.png", "--prompt", PROMPT], 65, "empty.png: the file is empty"),
    (["--reference", "cut.png", "--prompt", PROMPT], 65, "cut.png: the picture is damaged or cut off"),
    (["--reference", "text.png", "--prompt", PROMPT], 65, "text.png: is not a picture"),
    (
        ["--reference", "huge.png", "--prompt", PROMPT],
        65,
        "huge.png: the picture has over 178 million pixels, and at most 25 megapixels",
    ),
    (["--reference", "moving.webp", "--prompt", PROMPT], 65, "moving.webp: is an animation of 2 pictures"),
    (["--reference", "moving.gif", "--prompt", PROMPT], 65, "moving.gif: is a GIF file"),
    (["--reference", "nothing.png", "--prompt", PROMPT], 65, "nothing.png: "),
    (["--reference", "cut.mp4", "--prompt", PROMPT], 65, "cut.mp4: the clip is damaged"),
    (["--reference", ".", "--prompt", PROMPT], 65, ".: is a folder"),
    (["--reference", "cat.png", "--prompt", ""], 65, "The prompt is empty"),
    (["--reference", "cat.png", "--prompt", " \u200b"], 65, "The prompt is empty"),
    (["--reference", "cat.png", "--prompt", "x" * 2001], 65, "2001 characters, and at most 2000"),
    (["--reference", "cat.png", "--prompt", "a\x1b[2Jb"], 65, "control character U+001B"),
    (["--reference", "cat.png", "--prompt", "a\udcffb"], 65, "not valid Unicode"),
    (["--prompts", "none.txt"], 65, "none.txt: there is no such file"),
    (["--prompts", "cat.png"], 65, "not UTF-8"),
    (["--prompts", "bad.txt"], 65, "bad.txt, line 2: none.png: there is no such file"),
    (["--prompts", "odd.txt"], 65, "odd.txt, line 1: frames is 4"),
    (["R", "--model", "."], 65, "is not a model folder"),
    # storage: 74
    (["R", "--out", "cat.png/o.mp4"], 74, "a part of that path is a file, not a folder"),
    (["R", "--out", "/proc/o.mp4"], 74, "Cannot write"),
]


@pytest.fixture
def bad_files(folder):
    whole = (folder / "cat.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("just a text")
    (folder / "there.mp4").write_text("somebody else's")
    (folder / "folder.mp4").mkdir()
    (folder / "cut.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(40))
    (folder / "bad.txt").write_text("a cat@@cat.png\na cat@@none.png\n")
    (folder / "odd.txt").write_text('{"prompt": "a cat", "references": ["cat.png"], "frames": 4}\n')
    Image.new("1", (20000, 10000)).save(folder / "huge.png")
    frames = [Image.fromarray(np.full((9, 9, 3), grey, np.uint8)) for grey in (0, 255)]
    for name in ("moving.webp", "moving.gif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    header = bytearray(whole)
    header[16:24] = bytes(8)  # a picture of 0 x 0
    (folder / "nothing.png").write_bytes(header)
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "words"), BAD, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_bad_input(generate, bad_files, no_model, as_users_run_it, arguments, code, words):
    request = ["--reference", "cat.png", "--prompt", PROMPT]
    arguments = [word for argument in arguments for word in (request if argument == "R" else [argument])]
    before = outputs(bad_files)
    actual, out, err = generate(*arguments)
    sentences = [line for line in err.splitlines() if "starting jax" not in line and ": note: " not in line]
    assert (actual, out) == (code, "") and len(sentences) == 1, err
    assert words in sentences[0] and sentences[0].startswith("kaleido: ") and sentences[0].endswith((".", "--help"))
    assert sentences[0].isprintable() and len(sentences[0]) < 600
    assert outputs(bad_files) == before


def test_an_input_is_never_overwritten(generate, folder, no_model):
    os.rename("cat.png", "o.sheet.png")
    code, _, err = generate("--reference", "o.sheet.png", "--prompt", PROMPT, "--out", "o.mp4", "--overwrite")
    assert code == 2 and "o.sheet.png would overwrite an input" in err
    assert outputs(folder) == ["o.sheet.png"]


def test_a_method_that_is_not_the_models(generate, folder, no_model, monkeypatch):
    monkeypatch.setattr("kaleido_jax.pipeline.models.METHODS", ("kaleido", "phantom"))
    code, _, err = generate("--reference", "cat.png", "--prompt", PROMPT, "--method", "phantom")
    assert code == 2 and "was trained with method kaleido, not phantom" in err


@pytest.mark.parametrize("name", ["transformer.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_model(kaleido, folder, model, name, damage):
    copy = folder / "model"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    path = copy / name
    path.write_bytes(path.read_bytes()[:-30]) if damage == "cut" else path.unlink()
    code, _, err = kaleido("generate", "--model", copy, "--reference", "cat.png", "--prompt", PROMPT)
    assert code == 65 and name.split(".")[0] in err and "Traceback" not in err
    assert outputs(folder) == ["model"]


def test_a_primary_reference_that_there_is_not(generate, folder, no_model):
    code, _, err = generate("--reference", "cat.png", "--prompt", PROMPT, "--primary", "2")
    assert code == 2 and "primary is 2; it must be a whole number from 1 to 1" in err


def test_no_reference_for_a_model_that_needs_one(generate, folder, no_model):
    code, _, err = generate("--prompt", "a cat || it walks || it sleeps")
    assert code == 2 and "There is no reference picture" in err
