"""Scenes of any number of shots: which shots are made together, and which of the others each of them sees (LCT).

A context holds nine shots. What is given (a clip that is a shot already, pictures that a shot is composed of, shots
that were made before) stands in it at a low noise; what is made starts from noise. A scene is a list of such contexts,
one after the other: all shots in one (joint), around those that are given (conditioned), or one shot in each
(autoregressive). Longer scenes take several, and what later ones see of earlier ones comes from the pool of all shots
that there are, chosen by the user or by how much the prompts have in common.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from kaleido_jax.errors import InputError, UsageError, unknown_name
from kaleido_jax.methods.lct import MOST_SHOTS

SAMPLINGS = ("joint", "conditioned", "autoregressive")
# Shots of the pool that a segment after the first one sees: the paper's pool gives "relevant" ones and no number.
CARRIED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
    """One shot of a scene.

    condition_on: numbers, from 1, of the shots that it is made after; None: those that are most relevant.
    references: files of pictures or clips that it is composed of, such as a character's and a place's.
    clip: a file that is this shot already; "": it is made.
    extends: number of the shot that it goes on from without a cut; 0: of none. The prompt may then be left out.
    """

    prompt: str = ""
    condition_on: tuple[int, ...] | None = None
    references: tuple[str, ...] = ()
    clip: str = ""
    extends: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A scene of shots, checked as a whole when it is made.

    prompt: of the whole scene; may be empty. sampling: None: autoregressive if a shot names those that it is
    conditioned on or extends one, conditioned if anything is given, else as the model was tuned.
    segments: whether a scene that one context cannot hold is made in several. carried: shots that later segments see.
    file: that it was read from.

    Raises:
      InputError: a shot has no prompt, or numbers that cannot be. UsageError: the sampling does not fit the shots, or
        they do not fit one context and `segments` is off.
    """

    prompt: str = ""
    shots: tuple[Shot, ...]
    sampling: str | None = None
    segments: bool = True
    carried: int = CARRIED
    file: str = ""

    def __post_init__(self) -> None:
        if not self.shots:
            raise InputError("The scene has no shot; give it at least one, with a prompt.")
        if self.sampling is not None and self.sampling not in SAMPLINGS:
            raise UsageError(unknown_name("sampling", str(self.sampling), SAMPLINGS))
        if not 1 <= self.carried < MOST_SHOTS:
            raise InputError(f"carried is {self.carried}; a later segment sees 1 to {MOST_SHOTS - 1} earlier shots.")
        for number, shot in enumerate(self.shots, 1):
            self._check(number, shot)
        self._check_sampling()
        parts(self, self.sampled(causal=False))  # raises for what does not fit

    def _check(self, number: int, shot: Shot) -> None:
        if shot.extends:
            self._check_number(number, "extends", shot.extends)
            if shot.clip:
                raise InputError(f"Shot {number} extends shot {shot.extends} and has a clip; leave one of them out.")
        if not self.prompt_of(number):
            raise InputError(f"Shot {number} has no prompt; say what it shows.")
        for other in shot.condition_on or ():
            self._check_number(number, "condition_on", other)
        if shot.clip and (shot.condition_on or shot.references):
            raise InputError(
                f"Shot {number} has a clip, so nothing of it is made; leave out what it is conditioned on."
            )

    def _check_number(self, number: int, field: str, other: int) -> None:
        if not 1 <= other <= len(self.shots) or other == number:
            raise InputError(f"{field} of shot {number} names shot {other}; it must be another one of the scene's.")
        if other > number and not self.shots[other - 1].clip:
            raise InputError(
                f"{field} of shot {number} names shot {other}, which is made later; give an earlier one, or one with a "
                "clip."
            )

    def _check_sampling(self) -> None:
        chosen = [n for n, shot in enumerate(self.shots, 1) if shot.condition_on is not None or shot.extends]
        given = [n for n, shot in enumerate(self.shots, 1) if shot.clip or shot.references]
        if chosen and self.sampling in ("joint", "conditioned"):
            raise UsageError(
                f"Shot {chosen[0]} says which shot it comes after, and the sampling is {self.sampling}; only "
                "autoregressive sampling makes shots one after the other."
            )
        if given and self.sampling == "joint":
            raise UsageError(f"Shot {given[0]} has clips or pictures, and the sampling is joint; choose conditioned.")
        if not given and self.sampling == "conditioned":
            raise UsageError("The sampling is conditioned, and no shot has a clip or references; choose joint.")
        if not any(not shot.clip for shot in self.shots):
            raise InputError("Every shot has a clip already; leave at least one to be made.")

    def prompt_of(self, number: int) -> str:
        """The prompt of a shot, or of the one that it extends."""
        shot, seen = self.shots[number - 1], {number}
        while not shot.prompt.strip() and shot.extends and shot.extends not in seen:
            seen.add(shot.extends)
            shot = self.shots[shot.extends - 1]
        return shot.prompt.strip()

    @property
    def prompts(self) -> tuple[str, ...]:
        """The global prompt and those of the shots."""
        return self.prompt, *(self.prompt_of(number) for number in range(1, 1 + len(self.shots)))

    def sampled(self, *, causal: bool) -> str:
        """How the scene is made. causal: whether the model was tuned to make shots one after the other."""
        if self.sampling is not None:
            return self.sampling
        if any(shot.condition_on is not None or shot.extends for shot in self.shots):
            return "autoregressive"
        given = any(shot.clip or shot.references for shot in self.shots)
        return "autoregressive" if causal else "conditioned" if given else "joint"

    @property
    def files(self) -> tuple[tuple[str, ...], ...]:
        """The clip, or the references, of each shot that has any."""
        given = [(shot.clip,) if shot.clip else shot.references for shot in self.shots]
        return tuple(files for files in given if files)

    @classmethod
    def of(cls, prompts: Sequence[str], **fields: Any) -> "Scene":
        """From the global prompt and one for each shot."""
        return cls(prompt=prompts[0], shots=tuple(Shot(prompt=prompt) for prompt in prompts[1:]), **fields)


