"""`kaleido generate --lora` and `Pipeline.load(loras=...)` on a tiny model."""

import json
import shlex

import numpy as np
import pytest
import safetensors.numpy

from kaleido_jax.bundle import load_bundle
from kaleido_jax.pipeline.loras import LoraFile
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.porting.lora import Lora, write
from kaleido_jax.testing.tiny import TINY_CONFIG

PROMPT = "a red cat walks left"
SHORT = ("--reference", "cat.png", "--prompt", PROMPT, "--steps", "1")


@pytest.fixture
def lora(folder):
    rng = np.random.default_rng(0)
    kernel = "blocks.mlp.second.kernel"
    factors = rng.standard_normal((2, 48, 2)), rng.standard_normal((2, 2, 32))
    write(folder / "style.safetensors", Lora.from_stacked(TINY_CONFIG.transformer, {kernel: factors}), to="kohya")
    return folder / "style.safetensors"


def test_a_lora_changes_the_video_and_stands_in_the_record(kaleido, model, folder, lora):
    generate = lambda *arguments: kaleido("generate", "--model", model, *SHORT, *arguments)
    code, _, err = generate("--out", "with.mp4", "--lora", "style.safetensors:0.5", "--lora", lora)
    assert code == 0, err
    record = json.loads((folder / "with.json").read_text())
    assert [entry["strength"] for entry in record["request"]["loras"]] == [0.5, 1.0]
    assert len({entry["sha256"][0] for entry in record["request"]["loras"]}) == 1
    assert kaleido(*shlex.split(record["command"])[1:], "--out", "with.mp4")[2].count("finished already") == 1
    code, _, err = generate("--out", "with.mp4", "--lora", "style.safetensors:0.5")
    assert code == 2 and "made with another loras; give --overwrite" in err

    # The same sum of strengths, put together in Python; and without.
    paths = {"references": ["cat.png"], "prompt": PROMPT, "steps": 1}
    pipeline = Pipeline.load(model, loras=[LoraFile(path=lora, strength=1.5)], compile_cache=False)
    plain = load_bundle(model).transformer.blocks.mlp.second.kernel[...]
    merged = pipeline.weights["transformer"]["blocks.mlp.second.kernel"]
    assert np.abs(np.asarray(merged) - np.asarray(plain)).max() > 0.1
    made = pipeline(**paths)
    made.save("again.mp4")
    assert json.loads((folder / "again.json").read_text())["request"]["loras"][0]["strength"] == 1.5
    without = Pipeline(load_bundle(model))(**paths)
    assert np.abs(made.video.astype(int) - without.video).mean() > 0.1


@pytest.mark.parametrize(
    ("given", "code", "sentence"),
    [
        ("nothing.safetensors:0.5", 2, "There is no LoRA file 'nothing.safetensors'"),
        ("style.safetensors:strong", 2, "the strength 'strong' of the LoRA 'style.safetensors' is no number"),
        ("style.safetensors:nan", 2, "the strength 'nan' of the LoRA 'style.safetensors' is no number"),
        ("other.safetensors", 65, "shape (2, 47), expected (2, 48)"),
    ],
)
def test_what_is_wrong_is_told_before_the_weights_are_read(
    kaleido, model, folder, lora, monkeypatch, given, code, sentence
):
    tensors = safetensors.numpy.load_file(lora)
    tensors["lora_unet_blocks_0_ffn_2.lora_down.weight"] = np.ones((2, 47), np.float32)
    safetensors.numpy.save_file(tensors, folder / "other.safetensors")
    monkeypatch.setattr("kaleido_jax.pipeline.pipeline.load_bundle", lambda folder: pytest.fail("weights were read"))
    result, _, err = kaleido("generate", "--model", model, *SHORT, "--lora", given)
    assert result == code and sentence in err
