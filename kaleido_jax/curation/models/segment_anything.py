"""SAM 2 and SAM 3 of transformers (extra `vlm`), loaded from folders that the user gives: nothing is downloaded.

SAM 2 (Ravi et al., arXiv:2408.00714) cuts boxes out of pictures; SAM 3 (Carion et al., arXiv:2511.16719) also finds
what phrases name. Pictures are squeezed to the model's square, as their own processors do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaleido_jax.curation.models.protocol import Found
from kaleido_jax.curation.models.transformers import IMAGENET, load, normalised, scaled, tokenizer
from kaleido_jax.curation.pictures import Box

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class Sam2:
    """Masks from boxes, every key frame by itself. path: folder of a Sam2Model."""

    path: str
    device: str = "cpu"

    def load(self) -> "_Sam2":
        return _Sam2(load("Sam2Model", self.path, self.device), self.device, IMAGENET)


class _Sam2:
    def __init__(self, model: Any, device: str, statistics: tuple):
        self._model, self._device, self._statistics = model, device, statistics
        self._side = int(model.config.prompt_encoder_config.image_size)

    def _pixels(self, frames: np.ndarray, side: int) -> Any:
        import torch

        squeezed = [normalised(scaled(frame, side, side), self._statistics) for frame in frames]
        return torch.from_numpy(np.stack(squeezed)).to(self._device)

    def _squeezed(self, box: Box, height: int, width: int) -> list[float]:
        wide, high = self._side / width, self._side / height
        return [box[0] * wide, box[1] * high, box[2] * wide, box[3] * high]

    def segment(self, frames: np.ndarray, keys: Sequence[int], found: Sequence[Found]) -> np.ndarray:
        """One mask a box, every key frame with all its boxes at once."""
        import torch

        height, width = frames.shape[1:3]
        masks = np.zeros((len(found), len(keys), height, width), bool)
        for number, key in enumerate(keys):
            given = [(place, one.boxes[number]) for place, one in enumerate(found) if one.boxes[number] is not None]
            if not given:
                continue
            boxes = [[self._squeezed(box, height, width) for _, box in given]]
            with torch.inference_mode():
                output = self._model(
                    pixel_values=self._pixels(frames[key : key + 1], self._side),
                    input_boxes=torch.tensor(boxes, dtype=torch.float32, device=self._device),
                    multimask_output=False,
                )
            for (place, _), mask in zip(given, unsqueezed(output.pred_masks[0, :, :1], height, width)):
                masks[place, number] = mask
        return masks


def unsqueezed(logits: Any, height: int, width: int) -> np.ndarray:
    """Logits [masks, 1, h, w] of the square as masks, bool [masks, height, width]."""
    import torch

    sized = torch.nn.functional.interpolate(logits.float(), (height, width), mode="bilinear", align_corners=False)
    return sized[:, 0].cpu().numpy() > 0


@dataclass(frozen=True, kw_only=True)
class Sam3:
    """Finds what phrases name, and cuts it out of its boxes: a detector and a segmenter in one.

    path: folder of a Sam3Model with its tokenizer. tracker: folder of a Sam3TrackerModel; empty: `path`, as the release
    holds both. threshold: the least score of a box, that of the phrase's being there at all times that of the box.
    """

    path: str
    tracker: str = ""
    device: str = "cpu"
    threshold: float = 0.5

    def load(self) -> "_Sam3":
        return _Sam3(
            self,
            load("Sam3Model", self.path, self.device),
            load("Sam3TrackerModel", self.tracker or self.path, self.device),
            tokenizer(self.path),
        )


class _Sam3(_Sam2):
    def __init__(self, settings: Sam3, finder: Any, cutter: Any, words: Any):
        super().__init__(cutter, settings.device, HALF)
        self._settings, self._finder, self._words = settings, finder, words

    def detect(self, frames: np.ndarray, keys: Sequence[int], phrases: Sequence[str]) -> list[Found | None]:
        """In each key frame the best box of each phrase."""
        import torch

        height, width = frames.shape[1:3]
        side = self._finder.config.vision_config.backbone_config.image_size
        boxes: list[list[Box | None]] = [[] for _ in phrases]
        scores: list[list[float]] = [[] for _ in phrases]
        with torch.inference_mode():
            seen = self._finder.get_vision_features(pixel_values=self._pixels(frames[list(keys)], side))
            for place, phrase in enumerate(phrases):
                said = self._words(phrase.lower(), return_tensors="pt", padding="max_length", truncation=True)
                given = {name: said[name].repeat(len(keys), 1) for name in ("input_ids", "attention_mask")}
                output = self._finder(vision_embeds=seen, **{n: one.to(self._device) for n, one in given.items()})
                sure = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid()).float().cpu().numpy()
                found = output.pred_boxes.float().cpu().numpy()  # corners, shares of the picture
                for frame, number in enumerate(sure.argmax(-1)):
                    x0, y0, x1, y1 = (float(side) for side in np.clip(found[frame, number], 0, 1))
                    score = float(sure[frame, number])
                    good = score >= self._settings.threshold and x1 > x0 and y1 > y0
                    boxes[place].append((x0 * width, y0 * height, x1 * width, y1 * height) if good else None)
                    scores[place].append(score if good else 0.0)
        return [
            Found(boxes=tuple(row), scores=tuple(values)) if any(box is not None for box in row) else None
            for row, values in zip(boxes, scores)
        ]
