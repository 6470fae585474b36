"""Files of prompts: both formats, and every wrong line named by its number before anything is made."""

import json
from pathlib import Path

import pytest

from kaleido_jax.cli.jobs import read_jobs, settings_of, subject_files
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.pipeline.request import Settings


def jobs(folder: Path, *lines, settings=None, name="prompts.txt"):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return read_jobs(folder / name, Path("videos"), settings or Settings())


def refused(folder, *lines) -> str:
    with pytest.raises(InputError) as caught:
        jobs(folder, *lines)
    message = str(caught.value)
    assert message.isprintable() and "prompts.txt" in message and len(message) < 500
    return message


def test_plain_lines_encode_only_what_is_before_the_first_mark(folder):
    first, second = jobs(folder, "a red cat@@cat.png@@dog.jpg", "", "  a dog jumps @@ dog.jpg  ")
    assert first.prompt == "a red cat" and first.references == ((str(folder / "cat.png"),), (str(folder / "dog.jpg"),))
    assert second.prompt == "a dog jumps" and second.references == ((str(folder / "dog.jpg"),),)
    assert [job.out for job in (first, second)] == [Path("videos/0001.mp4"), Path("videos/0003.mp4")]  # by line


def test_several_pictures_of_one_subject(folder):
    (job,) = jobs(folder, "a cat@@cat.png,dog.jpg@@dog.jpg")
    assert [len(files) for files in job.references] == [2, 1]
    (job,) = jobs(folder, {"prompt": "a cat", "references": [["cat.png", "dog.jpg"], "dog.jpg"]})
    assert [len(files) for files in job.references] == [2, 1]
    assert subject_files("a.png,b.png") == ("a.png", "b.png")
    (folder / "odd,name.png").write_bytes(b"x")
    assert subject_files("odd,name.png") == ("odd,name.png",)


def test_json_lines_override_the_options(folder):
    line = {
        "prompt": "a cat",
        "references": ["cat.png"],
        "out": "sub/one.mp4",
        "seed": 5,
        "size": "64x32",
        "guidance": 2,
    }
    plain = {"prompt": "a cat", "references": ["cat.png"]}
    one, other = jobs(folder, line, plain, settings=settings_of({"seed": 9, "steps": 4, "size": "48"}))
    assert one.out == Path("videos/sub/one.mp4")
    assert one.settings == Settings(seed=5, steps=4, width=64, height=32, guidance=2.0)
    assert other.settings == Settings(seed=9, steps=4, width=48, height=48)


def test_pictures_beside_the_file_come_first_then_the_current_folder(folder):
    (folder / "lists").mkdir()
    (folder / "lists" / "cat.png").write_bytes(b"x")
    (job,) = jobs(folder, "a cat@@cat.png@@dog.jpg", name="lists/prompts.txt")
    assert job.references == ((str(folder / "lists" / "cat.png"),), ("dog.jpg",))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("@@cat.png", "prompt is empty"),
        ("a cat", "no reference picture"),
        ("a cat@@", "empty file name"),
        ("a\x00cat@@cat.png", "control character"),
        ("{not json", "not valid JSON"),
        ("{" * 100_000, "not valid JSON"),
        ({"prompt": "a cat"}, "no reference picture"),
        ({"prompt": "a cat", "references": []}, "no reference picture"),
        ({"prompt": "a cat", "references": "cat.png"}, "no reference picture"),
        ({"prompt": "a cat", "references": [[]]}, "reference is []"),
        ({"prompt": "a cat", "references": [5]}, "reference is 5"),
        ({"prompt": 5, "references": ["cat.png"]}, "prompt is 5"),
        ({"references": ["cat.png"]}, "prompt is None"),
        ({"prompt": "a cat", "references": ["cat.png"], "sed": 5}, "no field 'sed'; did you mean 'seed'?"),
        ({"prompt": "a cat", "references": ["cat.png"], "seed": -1}, "seed is -1"),
        ({"prompt": "a cat", "references": ["cat.png"], "seed": True}, "seed is True"),
        ({"prompt": "a cat", "references": ["cat.png"], "steps": "1e9"}, "steps is '1e9'"),
        ({"prompt": "a cat", "references": ["cat.png"], "guidance": float("nan")}, "guidance is nan"),
        ({"prompt": "a cat", "references": ["cat.png"], "guidance": float("inf")}, "guidance is inf"),
        ({"prompt": "a cat", "references": ["cat.png"], "size": "96by96"}, "size is '96by96'"),
        ({"prompt": "a cat", "references": ["cat.png"], "size": True}, "size is True"),
        ({"prompt": "a cat", "references": ["cat.png"], "out": "../../x.mp4"}, "inside the output folder"),
        ({"prompt": "a cat", "references": ["cat.png"], "out": "/tmp/x.mp4"}, "inside the output folder"),
        ({"prompt": "a cat", "references": ["cat.png"], "out": "..\\x.mp4"}, "inside the output folder"),
        ({"prompt": "a cat", "references": ["cat.png"], "out": "a\x1b.mp4"}, "must be a file name"),
        ({"prompt": "a cat", "references": ["cat.png"], "out": "x.avi"}, "ends in .mp4"),
        ({"prompt": "a cat", "references": ["cat.png"], "out": 3}, "must be a file name"),
        ("[1, 2]", "no reference picture"),
    ],
)
def test_a_wrong_line_is_named(folder, as_users_run_it, line, words):
    message = refused(folder, "a cat@@cat.png", line)
    assert words in message and "prompts.txt, line 2: " in message


def test_two_lines_cannot_write_one_file(folder):
    line = {"prompt": "a cat", "references": ["cat.png"], "out": "one.mp4"}
    assert "line 2: writes videos/one.mp4, as line 1 does" in refused(folder, line, line)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00", b"a cat@@cat.png\n" * 10_001])
def test_files_that_are_no_list_of_prompts(folder, content):
    (folder / "prompts.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"prompts\.txt"):
        read_jobs(folder / "prompts.txt", Path("videos"), Settings())


def test_byte_order_mark_and_windows_line_ends(folder):
    (folder / "prompts.txt").write_bytes("a cat@@cat.png\r\na dog@@dog.jpg\r\n".encode("utf-8-sig"))
    assert [job.prompt for job in read_jobs(folder / "prompts.txt", Path("v"), Settings())] == ["a cat", "a dog"]


@pytest.mark.parametrize("size", ["96x", "x96", "96x96x3", "-96x96", "1e2x96", "٩٦x96", "96 x 96", ""])
def test_sizes(size):
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        settings_of({"size": size})
