"""Models that are asked in words, behind an OpenAI-compatible endpoint or in a folder: captions, summaries of scenes,
instructions for editors, a filter."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.curation.groups import QUESTIONS
from kaleido_jax.describers.model import ModelDescriber
from kaleido_jax.endpoints import Endpoint
from kaleido_jax.errors import InputError

PROMPTS = Path(__file__).parent.parent / "prompts"


def prompt(name: str, **values: str) -> str:
    """A committed prompt, by the name of its file, with its $names filled in."""
    return Template((PROMPTS / f"{name}.txt").read_text("utf-8").strip()).substitute(values)


def object_with(answer: str, *names: str) -> dict[str, str]:
    """The JSON object of an answer, which must have exactly these texts; InputError, told to the model, if not."""
    found = _object(answer)
    if set(found) != set(names) or not all(isinstance(value, str) for value in found.values()):
        raise InputError(f"The JSON object must have exactly the keys {', '.join(names)}, each with a text.")
    return found


def _object(answer: str) -> dict[str, Any]:
    text = answer.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError("It must be one JSON object and nothing else.") from None
    if not isinstance(found, dict):
        raise InputError("It must be one JSON object and nothing else.")
    return found


@dataclass(frozen=True, kw_only=True)
class EndpointCaptioner:
    """Asks a model for the caption of a clip; accepted answers are kept in `cache`, so that nothing is asked twice.

    url, model: of the endpoint. key: the name of an environment variable with its key, or "". frames: how many are
    shown, with `side` pixels on their longer side. words: the fewest and the most of a caption.
    """

    url: str
    model: str
    key: str = ""
    cache: str = ""
    frames: int = 8
    side: int = 512
    words: tuple[int, int] = (8, 200)

    def load(self) -> "_Captioner":
        return _Captioner(self, _endpoint(self))


@dataclass(frozen=True, kw_only=True)
class LocalCaptioner:
    """Asks a vision-language model of transformers (extra `vlm`) in the folder `path`, as `EndpointCaptioner` does.

    device: where it runs. attempts: questions a clip before it is dropped; from the second on the model is told what
    was wrong.
    """

    path: str
    device: str = "cpu"
    attempts: int = 2
    frames: int = 8
    side: int = 512
    words: tuple[int, int] = (8, 200)

    def load(self) -> "_Captioner":
        from kaleido_jax.describers.transformers_model import TransformersModel

        asked = TransformersModel.load(self.path)
        asked.model.to(self.device)
        asked.attempts = self.attempts
        return _Captioner(self, asked)


class _Captioner:
    def __init__(self, settings: EndpointCaptioner | LocalCaptioner, asked: Any):
        self._settings, self._asked = settings, asked

    def caption(self, frames: np.ndarray) -> str:
        """The caption; "" where the model answers, but never so that it can be used.

        Raises:
          InputError: the model does not answer; the clip is not done, and a later run asks again.
        """
        count = min(self._settings.frames, len(frames))
        shown = [frames[number] for number in np.linspace(0, len(frames) - 1, count).round().astype(int)]
        refused = 0

        def checked(answer: str) -> str:
            nonlocal refused
            try:
                return self._checked(answer)
            except InputError:
                refused += 1
                raise

        try:
            return self._asked.ask([*map(self._small, shown), prompt("caption")], checked)
        except InputError:
            if refused < self._asked.attempts:
                raise
            return ""

    def _small(self, frame: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(frame))
        picture.thumbnail((self._settings.side, self._settings.side))
        return np.asarray(picture)

    def _checked(self, answer: str) -> str:
        text = " ".join(object_with(answer, "caption")["caption"].split())
        low, high = self._settings.words
        if not low <= len(text.split()) <= high:
            raise InputError(f"The caption has {len(text.split())} words; it must have {low} to {high}.")
        return text


@dataclass(frozen=True, kw_only=True)
class EndpointModel:
    """A language model behind an endpoint as `models.writer`; the fields are those of `EndpointCaptioner`."""

    url: str
    model: str
    key: str = ""
    cache: str = ""

    def load(self) -> "EndpointWriter":
        return EndpointWriter(endpoint=_endpoint(self))


@dataclass(frozen=True, kw_only=True)
class EndpointWriter:
    """The language model of `groups`: summaries of scenes, instructions for editors, the filter of their pictures.

    endpoint: an `Endpoint`, or a `describers.transformers_model.TransformersModel`.
    """

    endpoint: Any

    def summarise(self, captions: Sequence[str]) -> str:
        """One caption of a scene, from those of its shots."""
        listed = "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))
        return self.endpoint.ask([prompt("scene", captions=listed)], lambda answer: _text(answer, "caption"))

    def describer(self) -> ModelDescriber:
        """The same model as a describer and comparer of differential prompts."""
        return ModelDescriber(self.endpoint)

    def write(self, change: str, frame: np.ndarray, caption: str) -> str:
        """The instruction for an editor; change: a member of `groups.CHANGES`."""
        asked = prompt(f"edit_{change}", caption=caption)
        return self.endpoint.ask([frame, asked], lambda answer: _text(answer, "instruction"))

    def judge(self, frame: np.ndarray, edited: np.ndarray, instruction: str) -> dict[str, float]:
        """A score from 1 to 5 for each of `groups.QUESTIONS`."""
        return self.endpoint.ask([frame, edited, prompt("edit_filter", instruction=instruction)], _scores)


def _endpoint(settings: "EndpointCaptioner | EndpointModel") -> Endpoint:
    cache = Path(settings.cache) if settings.cache else None
    key = os.environ.get(settings.key, "") if settings.key else ""
    return Endpoint(url=settings.url, model=settings.model, key=key, cache=cache)


def _text(answer: str, name: str) -> str:
    text = " ".join(object_with(answer, name)[name].split())
    if not text:
        raise InputError(f"The text of {name} is empty.")
    return text


def _scores(answer: str) -> dict[str, float]:
    found = _object(answer)
    good = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 5
    if set(found) != set(QUESTIONS) or not all(map(good, found.values())):
        raise InputError(f"The JSON object must have exactly the keys {', '.join(QUESTIONS)}, each a number, 1 to 5.")
    return {name: float(value) for name, value in found.items()}
