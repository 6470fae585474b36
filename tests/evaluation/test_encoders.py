"""Encoders from the files of their releases, against transformers on the same random weights and the same frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.encoders import (
    ClipText,
    WorldFeatures,
    batch_sizes,
    load_encoder,
    load_head,
    load_vision,
)
from kaleido_jax.evaluation.evidence import Evidence, Tools
from kaleido_jax.evaluation.metrics.similarity import unit
from kaleido_jax.evaluation.runs import RunCase
from kaleido_jax.evaluation.suites import METRICS
from kaleido_jax.models.text.clip.tokenizer import END, START
from kaleido_jax.testing import randomise

LIMIT = 1e-4  # the project's for scores; measured below 2e-6
WORDS = ("a", "red", "dog", "runs")


def whole_clip(folder: Path) -> transformers.CLIPModel:
    """A whole CLIP of random weights, written as transformers writes it, with a tokenizer of a few words."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu"},
        text_config={
            **sizes, "vocab_size": 6, "max_position_embeddings": 8, "hidden_act": "quick_gelu", "eos_token_id": 5,
            "bos_token_id": 4, "pad_token_id": 5,
        },
        projection_dim=12,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    for seed, tower in enumerate(model.children()):
        randomise(tower, seed=seed)
    model.save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate((*WORDS, START, END))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, whole_clip(folder)


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = lambda: Image.fromarray(rng.integers(0, 255, (5, 5, 3), np.uint8)).resize((45, 38))
    return [np.asarray(smooth()) for _ in range(3)]


def test_clip_i_and_clip_t_of_a_whole_clip(clip):
    folder, model = clip
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([[4, 0, 1, 2, 5]]), pixel_values=pixels)
    ours = load_vision(folder)(pictures())
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    assert np.abs(unit(ours) - theirs.image_embeds.numpy()).max() < LIMIT
    text = ClipText(folder)
    assert np.abs(unit(text("a red dog")) - theirs.text_embeds.numpy()[0]).max() < LIMIT
    assert text.cut("a red dog") == 0 and text.cut("a red dog runs a red dog runs") == 2  # 8 + 2 tokens, 8 are read


def test_dino_in_the_layout_of_transformers(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = randomise(
        transformers.ViTModel(
            transformers.ViTConfig(**sizes, image_size=16, patch_size=8, layer_norm_eps=1e-6), add_pooling_layer=False
        ),
        seed=1,
    )
    model.save_pretrained(tmp_path)
    encoder = load_vision(tmp_path)
    prepared = encoder.preprocessing(pictures())
    with torch.no_grad():
        theirs = model(torch.from_numpy(prepared).permute(0, 3, 1, 2)).last_hidden_state[:, 0].numpy()
    assert np.abs(encoder(pictures()) - theirs).max() < LIMIT
    assert encoder.name.startswith("dino 2x16, patch 8, 16 px; ")
    # More pictures than a batch, of two sizes: the order stays.
    many = (pictures() + [picture[::2] for picture in pictures()]) * 4
    found = encoder(many)
    np.testing.assert_allclose(found[:3], theirs, atol=LIMIT)
    np.testing.assert_array_equal(found[:6], found[-6:])


def test_batches_waste_little_and_have_few_sizes():
    assert batch_sizes(17, 32) == [17] and batch_sizes(81, 32) == [32, 32, 17] and batch_sizes(31, 32) == [32]
    assert batch_sizes(17, 32, 8) == [16, 8] and batch_sizes(3, 4, 6) == [6] and batch_sizes(0, 32) == []
    for count in range(1, 100):
        sizes = batch_sizes(count, 32)
        assert set(sizes) <= {2**k + more for k in range(6) for more in (0, 1)}
        assert 0 <= sum(sizes) - count <= max(1, count // 7)


def test_world_features_read_colours_and_not_what_is_cut_away():
    red, blue = np.full((20, 20, 3), (200, 30, 30), np.uint8), np.full((20, 20, 3), (30, 40, 210), np.uint8)
    framed = np.pad(red, ((5, 5), (9, 9), (0, 0)), constant_values=255)
    a, b, c = WorldFeatures()([red, framed, blue])
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    assert cosine(a, b) > 0.95 > 0.1 > cosine(a, c)


def test_what_is_wrong_with_weights_is_told(clip, tmp_path):
    with pytest.raises(InputError, match="there are no weights at this path"):
        load_encoder("clip", str(tmp_path / "none"))
    vision = transformers.CLIPVisionModelWithProjection(clip[1].config.vision_config)
    vision.save_pretrained(tmp_path / "vision")
    with pytest.raises(InputError, match=r"has no text tower with text_projection\.weight"):
        ClipText(tmp_path / "vision")
    save_file({"weight": torch.ones(1, 4)}, tmp_path / "head.safetensors")
    with pytest.raises(InputError, match="expected weight and bias"):
        load_head(tmp_path / "head.safetensors")
    save_file({"weight": torch.ones(1, 4), "bias": torch.ones(1)}, tmp_path / "head.safetensors")
    assert load_head(tmp_path / "head.safetensors")[0].shape == (1, 4)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError):
        load_vision(broken)


def test_each_picture_of_a_group_has_its_own_prompt(clip, tmp_path):
    for number, picture in enumerate(pictures()[:2]):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    text = ClipText(clip[0])
    tools = Tools(encoders={"clip": load_vision(clip[0])}, text=text)
    score = lambda prompt: METRICS["clip_t"].function(Evidence(RunCase(id="set", video=tmp_path, prompt=prompt), tools))
    frames = unit(tools.encoders["clip"](pictures()[:2]))
    texts = unit(np.stack([text("a red"), text("dog runs")]))
    assert score("a red || dog runs") == pytest.approx(float((frames * texts).sum(-1).mean()))
    whole = unit(text("a red || dog || runs")[None])  # three prompts are not of two pictures
    assert score("a red || dog || runs") == pytest.approx(float((frames @ whole.T).mean()))
