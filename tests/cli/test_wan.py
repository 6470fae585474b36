"""`kaleido generate` with a model of text alone that has two transformers, a LoRA for each, and tiles."""

import dataclasses
import json
import shlex

import numpy as np

from kaleido_jax.bundle import Experts
from kaleido_jax.porting.lora import Lora, write
from kaleido_jax.testing.tiny import TINY_CONFIG, save_tiny_bundle

PROMPT = "a red cat walks left"
CONFIG = dataclasses.replace(
    TINY_CONFIG,
    method="wan",
    scheme="channel-concat",
    experts=Experts(boundary=0.7, guidance=2.0),
    defaults=dataclasses.replace(TINY_CONFIG.defaults, references=0),
)


def test_text_to_video_with_two_experts(kaleido, folder):
    model = save_tiny_bundle(folder / "model", CONFIG)
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((2, 48, 2)), rng.standard_normal((2, 2, 32))
    lora = Lora.from_stacked(CONFIG.transformer, {"blocks.mlp.second.kernel": factors})
    write(folder / "style.safetensors", lora, to="kohya")
    generate = lambda *arguments: kaleido("generate", "--model", model, "--prompt", PROMPT, *arguments)
    low = ("--lora-low-noise", "style.safetensors:0.5")
    code, _, err = generate("--out", "high.mp4", "--lora", "style.safetensors:0.5", "--decode", "tiled")
    assert code == 0, err
    code, _, err = generate("--out", "low.mp4", *low, "--decode", "tiled")
    assert code == 0, err
    record = json.loads((folder / "low.json").read_text())
    assert [entry["network"] for entry in record["request"]["loras"]] == ["transformer_2"]
    assert record["request"]["settings"]["decode"] == "tiled"
    assert (folder / "low.mp4").read_bytes() != (folder / "high.mp4").read_bytes()
    assert kaleido(*shlex.split(record["command"])[1:], "--out", "low.mp4")[2].count("finished already") == 1
    code, _, err = generate("--reference", "cat.png")
    assert code == 2 and "There are 1 pictures; this model takes none: it makes videos of text alone" in err
    plain = save_tiny_bundle(folder / "plain", dataclasses.replace(CONFIG, experts=None))
    code, _, err = kaleido("generate", "--model", plain, "--prompt", PROMPT, *low)
    assert code == 2 and "tiny has one transformer" in err
