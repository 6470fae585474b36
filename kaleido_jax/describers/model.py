"""Descriptions, comparisons and prompts, asked of a model in words; every answer is checked before it counts."""

import string
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np

from kaleido_jax.endpoints import Question, parsed_json
from kaleido_jax.errors import InputError, printable
from kaleido_jax.methods import differential
from kaleido_jax.typing import UInt8

T = TypeVar("T")
MOST_FRAMES = 8  # of a clip that are shown, spread over it
MOST_CHARACTERS = 1500  # of a prompt that a model writes

# A picture [h, w, 3], a clip [f, h, w, 3], or a text that says what shall be seen.
Shown: TypeAlias = UInt8[np.ndarray, "_ _ 3"] | UInt8[np.ndarray, "_ _ _ 3"] | str


@runtime_checkable
class Model(Protocol):
    """A vision-language model."""

    def ask(self, question: Question, check: Callable[[str], T]) -> T:
        """What `check` makes of the answer; asked again where it raises InputError, and raised if that goes on."""
        ...


class ModelDescriber:
    """A describer and comparer, and the writer of ContextAnyone's two prompts, by asking a model."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def describe(self, shown: Shown, elements: Mapping[str, str]) -> dict[str, str]:
        """For each element a short text of what is shown of it."""
        question = [*_parts(shown), template("elements", elements=_listed(elements))]
        return self.model.ask(question, lambda answer: differential.checked(parsed_json(answer), elements))

    def similarity(self, element: str, one: str, other: str) -> float:
        """How alike two descriptions of an element are, from 0 to 1."""
        question = [template("similarity", element=element, one=one, other=other)]
        return self.model.ask(question, _similarity)

    def differences(self, reference: Shown, target: Shown, elements: Mapping[str, str]) -> dict[str, str]:
        """The elements in which the target differs from the primary reference, in one call."""
        parts = ["Reference:", *_parts(reference), "Target:", *_parts(target)]
        question = [*parts, template("differences", elements=_listed(elements))]
        check = lambda answer: differential.checked(parsed_json(answer), elements, complete=False)
        return self.model.ask(question, check)

    def two_prompts(self, reference: Shown, prompt: str) -> tuple[str, str]:
        """ContextAnyone's prompts: of the first frame, which paints the reference again, and of the later ones."""
        return self.model.ask([*_parts(reference), template("two_prompts", prompt=prompt)], _two_prompts)

    def better(self, track: str, shown: Sequence[Shown], a: Shown, b: Shown, prompt: str) -> str:
        """Which of two clips is better along a track of preference pairs, "a", "b" or "same".

        Asked in both orders, because models favour a place: what changes with the order is the same.
        """
        values = {"prompt": prompt} if track == "control" else {}
        answers = []
        for one, other in ((a, b), (b, a)):
            parts = [part for piece in shown for part in _parts(piece)]
            parts += ["Clip A:", *_parts(one), "Clip B:", *_parts(other), template(f"judge_{track}", **values)]
            answers.append(self.model.ask(parts, _better))
        first, swapped = answers[0], {"A": "B", "B": "A"}.get(answers[1], answers[1])
        return {"A": "a", "B": "b"}.get(first, "same") if first == swapped else "same"


def template(name: str, **values: str) -> str:
    """A template of `templates/` with its $names filled in."""
    text = (resources.files("kaleido_jax.describers") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
    return string.Template(text).substitute(values)


def _listed(elements: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {meaning}" for name, meaning in elements.items())


def _parts(shown: Shown) -> list[Any]:
    if isinstance(shown, str):
        return [shown]
    frames = shown[None] if shown.ndim == 3 else shown
    return list(frames[np.unique(np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int))])


def _similarity(answer: str) -> float:
    document = parsed_json(answer)
    value = document.get("similarity") if isinstance(document, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"similarity is {printable(repr(value), 40)}; it must be a number from 0 to 1.")
    return float(value)


def _better(answer: str) -> str:
    document = parsed_json(answer)
    value = document.get("better") if isinstance(document, Mapping) else None
    if value not in ("A", "B", "same"):
        raise InputError(f"better is {printable(repr(value), 40)}; it must be A, B or same.")
    return value


def _two_prompts(answer: str) -> tuple[str, str]:
    document = parsed_json(answer)
    found = []
    for name in ("first_frame", "later_frames"):
        text = document.get(name) if isinstance(document, Mapping) else None
        if not isinstance(text, str) or not text.strip() or len(text) > MOST_CHARACTERS:
            raise InputError(f"{name} is missing, empty or longer than {MOST_CHARACTERS} characters.")
        found.append(" ".join(text.split()))
    return found[0], found[1]
