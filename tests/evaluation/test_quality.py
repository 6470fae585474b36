"""MUSIQ from a file in pyiqa's names, against what pyiqa's code gives, and as VBench's imaging quality of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from kaleido_jax.cli.main import main
from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.quality import LONGEST, ImagingQuality, shortened
from kaleido_jax.models import mapping
from kaleido_jax.models.musiq import Musiq, MusiqConfig, params

# pyiqa 0.1.16's MUSIQ(hidden_size=128, mlp_dim=64, num_heads=2, num_layers=2) with `weights`, of each frame of `video`.
RATINGS = (13.271940, 13.489260)


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random values that keep sizes from layer to layer, the same for every program that knows the names."""
    rng, out = np.random.default_rng(0), {}
    for name in sorted(shapes):
        x = rng.standard_normal(shapes[name]).astype(np.float32)
        if name.endswith("bias") or ".norm" in name or "gn" in name or "encoder_norm" in name:
            x = 0.1 * x + (0 if name.endswith("bias") else 1)
        elif name == "head.weight":
            x = 3 * x
        elif len(shapes[name]) > 1 and not name.endswith(("_emb", "cls")):
            x = x / np.sqrt(np.prod(shapes[name][1:]))
        out[name] = x.astype(np.float32)
    return out


def video() -> np.ndarray:
    """Two frames of noise, the second one fainter; not square, so that patches reach beyond them."""
    frames = np.random.default_rng(1).integers(0, 256, (2, 60, 90, 3), np.uint8)
    frames[1] = frames[1] // 4 + 100
    return frames


def shapes(config: MusiqConfig) -> dict[str, tuple[int, ...]]:
    ours = mapping.abstract_parameters(lambda: Musiq(config, nnx.Rngs(0)))
    return mapping.torch_shapes(params.mapping(config), ours)


@pytest.fixture(scope="module")
def musiq(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("musiq") / "musiq.safetensors"
    save_file(weights(shapes(MusiqConfig(dim=128, ffn_dim=64, heads=2, layers=2))), path)
    return path


def test_ratings_are_those_of_pyiqa(musiq, record_property):
    found = ImagingQuality(musiq)
    apart = float(np.abs(found.ratings(video()) - RATINGS).max())
    record_property("ratings_apart", apart)
    assert apart < 1e-3  # of 100; float32 on both sides
    assert found(video()) == pytest.approx(np.mean(RATINGS) / 100, abs=1e-5)
    assert found.name.startswith("MUSIQ 2x128; musiq.safetensors sha256 ")


def test_released_sizes_are_told_by_the_shapes():
    config = MusiqConfig()
    found = shapes(config)
    assert params.config_from(found) == config
    assert found["embedding.weight"] == (384, 16384) and found["transformer_encoder.cls"] == (1, 1, 384)
    assert found["transformer_encoder.transformer.encoderblock_13.mlp.fc1.weight"] == (1152, 384)


@pytest.mark.parametrize("size", [(700, 620), (300, 1024), (512, 300)])
def test_large_frames_are_shortened_as_vbench_does(size):
    frames = np.random.default_rng(2).integers(0, 256, (1, *size, 3), np.uint8)
    found = shortened(frames)
    scale = LONGEST / max(size)
    to = tuple(int(scale * n) for n in size)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    wanted = torch.nn.functional.interpolate(pixels, to, mode="bilinear", align_corners=False).round()
    apart = np.abs(found.astype(np.int16) - wanted.permute(0, 2, 3, 1).numpy().astype(np.int16))
    assert found.shape == (1, *to, 3)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3  # where a value lies between two whole numbers


def test_a_run_is_scored(musiq, run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["evaluate", str(run_folder), "--metric", "imaging_quality", "--out", str(out)]
    assert main([*options, "--encoder", f"musiq={musiq}"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["metrics"]["imaging_quality"]["count"] == 2
    assert found["settings"]["encoders"]["musiq"].startswith("MUSIQ")
    capsys.readouterr()
    assert main([*options[:-1], str(tmp_path / "without")]) == 0
    assert "not scored: there is no network for the role musiq (--encoder musiq=PATH" in capsys.readouterr().out


def test_other_networks_are_refused(musiq, tmp_path):
    tensors = load_file(musiq)
    path = tmp_path / "other.safetensors"
    save_file({**tensors, "head.weight": np.zeros((10, 128), np.float32)}, path)
    with pytest.raises(InputError, match="gives 10 ratings of 3 scales; expected one rating"):
        ImagingQuality(path)
    save_file({name: x for name, x in tensors.items() if name != "block1.gn2.bias"}, path)
    with pytest.raises(InputError, match=r"block1\.gn2\.bias"):
        ImagingQuality(path)
