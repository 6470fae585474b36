"""Compare scores with the code of VBench and torchmetrics: equal frames, equal random weights.

    python tools/official_scores.py --out docs/bench/evaluation-official.json
    python tools/official_scores.py --tiny --part vbench --part torchmetrics

It needs `vbench` and `torchmetrics` beside kaleido_jax and its test extra, in an environment of its own: VBench asks
for numpy below 2 in its metadata and runs without that (`pip install --no-deps vbench torchmetrics
lightning-utilities pyiqa openai-clip decord omegaconf timm einops`, torchvision of the same build as torch, OpenCV).
What is not installed is left out, and said.

Each line has both values, how far they are apart (the project's limit is 1e-4), and how many frames a second each
scores, without loading and compiling. Theirs and ours take turns, video by video. On a machine that is busy with
something else the time on the clock says little; --out keeps the processors' seconds and the load beside it, and the
rows of the parts that were measured before.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

from kaleido_jax.data.world import World
from kaleido_jax.evaluation.encoders import ClipText, load_vision
from kaleido_jax.evaluation.metrics import similarity, temporal
from kaleido_jax.evaluation.quality import ImagingQuality
from kaleido_jax.evaluation.smoothness import MotionSmoothness
from kaleido_jax.evaluation.video_text import VideoText
from kaleido_jax.models.text.clip.tokenizer import END, START
from kaleido_jax.models.vision import Preprocessing
from kaleido_jax.testing import randomise

LIMIT = 1e-4
WORDS = ("a", "red", "dog", "runs", "on", "the", "beach")
PROMPT = "a red dog runs on the beach"

Row = tuple[str, str, Callable[[np.ndarray], float], Callable[[np.ndarray], float]]


class Official:
    """transformers' models in the shapes that the official code calls: DINO, CLIP, and CLIP's processor."""

    def __init__(self, folder: Path, picture: np.ndarray, *, tiny: bool):
        self.tiny = tiny
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        dino = small if tiny else _sizes(768)
        options = transformers.ViTConfig(**dino, image_size=224, patch_size=16, layer_norm_eps=1e-6)
        self.dino_model = randomise(transformers.ViTModel(options, add_pooling_layer=False), seed=0)
        vision = small if tiny else _sizes(768)
        text = {**(small if tiny else {**_sizes(512), "num_attention_heads": 8}), "vocab_size": len(WORDS) + 2}
        ids = {"bos_token_id": len(WORDS), "eos_token_id": len(WORDS) + 1, "pad_token_id": len(WORDS) + 1}
        config = transformers.CLIPConfig(
            vision_config={**vision, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu"},
            text_config={**text, **ids, "hidden_act": "quick_gelu"},
            projection_dim=512,
        )
        self.clip_model = transformers.CLIPModel(config).eval()
        for seed, tower in enumerate(self.clip_model.children()):
            randomise(tower, seed=seed)
        self.head = randomise(torch.nn.Linear(512, 1))
        self._pictures = transformers.CLIPImageProcessorPil()
        with torch.no_grad():  # torchmetrics writes 0 for a score that is less, which says nothing
            prompt = _features(self.clip_model.get_text_features(**self.process(text=[PROMPT])))
            if (self.encode_image(self.process(images=picture)["pixel_values"]) * prompt).sum() < 0:
                self.clip_model.text_projection.weight *= -1
        for model, name in ((self.dino_model, "dino"), (self.clip_model, "clip")):
            model.save_pretrained(folder / name)
        self.tokenizer = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({w: i for i, w in enumerate((*WORDS, START, END))}, unk_token=END)
        )
        self.tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        self.tokenizer.save(str(folder / "clip" / "tokenizer.json"))

    def dino(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.dino_model(pixels).last_hidden_state[:, 0]

    def eval(self) -> "Official":  # VBench calls it of CLIP
        return self

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return _features(self.clip_model.get_image_features(pixels))

    def process(self, text: Any = None, images: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        if images is not None:
            return self._pictures(images=images, return_tensors="pt")
        rows = [[len(WORDS), *(WORDS.index(word) for word in line.split()), len(WORDS) + 1] for line in text]
        return {
            "input_ids": torch.tensor(rows),
            "attention_mask": torch.ones(len(rows), len(rows[0]), dtype=torch.long),
        }

    def viclip(self, folder: Path) -> torch.nn.Module:
        """VBench's ViCLIP of random weights, its vocabulary cut to a few words, written to a folder."""
        vision, text, whole = (
            importlib.import_module(f"vbench.third_party.ViCLIP.{name}")
            for name in ("viclip_vision", "viclip_text", "viclip")
        )
        vars(text)["_Tokenizer"] = lambda: _Words()
        tiny = self.tiny
        sizes = {"width": 128, "layers": 2, "heads": 2, "output_dim": 32} if tiny else {
            "width": 1024, "layers": 24, "heads": 16, "output_dim": 768,
        }  # fmt: skip
        model = whole.ViCLIP.__new__(whole.ViCLIP)
        torch.nn.Module.__init__(model)
        model.max_txt_l = 32
        model.vision_encoder = randomise(vision.VisionTransformer(input_resolution=224, patch_size=14, **sizes))
        model.text_encoder = randomise(
            text.CLIP_TEXT(
                embed_dim=sizes["output_dim"], context_length=32, vocab_size=len(WORDS) + 2,
                transformer_width=128 if tiny else 768, transformer_heads=2 if tiny else 12,
                transformer_layers=2 if tiny else 12, checkpoint_num=0,
            ),
            seed=1,
        )  # fmt: skip
        folder.mkdir()
        save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "viclip.safetensors")
        self.tokenizer.save(str(folder / "tokenizer.json"))
        return model.eval()

    def torchmetrics(self) -> tuple[Any, Any]:
        """What torchmetrics takes in place of a name: a model whose features are tensors, and a processor."""
        outer = self

        class Model:
            config = outer.clip_model.config
            to = lambda self, device: self
            get_image_features = staticmethod(lambda x: _features(outer.clip_model.get_image_features(x)))
            get_text_features = staticmethod(lambda x, mask: _features(outer.clip_model.get_text_features(x, mask)))

        return Model(), self.process


