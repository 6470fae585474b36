"""Models behind an OpenAI-compatible endpoint: captions, summaries of scenes, instructions for editors, a filter."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from kaleido_jax.curation.groups import QUESTIONS
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

    def load(self) -> "_EndpointCaptioner":
        import os

        cache = Path(self.cache) if self.cache else None
        key = os.environ.get(self.key, "") if self.key else ""
        return _EndpointCaptioner(self, Endpoint(url=self.url, model=self.model, key=key, cache=cache))


class _EndpointCaptioner:
    def __init__(self, settings: EndpointCaptioner, endpoint: Endpoint):
        self._settings, self._endpoint = settings, endpoint

    def caption(self, frames: np.ndarray) -> str:
        """The caption; InputError where the model gives none that can be used."""
        count = min(self._settings.frames, len(frames))
        shown = [frames[number] for number in np.linspace(0, len(frames) - 1, count).round().astype(int)]
        return self._endpoint.ask([*map(self._small, shown), prompt("caption")], self._checked)

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
class EndpointWriter:
    """The language model of `groups`: summaries of scenes, instructions for editors, the filter of their pictures."""

    endpoint: Endpoint

    def summarise(self, captions: Sequence[str]) -> str:
        """One caption of a scene, from those of its shots."""
        listed = "\n".join(f"{number}. {caption}" for number, caption in enumerate(captions, 1))
        return self.endpoint.ask([prompt("scene", captions=listed)], lambda answer: _text(answer, "caption"))

    def write(self, change: str, frame: np.ndarray, caption: str) -> str:
        """The instruction for an editor; change: a member of `groups.CHANGES`."""
        asked = prompt(f"edit_{change}", caption=caption)
        return self.endpoint.ask([frame, asked], lambda answer: _text(answer, "instruction"))

    def judge(self, frame: np.ndarray, edited: np.ndarray, instruction: str) -> dict[str, float]:
        """A score from 1 to 5 for each of `groups.QUESTIONS`."""
        return self.endpoint.ask([frame, edited, prompt("edit_filter", instruction=instruction)], _scores)


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
