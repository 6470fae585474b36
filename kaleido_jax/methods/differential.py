"""Differential prompts: only what changes from the primary reference to the video is said (AnyID, section 3.3).

A describer says for each element of a list (hairstyle, clothing, ...) what the primary reference shows and what the
video shows; a comparer rates how alike two descriptions are; elements rated above gamma are unchanged and dropped. The
element lists are the files of `elements/`; describers and comparers are whatever has the method below.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Protocol, runtime_checkable

from kaleido_jax.errors import InputError, printable, unknown_name

# The paper gives no value. Two of three words in common rate 0.67, an added adjective 0.8 to 0.9.
GAMMA = 0.75
MAX_CHARACTERS = 500


@runtime_checkable
class Describer(Protocol):
    """Something that looks: a vision-language model, a person, or the ground truth of a procedural world."""

    def describe(self, shown: Any, elements: Mapping[str, str]) -> Mapping[str, str]:
        """For each element a short text of what `shown` shows of it. elements: name -> what belongs to it."""
        ...


@runtime_checkable
class Comparer(Protocol):
    """Something that rates how alike two descriptions of an element are."""

    def similarity(self, element: str, one: str, other: str) -> float:
        """From 0, unlike, to 1, the same."""
        ...


class Words:
    """Rates by common words: twice the number of those in both, over the number in each (Dice's coefficient)."""

    def similarity(self, element: str, one: str, other: str) -> float:
        a, b = set(one.lower().split()), set(other.lower().split())
        return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def element_lists() -> tuple[str, ...]:
    """The names of the lists that come with the package."""
    folder = resources.files("kaleido_jax.methods") / "elements"
    return tuple(sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json")))


def load_elements(name: str) -> dict[str, str]:
    """A list of elements: name -> what belongs to it. Raises InputError for a list that does not exist."""
    if name not in element_lists():
        raise InputError(unknown_name("element list", name, element_lists()))
    return json.loads((resources.files("kaleido_jax.methods") / "elements" / f"{name}.json").read_text())


def described(describer: Describer, shown: Any, elements: Mapping[str, str], what: str = "it") -> dict[str, str]:
    """The describer's answer, checked: one text for each element and nothing else.

    Raises InputError that names the element; `what` says in it what was looked at.
    """
    return checked(describer.describe(shown, elements), elements, what)


def checked(answer: Any, elements: Mapping[str, str], what: str = "it", *, complete: bool = True) -> dict[str, str]:
    """A description: a text for each element (complete) or for some, and nothing else, white space collapsed.

    Raises InputError that names the element; `what` says in it what was looked at.
    """
    if not isinstance(answer, Mapping):
        raise InputError(f"The describer answered {printable(repr(answer), 60)} for {what}; it must name each element.")
    for name in answer:
        if name not in elements:
            raise InputError(f"The describer of {what}: {unknown_name('element', str(name), elements)}")
    told = [name for name in elements if complete or name in answer]
    for name in told:
        text = answer.get(name)
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"The describer said nothing of the {name} of {what}; it must give a text.")
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"The describer said {len(text)} characters of the {name} of {what}; it may say {MAX_CHARACTERS}."
            )
    return {name: " ".join(answer[name].split()) for name in told}


@runtime_checkable
class OneCall(Protocol):
    """Something that sees the primary reference and the target at once and says what differs."""

    def differences(self, reference: Any, target: Any, elements: Mapping[str, str]) -> Mapping[str, str]:
        """The elements of the target that differ from the reference's."""
        ...


def differing(
    reference: Any,
    target: Any,
    elements: Mapping[str, str],
    describer: Describer | OneCall,
    comparer: Comparer | None = None,
    gamma: float = GAMMA,
) -> dict[str, str]:
    """The elements in which the target differs from the primary reference, from what is shown of both.

    With a comparer in two stages, as the paper does it; without one by the describer's one call.
    """
    if comparer is None:
        if not isinstance(describer, OneCall):
            raise InputError("This describer cannot compare in one call; give a comparer.")
        return checked(describer.differences(reference, target, elements), elements, "the target", complete=False)
    _check_gamma(gamma)
    seen = described(describer, reference, elements, "the primary reference")
    return changes(seen, described(describer, target, elements, "the target"), comparer, gamma)


def changes(
    reference: Mapping[str, str], target: Mapping[str, str], comparer: Comparer, gamma: float = GAMMA
) -> dict[str, str]:
    """The elements of the target that differ from the primary reference's: those that are not rated above gamma."""
    _check_gamma(gamma)
    kept = {}
    for name, text in target.items():
        rating = comparer.similarity(name, reference[name], text)
        if not 0 <= rating <= 1:
            raise InputError(f"The comparer rated the {name} {rating}; it must be between 0, unlike, and 1, the same.")
        if rating <= gamma:
            kept[name] = text
    return kept


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise InputError(f"gamma is {gamma}; it must be between 0, all is dropped, and 1, all is said.")


def prompt(kept: Mapping[str, str], subject: str = "the subject", separator: str = ", ") -> str:
    """The differential prompt. Without a change it names the subject alone: an empty prompt means something else."""
    return " ".join([subject, separator.join(kept.values())]).strip()


def primary_first(references: Sequence[Any], primary: int) -> list[Any]:
    """The references with the primary one, counted from 1, in front. Raises InputError if there is no such one."""
    if not 1 <= primary <= len(references):
        raise InputError(
            f"The primary reference is number {primary}, and there are {len(references)}; "
            f"it must be a number from 1 to {len(references)}."
            if references
            else "There is no reference, so none can be the primary one."
        )
    return [references[primary - 1], *references[: primary - 1], *references[primary:]]