class _Words:
    """What VBench asks of a tokenizer."""

    encoder = {"<|startoftext|>": len(WORDS), "<|endoftext|>": len(WORDS) + 1}

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) for word in text.split()]


def _sizes(dim: int) -> dict[str, int]:
    return {"hidden_size": dim, "intermediate_size": 4 * dim, "num_hidden_layers": 12, "num_attention_heads": 12}


def _features(out: Any) -> torch.Tensor:
    """transformers 5 wraps the features."""
    return out if isinstance(out, torch.Tensor) else out.pooler_output


def vbench_rows(official: Official, folder: Path) -> Iterator[Row]:
    dino, clip = load_vision(folder / "dino"), load_vision(folder / "clip")
    version = f"VBench {importlib.metadata.version('vbench')}"
    module = lambda name: importlib.import_module(f"vbench.{name}")

    def fed(name: str, video: np.ndarray) -> Any:
        """A module of VBench whose reader gives this video."""
        found = module(name)
        vars(found)["load_video"] = lambda path: torch.from_numpy(video).permute(0, 3, 1, 2)
        return found

    yield (
        "subject_consistency", version,
        lambda v: temporal.vbench_consistency(dino(list(v), Preprocessing.vbench_dino())),
        lambda v: fed("subject_consistency", v).subject_consistency(official.dino, ["x"], "cpu", False)[0],
    )  # fmt: skip
    yield (
        "background_consistency", version,
        lambda v: temporal.vbench_consistency(clip(list(v), Preprocessing.vbench_clip())),
        lambda v: fed("background_consistency", v).background_consistency(official, None, ["x"], "cpu", False)[0],
    )  # fmt: skip
    weight, bias = (x.detach().numpy() for x in official.head.parameters())

    def aesthetic(video: np.ndarray) -> float:
        rows = similarity.unit(clip(list(video), Preprocessing.vbench_clip()))
        return float((rows @ weight[0] + bias[0]).mean() / 10)

    yield (
        "aesthetic_quality", version, aesthetic,
        lambda v: fed("aesthetic_quality", v).laion_aesthetic(official.head, official, ["x"], "cpu")[0],
    )  # fmt: skip

    def flickering(video: np.ndarray) -> float:
        found = module("temporal_flickering")
        vars(found)["get_frames"] = lambda path: list(video)
        return found.cal_score("x")

    yield "temporal_flickering", version, temporal.temporal_flickering, flickering


