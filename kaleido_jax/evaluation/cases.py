"""What a model is asked when its fidelity is measured: one held-out subject and reference, one motion, one scene."""

from dataclasses import dataclass

import numpy as np

from kaleido_jax.data.captions import caption
from kaleido_jax.data.distractors import distractors
from kaleido_jax.data.drawing import generator, pick
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.data.scenes import SCENES
from kaleido_jax.data.sprites import Identity
from kaleido_jax.data.world import Sample, Story, World

CANDIDATES = 16


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question with its answer.

    Attributes:
        number: the case's number.
        sample: the real rendering: video, prompt, and the reference picture that the model gets.
        candidates: the identities to choose from, look-alikes among them.
        answer: which of them the subject is.
        motion, scene: what the prompt asks for.
    """

    number: int
    sample: Sample
    candidates: tuple[Identity, ...]
    answer: int
    motion: str
    scene: str

    @property
    def reference(self) -> np.ndarray:
        """uint8 `[h, w, 3]`."""
        return self.sample.references[0][0]


def fidelity_case(world: World, number: int) -> Case:
    """Case `number` of an endless list: motions take turns, everything else is drawn from the held-out split.

    Of the 15 others, 5 share the subject's dominant colour and 5 its silhouette. The prompt may name colour, texture
    or kind, as every prompt of the world does; the reference has the world's usual styles (cut out, or before
    something else).
    """
    rng = generator(0xF1D, world.seed, number)
    subject = world.identity(2 * int(rng.random() * 2**52) + 1)
    motion, scene = MOTIONS[number % len(MOTIONS)], pick(rng, tuple(SCENES))
    looks = world.looks(subject)
    story = Story(
        seed=int(rng.random() * 2**52),
        split="heldout",
        identities=(subject,),
        motions=(motion,),
        scene=scene,
        scene_seed=2 * int(rng.random() * 2**52) + 1,
        pictures=(1,),
        scene_given=False,
        prompt=caption(rng, (looks,), (motion,), scene, False),
    )
    others = list(distractors(world, subject, number, count=CANDIDATES - 1))
    answer = int(rng.random() * CANDIDATES)
    others.insert(answer, subject)
    return Case(
        number=number,
        sample=world.render(story),
        candidates=tuple(others),
        answer=answer,
        motion=motion,
        scene=scene,
    )
