"""Models of diffusers (extra `editors`), loaded from folders that the user gives: nothing is downloaded.

FLUX.1 Fill paints holes, Redux gives a subject another pose, Kontext edits a picture as it is told. The weights that
Black Forest Labs released of them (dev) are for non-commercial use. The seed of every picture is made of what goes in,
so the same picture comes out again on the same device.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from kaleido_jax.curation import pictures
from kaleido_jax.curation.models.transformers import scaled
from kaleido_jax.curation.records import stable_id
from kaleido_jax.errors import InputError, UsageError

WHITE = 236  # levels of all channels from which a pixel is the white that a subject was asked to stand before


def load(kind: str, path: str, device: str, dtype: str, **parts: Any) -> Any:
    """diffusers' pipeline `kind` in the folder `path`; `parts` take the place of those in the folder."""
    try:
        import diffusers
        import torch
    except ModuleNotFoundError:
        raise UsageError("models of diffusers need the extra editors: pip install 'kaleido_jax[editors]'.") from None
    if not Path(path, "model_index.json").is_file():
        raise InputError(f"{path}: holds no model_index.json; give the folder of a {kind}.")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UsageError(f"dtype is {dtype!r}; it must be float32, bfloat16 or float16")
    found = getattr(diffusers, kind).from_pretrained(
        path, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, **parts
    )
    found.set_progress_bar_config(disable=True)
    return found.to(device)


def generator(*parts: Any) -> Any:
    """torch's random numbers for what the parts describe."""
    import torch

    return torch.Generator("cpu").manual_seed(int(stable_id(*parts)[:15], 16))


def sampled(pipeline: Any, settings: Any, size: tuple[int, int], **given: Any) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of that height and width that a pipeline makes of what is given, with the settings' sampler."""
    height, width = size
    made = pipeline(
        height=height,
        width=width,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        **given,
    )
    return np.asarray(made.images[0].convert("RGB"))


def fitting(height: int, width: int, side: int) -> tuple[int, int]:
    """The size with about side * side pixels and this aspect whose sides are multiples of 16, as FLUX needs them."""
    scale = side / float(np.sqrt(height * width))
    return max(1, round(height * scale / 16)) * 16, max(1, round(width * scale / 16)) * 16


@dataclass(frozen=True, kw_only=True)
class FluxFill:
    """Holes of plates, painted by FLUX.1 Fill.

    path: folder of a FluxFillPipeline. prompt: what may stand in the hole. side: pictures are painted with about
    side * side pixels. steps, guidance: of the sampler (50 and 30 in the release). tokens: of the prompt, at most.
    """

    path: str
    device: str = "cpu"
    dtype: str = "bfloat16"
    prompt: str = "the empty place, with nobody and nothing in front"
    side: int = 1024
    steps: int = 50
    guidance: float = 30.0
    tokens: int = 512

    def load(self) -> "_FluxFill":
        return _FluxFill(self, load("FluxFillPipeline", self.path, self.device, self.dtype))