def musiq_rows(official: Official, folder: Path) -> Iterator[Row]:
    found = importlib.import_module("vbench.imaging_quality")  # which reads pyiqa's MUSIQ
    sizes = {"hidden_size": 128, "mlp_dim": 64, "num_heads": 2, "num_layers": 2} if official.tiny else {}
    model = randomise(found.MUSIQ(pretrained=False, **sizes)).eval()

    def imaging(video: np.ndarray) -> float:
        vars(found)["load_video"] = lambda path: torch.from_numpy(video).permute(0, 3, 1, 2)
        with torch.no_grad():
            return found.technical_quality(model, ["x"], "cpu")[0]

    version = f"VBench {importlib.metadata.version('vbench')}"
    yield "imaging_quality (MUSIQ)", version, ImagingQuality(_saved(model, folder / "musiq.safetensors")), imaging


def amt_rows(official: Official, folder: Path) -> Iterator[Row]:
    """Of frames that are filled up to 128 pixels: VBench's network gives no numbers for those of the world."""
    found = importlib.import_module("vbench.motion_smoothness")
    model = randomise(importlib.import_module("vbench.third_party.amt.networks.AMT-S").Model()).eval()
    judge = found.MotionSmoothness.__new__(found.MotionSmoothness)
    judge.device, judge.niters, judge.model = "cpu", 1, model
    judge.initialization()
    larger = lambda video: np.pad(video, ((0, 0), (16, 16), (16, 16), (0, 0)), mode="edge")

    def smoothness(video: np.ndarray) -> float:
        judge.fp.get_frames = lambda path: list(larger(video))
        return float(judge.motion_score("x.mp4"))

    ours = MotionSmoothness(_saved(model, folder / "amt-s.safetensors"))
    version = f"VBench {importlib.metadata.version('vbench')}"
    yield "motion_smoothness (AMT-S)", version, lambda v: ours(larger(v)), smoothness


def viclip_rows(official: Official, folder: Path) -> Iterator[Row]:
    module = lambda name: importlib.import_module(f"vbench.{name}")
    model = official.viclip(folder / "viclip")
    ours = VideoText(folder / "viclip")

    def consistency(video: np.ndarray) -> float:
        found, utils = module("overall_consistency"), module("utils")
        chosen = utils.get_frame_indices(8, len(video), sample="middle")
        frames = torch.from_numpy(video[chosen]).permute(0, 3, 1, 2)
        vars(found)["read_frames_decord_by_fps"] = lambda path, num_frames, sample: frames
        videos = [{"prompt": PROMPT, "video_list": ["x"]}]
        return float(found.overall_consistency(model, videos, None, "cpu")[0])

    version = f"VBench {importlib.metadata.version('vbench')}"
    yield "overall_consistency (ViCLIP)", version, lambda v: ours(v, PROMPT), consistency


def _saved(model: torch.nn.Module, path: Path) -> Path:
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, path)
    return path


