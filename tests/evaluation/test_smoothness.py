"""AMT-S from a file in its release's names, against what VBench's code gives, and as its motion smoothness of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from kaleido_jax.cli.main import main
from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.runs import FORMAT
from kaleido_jax.evaluation.smoothness import MotionSmoothness
from kaleido_jax.models import mapping
from kaleido_jax.models.amt import AMT, AMTConfig, params

# Of VBench 0.1.5's code with `weights`: the score of `video`, and the frame between its first and third one, mean over
# colours, at each 35th row from 7 and each 45th column from 11.
SCORE = 0.756666898
PIXELS = (
    0.502560019, 0.765093982, 0.315746009, 0.469814986, 0.383641988, 0.263013005,
    0.544541001, 0.454439014, 0.283277988, 0.393227011, 0.357522994, 0.492902994,
)  # fmt: skip


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random values that move pixels by about 12, the same for every program that knows the names."""
    rng, out = np.random.default_rng(0), {}
    for name in sorted(shapes):
        shape = shapes[name]
        x = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("bias"):
            x = 0.1 * x
        elif len(shape) == 1:
            x = 0.25 + 0.1 * x
        else:
            last = name in ("decoder1.convblock.2.weight", "comb_block.2.weight")
            inputs = shape[0] * 4 if name.endswith("convblock.2.weight") else np.prod(shape[1:])
            x = (0.15 if last else 1.1) * x / np.sqrt(inputs)
        out[name] = x.astype(np.float32)
    return out


def video() -> np.ndarray:
    """Frames of coloured cells, whose sides are no multiples of 16."""
    cells = np.random.default_rng(1).integers(50, 200, (6, 29, 34, 3), np.uint8)
    return cells.repeat(4, 1).repeat(4, 2)[:, :115, :135]


def shapes() -> dict[str, tuple[int, ...]]:
    config = AMTConfig()
    return mapping.torch_shapes(params.mapping(config), mapping.abstract_parameters(lambda: AMT(config, nnx.Rngs(0))))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("amt") / "amt-s.safetensors"
    save_file(weights(shapes()), path)
    return path


@pytest.fixture(scope="module")
def network(file) -> MotionSmoothness:
    return MotionSmoothness(file)


def test_frames_between_are_those_of_vbench(network, record_property):
    frames = video()
    found = network.between(frames[0], frames[2])
    apart = float(np.abs(found[7::35, 11::45].mean(-1).ravel() / PIXELS - 1).max())
    record_property("frames_apart", apart)
    assert found.shape == frames[0].shape
    assert apart < 1e-4  # float32 on both sides
    assert network.name.startswith("AMT-S; amt-s.safetensors sha256 ")


def test_a_run_is_scored(network, tmp_path, monkeypatch, record_property):
    folder = tmp_path / "run" / "cells"
    folder.mkdir(parents=True)
    for number, frame in enumerate(video()):
        Image.fromarray(frame).save(folder / f"{number}.png")
    manifest = {"format": FORMAT, "name": "cells", "cases": [{"id": "cells", "video": "cells"}]}
    (folder.parent / "manifest.json").write_text(json.dumps(manifest))
    compiled = vars(network)
    monkeypatch.setattr(MotionSmoothness, "__init__", lambda self, path: vars(self).update(compiled))
    out = tmp_path / "out"
    options = ["--metric", "motion_smoothness", "--encoder", f"amt={tmp_path}", "--out", str(out)]
    assert main(["evaluate", str(folder.parent), *options]) == 0
    found = json.loads((out / "results.json").read_text())
    score = found["metrics"]["motion_smoothness"]["mean"]
    record_property("score_apart", abs(score - SCORE))
    assert score == pytest.approx(SCORE, abs=1e-5)  # pixels are cut to whole numbers: one in a thousand to another
    assert found["settings"]["encoders"]["amt"].startswith("AMT-S")


def test_small_frames_have_no_score(file, run_folder, tmp_path, capsys):
    options = ["evaluate", str(run_folder), "--metric", "motion_smoothness", "--out", str(tmp_path / "out")]
    assert main([*options, "--encoder", f"amt={file}"]) == 0
    assert "not scored: the frames have 32 x 32 pixels; AMT-S reads sides of 113" in capsys.readouterr().out
    between = lambda x: AMT(AMTConfig(), nnx.Rngs(0))(x, x)
    for height, width in ((112, 128), (128, 136)):
        frames = np.zeros((1, height, width, 3), np.float32)
        with pytest.raises(
            ValueError, match=f"frames have {height} x {width} pixels; expected multiples of 16 from 128 on"
        ):
            nnx.eval_shape(between, frames)


def test_other_networks_are_refused(file, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({name: x for name, x in load_file(file).items() if name != "update4.gru.2.bias"}, path)
    with pytest.raises(InputError, match=r"1 problems in the weights of AMT-S: missing update4\.gru\.2\.bias"):
        MotionSmoothness(path)