@dataclasses.dataclass(frozen=True)
class Part:
    """One context. made: numbers of the shots that are made in it. seen: of those that are given; references: as
    (shot, index) of the pictures and clips of shots that are made."""

    made: tuple[int, ...]
    seen: tuple[int, ...] = ()
    references: tuple[tuple[int, int], ...] = ()


def parts(scene: Scene, sampling: str) -> list[Part]:
    """The contexts of a scene, in the order in which they are made.

    Raises:
      UsageError: a shot with what it is made from does not fit one context, or the scene does not and may not be split.
    """
    clips = [number for number, shot in enumerate(scene.shots, 1) if shot.clip]
    if sampling == "autoregressive":
        return [_alone(scene, number, clips) for number, shot in enumerate(scene.shots, 1) if not shot.clip]
    found, number, last = [], 1, len(scene.shots)
    while number <= last:
        made, seen, references, first = [], [], [], number
        if number > 1:
            pool = sorted({*range(1, number), *clips} - {number})
            room = MOST_SHOTS - 1 - len(scene.shots[number - 1].references)
            seen = list(relevant(scene, number, pool, min(scene.carried, room)))
        while number <= last:
            shot = scene.shots[number - 1]
            own = [(number, index) for index in range(len(shot.references))]
            seen = [other for other in seen if other != number]  # a carried clip stands at its own place
            if len(made) + len(seen) + len(references) + len(own) + 1 > MOST_SHOTS:
                break
            (seen if shot.clip else made).append(number)
            references += own
            number += 1
        if number == first:
            raise UsageError(_too_much(number, len(scene.shots[number - 1].references), len(seen)))
        if made:
            found.append(Part(tuple(made), tuple(sorted(seen)), tuple(references)))
    if len(found) > 1 and not scene.segments:
        raise UsageError(
            f"There are {last} shots, and one context holds at most {MOST_SHOTS} shots and references; with segments "
            f"they would be made as {' and '.join(str(len(part.made)) for part in found)}, each later segment seeing "
            f"{scene.carried} of the earlier shots. Set segments to true."
        )
    return found


def _alone(scene: Scene, number: int, clips: Sequence[int]) -> Part:
    """The context of one shot: what it is conditioned on, or what of the pool fits and is most relevant."""
    shot = scene.shots[number - 1]
    references = tuple((number, index) for index in range(len(shot.references)))
    room = MOST_SHOTS - 1 - len(references)
    needed = tuple(dict.fromkeys((shot.condition_on or ()) + ((shot.extends,) if shot.extends else ())))
    if len(needed) > room or room < 0:
        raise UsageError(_too_much(number, len(references), len(needed)))
    if shot.condition_on is not None:
        return Part((number,), tuple(sorted(needed)), references)
    pool = sorted({*range(1, number), *clips} - {number, *needed})
    return Part((number,), tuple(sorted((*needed, *relevant(scene, number, pool, room - len(needed))))), references)


def _too_much(number: int, references: int, others: int) -> str:
    return (
        f"Shot {number} is made from {references} references and {others} other shots, and one context holds "
        f"{MOST_SHOTS - 1} beside it; leave some out."
    )


def relevant(scene: Scene, number: int, pool: Sequence[int], most: int) -> tuple[int, ...]:
    """The `most` shots of the pool whose prompts are nearest to a shot's, in their order.

    Nearness is the cosine between counts of words, each weighted by how rare it is among the scene's shots, so that
    what all of them share (the film's style) says little and a character or a place that comes back says much. Of
    equally near ones the later is taken.
    """
    words = [Counter(re.findall(r"\w+", prompt.lower())) for prompt in scene.prompts[1:]]
    count = Counter(word for shot in words for word in shot)
    weighted = [
        {word: times * math.log((1 + len(words)) / count[word]) for word, times in shot.items()} for shot in words
    ]

    def near(other: int) -> float:
        one, two = weighted[number - 1], weighted[other - 1]
        length = math.sqrt(sum(x * x for x in one.values()) * sum(x * x for x in two.values()))
        return sum(value * two.get(word, 0.0) for word, value in one.items()) / length if length else 0.0

    ranked = sorted(pool, key=lambda other: (-round(near(other), 9), -other))
    return tuple(sorted(ranked[: max(0, most)]))