def torchmetrics_rows(official: Official, folder: Path) -> Iterator[Row]:
    clip_score = importlib.import_module("torchmetrics.functional.multimodal").clip_score
    clip, text = load_vision(folder / "clip"), ClipText(folder / "clip")
    version = f"torchmetrics {importlib.metadata.version('torchmetrics')}"
    tensors = lambda video: list(torch.from_numpy(video).permute(0, 3, 1, 2))

    def theirs(source: list, target: list) -> float:
        with torch.no_grad():
            return float(clip_score(source, target, model_name_or_path=official.torchmetrics)) / 100

    yield (
        "clip_t", version, lambda v: similarity.text_similarity(clip(list(v)), text(PROMPT)[None]),
        lambda v: theirs(tensors(v), [PROMPT] * len(v)),
    )  # fmt: skip
    yield (
        "temporal_consistency (and CLIP-I)", version, lambda v: temporal.temporal_consistency(clip(list(v))),
        lambda v: theirs(tensors(v)[1:], tensors(v)[:-1]),
    )  # fmt: skip


def measured(
    theirs: Callable[[np.ndarray], float], ours: Callable[[np.ndarray], float], videos: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scores, seconds, seconds of processors) `[2, videos]` of theirs and of ours, which take turns after a first
    video that compiles."""
    values, seconds, work = np.zeros((3, 2, len(videos)))
    for score in (theirs, ours):
        score(videos[0])
    for number, video in enumerate(videos):
        for row, score in enumerate((theirs, ours)):
            began, used = time.perf_counter(), time.process_time()
            values[row, number] = score(video)
            seconds[row, number], work[row, number] = time.perf_counter() - began, time.process_time() - used
    return values, seconds, work


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small encoders: the values alone, speeds say nothing")
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--part", action="append", choices=PARTS, help="measure these rows alone; may be repeated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table as JSON too")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    videos = [World(96, 17).sample(seed, "heldout").video for seed in range(arguments.videos)]
    table = []
    print("| score | official code | theirs | ours | apart | frames/s theirs | ours | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        official = Official(folder, videos[0][0], tiny=arguments.tiny)
        for part in arguments.part or PARTS:
            try:
                for name, version, ours, theirs in PARTS[part](official, folder):
                    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
                        (expected, found), seconds, work = measured(theirs, ours, videos)
                    speeds = sum(map(len, videos)) / seconds.sum(1)
                    table.append(
                        {
                            "score": name, "official": version, "theirs": expected.mean(), "ours": found.mean(),
                            "apart": float(np.abs(expected - found).max()), "frames_per_second": speeds.tolist(),
                            "ratio": speeds[1] / speeds[0], "processor_seconds": work.sum(1).tolist(),
                            "videos": len(videos), "encoders": "small" if arguments.tiny else "released sizes",
                            "load": os.getloadavg()[0],
                        }
                    )  # fmt: skip
                    print(_line(table[-1]), flush=True)
            except (ImportError, importlib.metadata.PackageNotFoundError) as error:
                print(f"{part} is left out from here: {error.name} is not installed", file=sys.stderr)
    if arguments.out:
        measured_now = {row["score"] for row in table}
        before = json.loads(arguments.out.read_text())["rows"] if arguments.out.is_file() else []
        about = {
            "frames of a video": len(videos[0]), "cores": os.cpu_count(), "processor": platform.processor(),
            "torch": torch.__version__, "limit": LIMIT,
            "rows": [row for row in before if row["score"] not in measured_now] + table,
        }  # fmt: skip
        arguments.out.write_text(json.dumps(about, indent=1) + "\n")
    return 1 if any(row["apart"] > LIMIT for row in table) else 0


def _line(row: dict[str, Any]) -> str:
    theirs, ours = row["frames_per_second"]
    return (
        f"| {row['score']} | {row['official']} | {row['theirs']:.6f} | {row['ours']:.6f} | {row['apart']:.1e} "
        f"| {theirs:.1f} | {ours:.1f} | {row['ratio']:.2f} |"
    )


PARTS: dict[str, Callable[[Official, Path], Iterator[Row]]] = {
    "vbench": vbench_rows, "torchmetrics": torchmetrics_rows, "musiq": musiq_rows, "amt": amt_rows,
    "viclip": viclip_rows,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
