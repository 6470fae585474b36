"""Do the scores tell right from wrong? Videos of the procedural world with mistakes planted in them.

Each question is asked of pairs that differ in the planted mistake alone. Masks are those of the world, in place of a
detector's; every subject is held out.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from kaleido_jax.data import photographs
from kaleido_jax.data.distractors import distractors
from kaleido_jax.data.drawing import generator, pick
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.scenes import SCENES, paint_scene
from kaleido_jax.data.sprites import Identity
from kaleido_jax.data.world import Story, World
from kaleido_jax.evaluation.evidence import Evidence, Tools
from kaleido_jax.evaluation.intervals import auc_interval
from kaleido_jax.evaluation.metrics import presence
from kaleido_jax.evaluation.runs import Reference, RunCase
from kaleido_jax.evaluation.suites import METRICS
from kaleido_jax.evaluation.videos import Shown, white_surrounding

_SEEDS = 2**40


@dataclass(frozen=True, kw_only=True)
class Question:
    """A score and the mistake that it should see.

    what: the two sides in words. score: of the evidence. higher: whether the right video scores higher than the wrong
    one. pair: from the maker and a number, what the right and the wrong video show.
    """

    what: str
    score: Callable[[Evidence], float]
    higher: bool
    pair: "Callable[[Maker, int], tuple[Evidence, Evidence]]"


class Maker:
    """Makes evidence of the world's videos."""

    def __init__(self, world: World, tools: Tools):
        self.world, self._tools = world, tools

    def identities(self, number: int, count: int) -> tuple[Identity, ...]:
        """Different held-out identities."""
        rng = generator(0xD15C, number)
        return tuple(self.world.identity(2 * int(rng.random() * 2**50) + 1) for _ in range(count))

    def story(self, number: int, identities: tuple[Identity, ...]) -> Story:
        """Story `number` about these: motions, scene and places are the same whoever they are."""
        rng = generator(0x5702, number)
        motions = tuple(pick(rng, MOTIONS) for _ in identities)
        return Story(
            seed=int(rng.random() * 2**52), split="heldout", identities=identities, motions=motions,
            scene=pick(rng, tuple(SCENES)), scene_seed=2 * int(rng.random() * 2**50) + 1,
            pictures=(1,) * len(identities), scene_given=False, prompt="",
        )  # fmt: skip

    def cut_out(self, identity: Identity, seed: int) -> np.ndarray:
        """A reference on plain white."""
        return self.world.picture(identity, seed, split="heldout", style="white")

    def before(self, cut_out: np.ndarray, scene: str, seed: int) -> np.ndarray:
        """The same reference before a scene."""
        plate = paint_scene(scene, seed, *cut_out.shape[:2], photographs.load("heldout")).picture
        mask = white_surrounding(cut_out)
        assert mask is not None
        return np.where(mask[..., None], cut_out, np.asarray(plate))

    def evidence(
        self,
        story: Story,
        references: list[np.ndarray],
        *,
        masks: list[np.ndarray | None] | None = None,
        change: Callable[[np.ndarray], np.ndarray] = lambda video: video,
        named: bool = True,
    ) -> Evidence:
        """What a story shows, with a reference of each subject.

        masks: of the references; told from plain white if not given. change: of the video. named: whether the
        detector knows which subject it has found.
        """
        sample = self.world.render(story)
        count = len(story.identities)
        claimed = np.arange(1, count + 1) if named else np.zeros(count, np.int64)
        case = RunCase(
            id="planted", video=Path("planted"),
            references=tuple(Reference(path=Path("planted"), subject=i + 1) for i in range(len(references))),
        )  # fmt: skip
        shown = Shown(
            video=change(sample.video), references=references,
            reference_masks=masks or [white_surrounding(picture) for picture in references],
            masks=(sample.masks, claimed),
        )  # fmt: skip
        return Evidence(case, self._tools, shown)


def _another_subject(maker: Maker, number: int) -> tuple[Evidence, Evidence]:
    right, wrong = maker.identities(number, 2)
    return _subjects(maker, number, right, wrong)


def _lookalike(maker: Maker, number: int) -> tuple[Evidence, Evidence]:
    (right,) = maker.identities(number, 1)
    colour = number % 2
    (wrong,) = distractors(maker.world, right, number, count=1, same_colour=colour, same_silhouette=1 - colour)
    return _subjects(maker, number, right, wrong)


def _subjects(maker: Maker, number: int, right: Identity, wrong: Identity) -> tuple[Evidence, Evidence]:
    references = [maker.cut_out(right, _SEEDS + number)]
    return (
        maker.evidence(maker.story(number, (right,)), references),
        maker.evidence(maker.story(number, (wrong,)), references),
    )


