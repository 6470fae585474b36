"""`kaleido port` and `kaleido inspect` as commands: what they print, and their exit codes."""

import os

import numpy as np

from kaleido_jax.cli.main import main
from kaleido_jax.errors import ExitCode
from kaleido_jax.testing.checkpoints import assert_same_bits, tensors_of, wan_folder


def test_there_and_back(tmp_path, capsys, caplog):
    source = wan_folder(tmp_path / "source")
    assert main(["port", str(source), str(tmp_path / "arrays"), "--to", "orbax"]) == 0
    assert main(["port", str(tmp_path / "arrays"), str(tmp_path / "back"), "--to", "original"]) == 0
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(source))
    printed = capsys.readouterr()
    assert f"{tmp_path / 'back'}: wan weights of layout original, 96 tensors, " in printed.out
    assert "kaleido: port: 100%" in printed.err and "B/s" in printed.err
    assert "OCDBT" not in printed.err + caplog.text  # orbax's own words, of no use to anybody


def test_inspect_says_what_it_is(tmp_path, capsys):
    assert main(["inspect", str(wan_folder(tmp_path / "source"))]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["family"], lines["layout"], lines["problems"]) == ("wan", "original", "none")
    assert lines["size"].startswith("Wan2.1-T2V-1.3B, but dim is 256 instead of 1536; ")
    assert lines["parameters"].endswith(" in 96 tensors") and lines["dtypes"].startswith("bfloat16 (")
    broken = wan_folder(tmp_path / "broken", **{"head.head.bias": None, "blocks.0.extra": np.zeros(2)})
    assert main(["inspect", str(broken)]) == ExitCode.BAD_INPUT
    assert "problems     2\n  missing head.head.bias\n  unexpected blocks.0.extra" in capsys.readouterr().out


def test_exit_codes(tmp_path, capsys):
    source = wan_folder(tmp_path / "source")
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x02}q\x00.")
    for arguments, code, sentence in (
        ((source, tmp_path / "source"), ExitCode.USAGE, "exists; choose another destination, or --overwrite it"),
        ((source, tmp_path / "x", "--dtype", "float99"), ExitCode.USAGE, "There is no dtype 'float99'"),
        ((tmp_path / "bad.safetensors", tmp_path / "x"), ExitCode.BAD_INPUT, "is a Python pickle"),
        ((source, "/proc/x/y"), ExitCode.STORAGE, "cannot write /proc/x/y"),
    ):
        assert main(["port", *map(str, arguments)]) == code
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("kaleido: ") and sentence in error, error
    assert sorted(os.listdir(tmp_path)) == ["bad.safetensors", "source"]