class _FluxFill:
    def __init__(self, settings: FluxFill, pipeline: Any):
        self._settings, self._pipeline = settings, pipeline

    def paint(self, picture: UInt8[np.ndarray, "h w 3"], hole: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels outside the hole stay as they are to the bit."""
        settings = self._settings
        height, width = fitting(*hole.shape, settings.side)
        painted = sampled(
            self._pipeline,
            settings,
            (height, width),
            prompt=settings.prompt,
            image=Image.fromarray(scaled(picture, height, width)),
            mask_image=Image.fromarray(hole.astype(np.uint8) * 255).resize((width, height)),
            max_sequence_length=settings.tokens,
            generator=generator("fill", pictures.png(picture), pictures.png(hole.astype(np.uint8))),
        )
        return np.where(hole[..., None], scaled(painted, *hole.shape), picture)


@dataclass(frozen=True, kw_only=True)
class FluxRedux:
    """Subjects in another pose: FLUX.1 Redux tells FLUX.1 how the subject looks, and words ask for another pose.

    path: folder of a FluxPipeline. prior: folder of a FluxPriorReduxPipeline; the text encoders are those of `path`, as
    its release has none. prompt: asks for another pose of {phrase}, what the subject is called. side, steps, guidance:
    as of FluxFill.
    """

    path: str
    prior: str
    device: str = "cpu"
    dtype: str = "bfloat16"
    prompt: str = "the same {phrase} in another pose, seen from another side, before plain white"
    side: int = 768
    steps: int = 50
    guidance: float = 2.5

    def load(self) -> "_FluxRedux":
        base = load("FluxPipeline", self.path, self.device, self.dtype)
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        parts = {name: getattr(base, name) for name in names}
        prior = load("FluxPriorReduxPipeline", self.prior, self.device, self.dtype, **parts)
        return _FluxRedux(self, base, prior)


class _FluxRedux:
    def __init__(self, settings: FluxRedux, base: Any, prior: Any):
        self._settings, self._base, self._prior = settings, base, prior

    def vary(self, picture: np.ndarray, mask: np.ndarray, phrase: str, seed: str) -> tuple[np.ndarray, np.ndarray]:
        """The subject alone goes in; what is not white comes out as its mask."""
        settings = self._settings
        shown = on_white(picture, mask)
        given = self._prior(image=Image.fromarray(shown), prompt=settings.prompt.format(phrase=phrase))
        varied = sampled(
            self._base,
            settings,
            fitting(*shown.shape[:2], settings.side),
            prompt_embeds=given.prompt_embeds,
            pooled_prompt_embeds=given.pooled_prompt_embeds,
            generator=generator("redux", seed),
        )
        return varied, before_white(varied)


@dataclass(frozen=True, kw_only=True)
class FluxKontext:
    """Pictures edited as they are told, by FLUX.1 Kontext: other poses, and the edits of `groups.edited_reference`.

    path: folder of a FluxKontextPipeline. prompt: asks for another pose of {phrase}. side, steps, guidance, tokens: as
    of FluxFill.
    """

    path: str
    device: str = "cpu"
    dtype: str = "bfloat16"
    prompt: str = "Show the same {phrase} in another pose and seen from another side, before plain white."
    side: int = 1024
    steps: int = 28
    guidance: float = 2.5
    tokens: int = 512

    def load(self) -> "_FluxKontext":
        return _FluxKontext(self, load("FluxKontextPipeline", self.path, self.device, self.dtype))


class _FluxKontext:
    def __init__(self, settings: FluxKontext, pipeline: Any):
        self._settings, self._pipeline = settings, pipeline

    def edit(self, picture: UInt8[np.ndarray, "h w 3"], instruction: str, seed: str = "") -> np.ndarray:
        """The picture as the instruction wants it, uint8 [h, w, 3] of the same size."""
        settings = self._settings
        height, width = fitting(*picture.shape[:2], settings.side)
        edited = sampled(
            self._pipeline,
            settings,
            (height, width),
            image=Image.fromarray(scaled(picture, height, width)),
            prompt=instruction,
            max_sequence_length=settings.tokens,
            max_area=height * width,
            _auto_resize=False,
            generator=generator("edit", instruction, seed, pictures.png(picture)),
        )
        return scaled(edited, *picture.shape[:2])

    def vary(self, picture: np.ndarray, mask: np.ndarray, phrase: str, seed: str) -> tuple[np.ndarray, np.ndarray]:
        """The subject alone goes in; what is not white comes out as its mask."""
        varied = self.edit(on_white(picture, mask), self._settings.prompt.format(phrase=phrase), seed)
        return varied, before_white(varied)


def on_white(picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The subject on white with a quarter of its sides around it, so that another pose has room."""
    x0, y0, x1, y1 = pictures.whole_box(pictures.box_of(mask), *mask.shape)
    cut = np.where(mask[..., None], picture, np.uint8(255))[y0:y1, x0:x1]
    around = [(cut.shape[0] // 4,) * 2, (cut.shape[1] // 4,) * 2, (0, 0)]
    return np.pad(cut, around, constant_values=255)


def before_white(picture: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Everything but the white that reaches the border; everything, where nothing would be left."""
    white = np.pad(picture.min(-1) >= WHITE, 1, constant_values=True)
    reached = np.zeros_like(white)
    reached[0] = True
    count = 0
    while count < (count := int(reached.sum())):
        for turned in range(4):  # along every run of white, from each side
            way, open_ = np.rot90(reached, turned), np.rot90(white, turned)
            number = np.arange(way.shape[1])
            last = lambda where, number=number: np.maximum.accumulate(np.where(where, number, -1), axis=1)
            way |= open_ & (last(way) > last(~open_))
    mask = ~reached[1:-1, 1:-1]
    return mask if mask.any() else np.ones_like(mask)
