"""The command itself: help at once, one sentence for every mistake, the table of exit codes."""

import errno
import time

import pytest

from kaleido_jax.cli.main import COMMANDS
from kaleido_jax.errors import ExitCode, InputError, StorageError, UsageError, nearest_name, printable, unknown_name


def test_help_is_there_at_once(process):
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        result = process("--help")
        seconds.append(time.monotonic() - began)
        assert result.returncode == 0 and not result.stderr
        assert all(command in result.stdout for command in COMMANDS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["train", "--help"], ["layout", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    import subprocess
    import sys

    program = (
        "import sys\nfrom kaleido_jax.cli import main\n"
        f"assert main({arguments}) == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'PIL', 'av', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: kaleido")


def test_no_command_shows_the_help_and_is_wrong_usage(kaleido):
    code, out, _ = kaleido()
    assert code == 2 and out.startswith("usage: kaleido")


def test_version(kaleido):
    code, out, _ = kaleido("--version")
    assert code == 0 and out.startswith("kaleido_jax ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["genrate"], "There is no command 'genrate'; did you mean generate?"),
        (["\x1b[31m"], "There is no command"),
        (["generate", "--promt", "x"], "There is no option '--promt'; did you mean --prompt?"),
        (["generate", "--seed"], "argument --seed: expected one argument"),
        (["generate", "stray"], "There is no argument 'stray'"),
        (["--verison"], "There is no option '--verison'; did you mean --version?"),
    ],
)
def test_wrong_usage_is_one_sentence(kaleido, arguments, words):
    code, out, err = kaleido(*arguments)
    assert code == 2 and not out
    assert words.lower() in err.lower() and err.startswith("kaleido: ") and err.count("\n") == 1
    assert err[:-1].isprintable()


def raising(monkeypatch, error):
    def run(args):
        raise error

    monkeypatch.setattr("kaleido_jax.cli.layout.run", run)
    monkeypatch.delenv("KALEIDO_TRACEBACK", raising=False)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("Say this."), 2, "Say this."),
        (InputError("Say\nthis\x07."), 65, "Say\\u000athis\\u0007."),
        (StorageError("Full."), 74, "Full."),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 74, "Cannot write /a/b"),
        (BrokenPipeError(), 74, "has gone"),
        (MemoryError(), 70, "not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), 70, "not enough memory"),
        (ZeroDivisionError("oops"), 70, "internal error, which is a defect of kaleido_jax (ZeroDivisionError: oops)"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C."),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(kaleido, monkeypatch, error, code, words):
    raising(monkeypatch, error)
    actual, _, err = kaleido("layout")
    assert actual == code and words in err and "Traceback" not in err and err.count("\n") == 1


def test_a_traceback_on_demand(kaleido, monkeypatch):
    raising(monkeypatch, ZeroDivisionError("oops"))
    monkeypatch.setenv("KALEIDO_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        kaleido("layout")


def test_exit_codes():
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0,
        "USAGE": 2,
        "BAD_INPUT": 65,
        "INTERNAL": 70,
        "STORAGE": 74,
        "PREEMPTED": 75,
        "DIVERGED": 76,
        "PEER_LOST": 77,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }


def test_nearest_names():
    assert nearest_name("UniPC_wna", ["euler", "unipc-wan"]) == "unipc-wan"
    assert nearest_name("something", ["euler"]) is None
    assert unknown_name("method", "kaledo", ["kaleido"]) == (
        "There is no method 'kaledo'; did you mean 'kaleido'? Known: kaleido."
    )
    assert unknown_name("model", "x" * 1000, []).endswith("Known: none.")


def test_printable():
    assert printable("a\x1b[31m\n\ud800é猫") == "a\\u001b[31m\\u000a\\ud800é猫"
    assert len(printable("x" * 1000)) == 300
