"""Models of transformers (extra `vlm`), loaded from folders that the user gives: nothing is downloaded.

Grounding DINO finds what phrases name, SAM cuts it out of its boxes, CLIP says which category it is. Only safetensors
are read, and no code of a model's folder is run. Pictures are prepared here as the models' own processors do it, in
numpy, so that a score does not depend on which of their backends is installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from kaleido_jax.curation.models.protocol import Found
from kaleido_jax.curation.pictures import Box
from kaleido_jax.errors import InputError, UsageError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def load(kind: str, path: str, device: str) -> Any:
    """The model of transformers' class `kind` in the folder `path`, ready to be used."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise UsageError("models of transformers need the extra vlm: pip install 'kaleido_jax[vlm]'.") from None
    if not Path(path, "config.json").is_file():
        raise InputError(f"{path}: holds no config.json; give the folder of a {kind}.")
    model = getattr(transformers, kind).from_pretrained(path, local_files_only=True, use_safetensors=True)
    return model.eval().requires_grad_(False).to(device)


def tokenizer(path: str) -> Any:
    """The tokenizer in the folder; one that tells where each token stands in the text."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(path, local_files_only=True, use_fast=True)
    if not found.is_fast:
        raise InputError(f"{path}: its tokenizer does not say where tokens stand; the folder needs tokenizer.json.")
    return found


def normalised(picture: UInt8[np.ndarray, "h w 3"], statistics: tuple) -> Float32[np.ndarray, "3 h w"]:
    """Pixels in [0, 1], less the mean, over the deviation, channels first."""
    mean, deviation = (np.array(values, np.float32) for values in statistics)
    return ((picture.astype(np.float32) / 255 - mean) / deviation).transpose(2, 0, 1)


def scaled(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int, how=Image.Resampling.BILINEAR) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), how))


@dataclass(frozen=True, kw_only=True)
class GroundingDino:
    """Open-vocabulary boxes (Liu et al., arXiv:2303.05499).

    path: folder of a GroundingDinoForObjectDetection with its tokenizer. threshold: the least score of a box. side,
    longest: the shorter and the longest side that pictures are scaled to (800 and 1333 in the released processor).
    """

    path: str
    device: str = "cpu"
    threshold: float = 0.25
    side: int = 800
    longest: int = 1333

    def load(self) -> "_GroundingDino":
        return _GroundingDino(
            self, load("GroundingDinoForObjectDetection", self.path, self.device), tokenizer(self.path)
        )


class _GroundingDino:
    def __init__(self, settings: GroundingDino, model: Any, words: Any):
        self._settings, self._model, self._words = settings, model, words

    def detect(self, frames: np.ndarray, keys: Sequence[int], phrases: Sequence[str]) -> list[Found | None]:
        """In each key frame the best box of each phrase: the score of a box for a phrase is that of its best token."""
        import torch

        height, width = frames.shape[1:3]
        scale = min(self._settings.side / min(height, width), self._settings.longest / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = np.stack([normalised(scaled(frames[key], *size), IMAGENET) for key in keys])
        # The released models were trained on lower-case phrases that end with a full stop.
        texts = [phrase.lower().strip(" .") for phrase in phrases]
        text = " ".join(f"{one}." for one in texts)
        encoded = self._words(text, return_tensors="pt", return_offsets_mapping=True, truncation=True)
        places = encoded.pop("offset_mapping")[0].tolist()
        inputs = {name: value.repeat(len(keys), 1).to(self._settings.device) for name, value in encoded.items()}
        with torch.inference_mode():
            output = self._model(pixel_values=torch.from_numpy(pixels).to(self._settings.device), **inputs)
        scores = output.logits.sigmoid().float().cpu().numpy()  # [keys, boxes, tokens]
        boxes = output.pred_boxes.float().cpu().numpy()  # centre and size, shares of the picture
        found, start = [], 0
        for one in texts:
            stop = start + len(one)
            tokens = [number for number, (a, b) in enumerate(places) if a < b and a >= start and b <= stop]
            found.append(self._best(scores[..., tokens], boxes, height, width) if tokens else None)
            start = stop + 2  # the full stop and the space
        return found

    def _best(self, scores: np.ndarray, boxes: np.ndarray, height: int, width: int) -> Found | None:
        best = scores.max(-1)
        chosen = best.argmax(-1)
        row: list[Box | None] = []
        values = []
        for frame, number in enumerate(chosen):
            score = float(best[frame, number])
            x, y, wide, high = (float(side) for side in boxes[frame, number])
            box = (
                max(x - wide / 2, 0.0) * width, max(y - high / 2, 0.0) * height,
                min(x + wide / 2, 1.0) * width, min(y + high / 2, 1.0) * height,
            )  # fmt: skip
            seen = score >= self._settings.threshold and box[2] > box[0] and box[3] > box[1]
            row.append(box if seen else None)
            values.append(score if seen else 0.0)
        return Found(boxes=tuple(row), scores=tuple(values)) if any(box is not None for box in row) else None


@dataclass(frozen=True, kw_only=True)
class Sam:
    """Masks from boxes (Kirillov et al., arXiv:2304.02643). path: folder of a SamModel."""

    path: str
    device: str = "cpu"

    def load(self) -> "_Sam":
        return _Sam(self, load("SamModel", self.path, self.device))


class _Sam:
    def __init__(self, settings: Sam, model: Any):
        self._settings, self._model = settings, model

    def segment(self, frames: np.ndarray, keys: Sequence[int], found: Sequence[Found]) -> np.ndarray:
        """One mask a box, every key frame with all its boxes at once."""
        import torch

        height, width = frames.shape[1:3]
        side = self._model.config.vision_config.image_size
        scale = side / max(height, width)
        high, wide = max(1, round(height * scale)), max(1, round(width * scale))
        masks = np.zeros((len(found), len(keys), height, width), bool)
        for number, key in enumerate(keys):
            given = [(place, one.boxes[number]) for place, one in enumerate(found) if one.boxes[number] is not None]
            if not given:
                continue
            canvas = np.zeros((3, side, side), np.float32)
            canvas[:, :high, :wide] = normalised(scaled(frames[key], high, wide), IMAGENET)
            boxes = np.array([box for _, box in given], np.float32) * np.float32(scale)
            with torch.inference_mode():
                output = self._model(
                    pixel_values=torch.from_numpy(canvas)[None].to(self._settings.device),
                    input_boxes=torch.from_numpy(boxes)[None].to(self._settings.device),
                    multimask_output=False,
                )
                logits = output.pred_masks[0].float()  # [boxes, 1, h, w] of the padded square
                logits = torch.nn.functional.interpolate(logits, (side, side), mode="bilinear")[..., :high, :wide]
                logits = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear")
            for (place, _), mask in zip(given, logits[:, 0].cpu().numpy() > 0):
                masks[place, number] = mask
        return masks


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Zero-shot categories (Radford et al., arXiv:2103.00020).

    path: folder of a CLIPModel with its tokenizer. template: what is said of a picture of each label.
    """

    path: str
    device: str = "cpu"
    template: str = "a photo of a {}"

    def load(self) -> "_Clip":
        return _Clip(self, load("CLIPModel", self.path, self.device), tokenizer(self.path))