def _background(maker: Maker, number: int) -> tuple[Evidence, Evidence]:
    """The video before the reference's own background, and before another one."""
    (subject,) = maker.identities(number, 1)
    copied, new = maker.story(number, (subject,)), maker.story(number + 1, (subject,))
    new = replace(copied, scene=new.scene, scene_seed=new.scene_seed)
    alone = maker.cut_out(subject, _SEEDS + number)
    references = [maker.before(alone, copied.scene, copied.scene_seed)]
    masks = [white_surrounding(alone)]
    return maker.evidence(new, references, masks=masks), maker.evidence(copied, references, masks=masks)


def _leaked(first: bool) -> Callable[[Maker, int], tuple[Evidence, Evidence]]:
    def pair(maker: Maker, number: int) -> tuple[Evidence, Evidence]:
        """The reference shows in place of a frame, noisy and out of focus as a model would show it."""
        (subject,) = maker.identities(number, 1)
        rng = np.random.Generator(np.random.PCG64(number))
        reference = maker.cut_out(subject, _SEEDS + number)
        if number % 2:
            reference = maker.before(reference, pick(generator(0x1EA, number), tuple(SCENES)), 2 * number + 1)
        soft = Image.fromarray(reference).resize((48, 48)).resize(reference.shape[1::-1], Image.Resampling.BILINEAR)
        noisy = np.clip(np.asarray(soft) + rng.normal(0, 12, reference.shape), 0, 255).astype(np.uint8)

        def leak(video: np.ndarray) -> np.ndarray:
            video = video.copy()
            video[0 if first else int(rng.integers(len(video)))] = noisy
            return video

        story = maker.story(number, (subject,))
        return maker.evidence(story, [reference]), maker.evidence(story, [reference], change=leak)

    return pair


def _two(maker: Maker, number: int, wrong: Callable[[Identity, Identity], tuple[Identity, ...]], named: bool):
    a, b = maker.identities(number, 2)
    references = [maker.cut_out(a, _SEEDS + number), maker.cut_out(b, _SEEDS - number)]
    make = lambda who: maker.evidence(maker.story(number, who), references, named=named)
    return make((a, b)), make(wrong(a, b))


def _duplicate(maker: Maker, number: int) -> tuple[Evidence, Evidence]:
    """Both subjects, and the first one twice."""
    return _two(maker, number, lambda a, b: (a, a), named=False)


def _swapped(maker: Maker, number: int) -> tuple[Evidence, Evidence]:
    """Both subjects as asked, and each in the other's place."""
    return _two(maker, number, lambda a, b: (b, a), named=True)


QUESTIONS: Mapping[str, Question] = {
    "s2v_consistency": Question(
        what="the right subject, another subject", score=METRICS["s2v_consistency"].function, higher=True,
        pair=_another_subject,
    ),
    "s2v_consistency, look-alikes": Question(
        what="the right subject, one of its colour or silhouette", score=METRICS["s2v_consistency"].function,
        higher=True, pair=_lookalike,
    ),
    "s2v_decoupling": Question(
        what="a new background, the reference's", score=METRICS["s2v_decoupling"].function, higher=True,
        pair=_background,
    ),
    "first_frame_leak": Question(
        what="a clean video, the reference as first frame", score=METRICS["first_frame_leak"].function, higher=False,
        pair=_leaked(True),
    ),
    "reference_leak": Question(
        what="a clean video, the reference as any frame", score=METRICS["reference_leak"].function, higher=False,
        pair=_leaked(False),
    ),
    "duplication": Question(
        what="both subjects, one of them twice", score=lambda e: presence.duplication(e.instances("clip")[0]),
        higher=False, pair=_duplicate,
    ),
    "swap": Question(
        what="both subjects, each in the other's place",
        score=lambda e: presence.swap(e.instances("clip")[0], e.instances("clip")[2]), higher=False, pair=_swapped,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How well a score tells a question's two sides apart: the area under the ROC curve with its 95 % interval, and the
    median score of each side."""

    name: str
    area: float
    low: float
    high: float
    right: float
    wrong: float


def discriminate(world: World, tools: Tools, pairs: int) -> Iterator[Answer]:
    """The answer to each of QUESTIONS, from `pairs` pairs of videos."""
    maker = Maker(world, tools)
    for name, question in QUESTIONS.items():
        scores = np.array([[question.score(side) for side in question.pair(maker, i)] for i in range(pairs)])
        right, wrong = scores.T
        area, low, high = auc_interval(right, wrong) if question.higher else auc_interval(wrong, right)
        yield Answer(
            name=name, area=area, low=low, high=high, right=float(np.median(right)), wrong=float(np.median(wrong))
        )  # fmt: skip
