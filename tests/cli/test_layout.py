"""`kaleido layout`: the picture it writes, what it refuses, and that asking for help stays cheap."""

import argparse
import subprocess
import sys

import pytest
from PIL import Image

from kaleido_jax import masks, rope
from kaleido_jax.cli import layout as command
from kaleido_jax.errors import ExitCode, StorageError, UsageError


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


SMALL = ("--video", "2x2x3", "--shots", "2")


@pytest.mark.parametrize("method", sorted(command.METHODS))
def test_draws_every_method(method, tmp_path, capsys):
    out = tmp_path / "new" / "picture.png"
    assert run("--method", method, *SMALL, "--out", out) == 0
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 800
    assert capsys.readouterr().out.startswith(f"{out}: ")
    assert [path.name for path in out.parent.iterdir()] == ["picture.png"]


def test_methods_name_what_exists():
    for method in command.METHODS.values():
        assert method.scheme in rope.SCHEMES and method.rule in masks.RULES


def test_options(tmp_path, capsys):
    """Two packed samples, each with two references of 2 x 2 x 2, a video of 3 x 2 x 2 and 5 words."""
    out = tmp_path / "a.png"
    options = ("--references", "1,2", "--reference", "2x2x2", "--text", 5, "--samples", 2, "--block", 4)
    assert run("--method", "gap", "--mask", "separate-subjects", "--video", "3x2x2", *options, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: {2 * (2 * 8 + 12 + 5)} tokens in 8 segments\n"
    assert run("--references", "0", *SMALL, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: 12 tokens in 1 segments\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "kaleide"), "There is no method or position scheme 'kaleide'; did you mean 'kaleido'?"),
        (("--mask", "shot_causal"), "There is no visibility rule 'shot_causal'; did you mean 'shot-causal'?"),
        (("--out", "picture.jpg"), "its name must end in .png"),
        (("--block", "0"), "must be at least 1"),
        (("--video", "99x99x99"), "at most 50000 can be drawn"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        run(*arguments)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code == ExitCode.USAGE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--video", "5x6"), "'5x6' is not a size; write frames, height and width in tokens like 5x6x10"),
        (("--video", "0x6x6"), "is not a size"),
        (("--references", "1,x"), "write the subject of each reference like 1,1,2"),
        (("--text", "-1"), "argument --text"),
        (("--block", "many"), "'many' is not a whole number"),
    ],
)
def test_a_wrong_number_is_refused_by_the_parser(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == ExitCode.USAGE
    assert words in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        run(*SMALL, "--out", tmp_path / "file" / "a.png")


def test_help_loads_nothing_heavy():
    code = (
        "import argparse, sys; from kaleido_jax.cli import layout; layout.add_arguments(argparse.ArgumentParser());"
        "print(sorted({'jax', 'numpy', 'PIL', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
