"""The command: what it says where something is wrong, and a run from end to end where Beam is installed."""

import importlib.util
import json

import pytest

from kaleido_jax.cli.main import main
from tests.curation.scenery import write_balls

CONFIG = "from tests.curation.scenery import tiny\n\n\ndef config():\n    return tiny()\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def test_wrong_usage(config, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    for arguments, code, said in (
        ([config, *output], 2, "--input is missing"),
        ([config, "--input", str(tmp_path), "--workers", "0", *output], 2, "--workers is 0"),
        ([config, "pairs.cros=0.1", "--input", str(tmp_path), *output], 2, "did you mean pairs.cross"),
        (["configs/miniature.py", "--input", str(tmp_path), *output], 2, "runs a Curation"),
        ([config, "--input", str(tmp_path / "none"), *output], 65, "there is no such folder"),
        (["audit", *output], 65, "holds no data set"),
    ):
        assert main(["curate", *arguments]) == code
        assert said in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_a_run_by_beam(config, tmp_path, capsys):
    write_balls(tmp_path / "in", 3)
    arguments = [config, "pairs.cross=0.5", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    if importlib.util.find_spec("apache_beam") is None:
        assert main(["curate", *arguments]) == 2 and "kaleido_jax[curation]" in capsys.readouterr().err
        return
    assert main(["curate", *arguments, "--write", "kaleido"]) == 0
    printed = capsys.readouterr().out
    assert "3  size: subjects kept" in printed and "report.html shows" in printed
    assert len(list((tmp_path / "out" / "kaleido" / "videos").iterdir())) == 3
    dataset = json.loads((tmp_path / "out" / "dataset" / "dataset_info.json").read_text())
    (strict,) = (split for split in dataset["splits"] if split["name"] == "sft")
    assert main(["curate", *arguments, "--write", "kaleido", "--tier", "sft"]) == 0
    assert len(list((tmp_path / "out" / "kaleido-sft" / "videos").iterdir())) == sum(map(int, strict["shardLengths"]))
    assert main(["curate", "audit", "--output", str(tmp_path / "out"), "--count", "2"]) == 0
    assert (tmp_path / "out" / "audit.html").read_text().count("<figure") == 2