class _Clip:
    def __init__(self, settings: Clip, model: Any, words: Any):
        self._settings, self._model, self._words = settings, model, words
        self._texts: dict[tuple[str, ...], Any] = {}

    def classify(self, pictures: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
        """softmax of the scaled cosines over the labels."""
        import torch

        side = self._model.config.vision_config.image_size
        pixels = np.stack([normalised(_square(picture, side), CLIP_PIXELS) for picture in pictures])
        with torch.inference_mode():
            seen = self._model.vision_model(pixel_values=torch.from_numpy(pixels).to(self._settings.device))
            seen = self._model.visual_projection(seen.pooler_output)
            seen = seen / seen.norm(dim=-1, keepdim=True)
            said = self._said(tuple(labels))
            table = (self._model.logit_scale.exp() * seen @ said.T).softmax(-1)
        return table.float().cpu().numpy()

    def _said(self, labels: tuple[str, ...]) -> Any:
        if labels not in self._texts:
            texts = [self._settings.template.format(label) for label in labels]
            encoded = self._words(texts, padding=True, truncation=True, return_tensors="pt").to(self._settings.device)
            keys = ("input_ids", "attention_mask")
            said = self._model.text_model(**{name: encoded[name] for name in keys}).pooler_output
            said = self._model.text_projection(said)
            self._texts[labels] = said / said.norm(dim=-1, keepdim=True)
        return self._texts[labels]


def _square(picture: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Padded with white to a square, then scaled: CLIP's own processor would cut off what is long or wide."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    canvas = np.full((longer, longer, 3), 255, np.uint8)
    top, left = (longer - height) // 2, (longer - width) // 2
    canvas[top : top + height, left : left + width] = picture
    return scaled(canvas, side, side, Image.Resampling.BICUBIC)
