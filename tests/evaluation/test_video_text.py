"""ViCLIP from a file as it is released, against torch, and as VBench's overall consistency of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx as flax_nnx
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from kaleido_jax.cli.main import main
from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.video_text import VideoText, middle_frames
from kaleido_jax.models import mapping
from kaleido_jax.models.text.clip.tokenizer import END, START
from kaleido_jax.models.viclip import ViCLIP, ViCLIPConfig, params
from kaleido_jax.models.vision import Preprocessing
from kaleido_jax.testing import randomise

WORDS = ("a", "red", "dog", "runs")
FRAMES, LONGEST, WIDTH, PATCH, SIDE, EMBEDDED = 4, 6, 128, 8, 16, 12  # heads are 64 wide, so there are two


class Tower(nn.Module):
    """Transformer layers in CLIP's names, normalised first, with its quick GELU."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()

        def layer():
            block = nn.Module()
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            block.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
            return block

        self.resblocks = nn.ModuleList(layer() for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = block.mlp["c_fc"](block.ln_2(x))
            x = x + block.mlp["c_proj"](y * torch.sigmoid(1.702 * y))
        return x


class Peer(nn.Module):
    """ViCLIP from its paper and the names of its file."""

    def __init__(self, *, vision=(WIDTH, 1), text=(WIDTH, 1), patch=PATCH, side=SIDE, frames=FRAMES, longest=LONGEST,
                 words=6, embedded=EMBEDDED):  # fmt: skip
        super().__init__()
        tensor = lambda *shape: nn.Parameter(torch.zeros(shape))
        (width, layers), v = vision, nn.Module()
        v.conv1 = nn.Conv3d(3, width, (1, patch, patch), (1, patch, patch), bias=False)
        v.class_embedding, v.positional_embedding = tensor(width), tensor((side // patch) ** 2 + 1, width)
        v.temporal_positional_embedding, v.proj = tensor(1, frames, width), tensor(width, embedded)
        v.ln_pre, v.ln_post, v.transformer = nn.LayerNorm(width), nn.LayerNorm(width), Tower(width, width // 64, layers)
        (width, layers), t = text, nn.Module()
        t.token_embedding, t.positional_embedding = nn.Embedding(words, width), tensor(longest, width)
        t.transformer, t.ln_final = Tower(width, width // 64, layers), nn.LayerNorm(width)
        t.text_projection = tensor(width, embedded)
        self.vision_encoder, self.text_encoder, self.temp = v, t, nn.Parameter(torch.ones([]))

    def video(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels [f, 3, h, w]"""
        v = self.vision_encoder
        patches = v.conv1(pixels.transpose(0, 1)[None])[0].flatten(2).permute(1, 2, 0)  # [f, p, d]
        patches = patches + v.positional_embedding[1:] + v.temporal_positional_embedding[0][:, None]
        first = v.class_embedding + v.positional_embedding[0]
        x = torch.cat([first[None], patches.flatten(0, 1)])[None]
        return v.ln_post(v.transformer(v.ln_pre(x)))[0, 0] @ v.proj

    def text(self, ids: list[int]) -> torch.Tensor:
        t = self.text_encoder
        x = t.token_embedding(torch.tensor(ids)) + t.positional_embedding[: len(ids)]
        causal = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        return t.ln_final(t.transformer(x[None], causal))[0, -1] @ t.text_projection


@pytest.fixture(scope="module")
def viclip(tmp_path_factory) -> tuple[Path, Peer]:
    folder, model = tmp_path_factory.mktemp("viclip"), Peer().eval()
    for seed, tower in enumerate((model.vision_encoder, model.text_encoder)):
        randomise(tower, seed=seed)
    save_file(model.state_dict(), folder / "ViClip.safetensors")
    vocabulary = {word: number for number, word in enumerate((*WORDS, START, END))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, model


def test_the_cosine_is_that_of_torch(viclip):
    folder, theirs = viclip
    ours = VideoText(folder)
    assert ours.longest == LONGEST and ours.name.startswith("ViCLIP 4 frames of 16 px; ")
    video = np.random.default_rng(0).integers(0, 256, (9, 20, 24, 3), np.uint8)
    pixels = torch.from_numpy(Preprocessing.vbench_clip(SIDE)(video[i] for i in (0, 2, 4, 7))).permute(0, 3, 1, 2)
    with torch.no_grad():
        for prompt, ids in (("a dog", [4, 0, 2, 5]), ("a red dog runs a red dog", [4, 0, 1, 2, 3, 5])):
            expected = torch.cosine_similarity(theirs.video(pixels), theirs.text(ids), dim=0)
            assert ours(video, prompt) == pytest.approx(float(expected), abs=1e-5)  # the project's limit is 1e-4
    assert [ours.cut(prompt) for prompt in ("a dog", "a red dog runs", "a red dog runs a red dog")] == [0, 0, 3]


def test_the_middle_of_equal_parts_is_looked_at():
    """As VBench's sampling "middle" has it: parts begin at whole frames, and a last frame is repeated."""
    assert middle_frames(81, 8) == [4, 14, 24, 34, 44, 54, 64, 75]
    assert middle_frames(17, 8) == [0, 2, 4, 6, 8, 10, 12, 15]
    assert middle_frames(8, 8) == list(range(8))
    assert middle_frames(3, 8) == [0, 1, 2, 2, 2, 2, 2, 2]


def test_the_released_size_is_told_by_the_shapes():
    config = ViCLIPConfig.large()
    with torch.device("meta"):
        peer = Peer(
            vision=(1024, 24), text=(768, 12), patch=14, side=224, frames=8, longest=32, words=49408, embedded=768
        )
    shapes = {name: tuple(x.shape) for name, x in peer.state_dict().items() if not params.ignored(name)}
    assert params.config_from(shapes) == config
    ours = mapping.abstract_parameters(lambda: ViCLIP(config, flax_nnx.Rngs(0)))
    assert mapping.torch_shapes(params.mapping(config), ours) == shapes


def test_a_run_is_scored_and_what_was_cut_is_said(viclip, run_folder, tmp_path, capsys):
    manifest = json.loads((run_folder / "manifest.json").read_text())
    manifest["cases"][0]["prompt"] = "a red dog runs a red dog"
    manifest["cases"][1] |= {"prompt": "a dog", "video": "videos/none.mp4"}
    (run_folder / "manifest.json").write_text(json.dumps(manifest))
    options = ["evaluate", str(run_folder), "--out", str(tmp_path / "out"), "--metric", "overall_consistency"]
    assert main([*options, "--encoder", f"viclip={viclip[0]}"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    right, wrong = (item["values"]["overall_consistency"] for item in found["videos"])
    assert -1 <= right <= 1 and wrong == -1.0
    assert found["prompt_tokens_cut"] == {"right": {"ViCLIP": 3}}
    assert "prompt of right: ViCLIP did not read its last 3 tokens" in capsys.readouterr().out


def test_weights_without_a_tokenizer_are_refused(viclip, tmp_path):
    alone = tmp_path / "ViClip.safetensors"
    alone.write_bytes((viclip[0] / "ViClip.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"There is no tokenizer\.json"):
        VideoText(alone)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other.safetensors: .*vision_encoder.conv1.weight is missing"):
        VideoText(tmp_path / "other.safetensors")
