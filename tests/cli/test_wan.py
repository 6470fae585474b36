"""`kaleido generate` with Wan's own models: two transformers with a LoRA for each, and a picture as first latents."""

import dataclasses
import json
import shlex

import numpy as np

from kaleido_jax.bundle import Experts
from kaleido_jax.pipeline.pipeline import Pipeline
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


def test_a_picture_takes_the_place_of_the_first_latents(kaleido, folder):
    """As TI2V-5B has it, which also makes videos of text alone."""
    config = dataclasses.replace(CONFIG, experts=None, options=("frames=first-latent",))
    model = save_tiny_bundle(folder / "ti2v", config)
    code, _, err = kaleido("generate", "--model", model, "--prompt", PROMPT, "--reference", "cat.png", "--out", "a.mp4")
    assert code == 0, err
    pipeline = Pipeline.load(model)
    make = lambda *references: pipeline(references=references, prompt=PROMPT)
    video, other, text = make("cat.png"), make("dog.jpg"), make()
    given = pipeline.encode_references(video.references, video.settings)
    assert len(given) == 1 and given[0].shape == (1, 1, 4, 6, 4) and video.latents.shape == (2, 4, 6, 4)
    np.testing.assert_array_equal(video.latents[:1], given[0][0])
    for one in (other, text):  # what the picture shows reaches the latents after it
        assert np.abs(one.latents[1] - video.latents[1]).max() > 1e-4
    video.save("b.mp4")
    assert (folder / "a.mp4").read_bytes() == (folder / "b.mp4").read_bytes()
    code, _, err = kaleido(
        "generate", "--model", model, "--prompt", PROMPT, "--reference", "cat.png", "--reference", "dog.jpg"
    )
    assert code == 2 and "There are 2 pictures; this model takes one, the first frame, or none" in err
