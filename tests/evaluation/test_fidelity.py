"""The judge on real renderings, whose truth is known; tools/evaluate_miniature.py --real-only measures its error over
many."""

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.data.drawing import generator
from kaleido_jax.data.motions import MOTIONS, draw_path
from kaleido_jax.data.sprites import Pose, place
from kaleido_jax.data.world import World
from kaleido_jax.evaluation import scene
from kaleido_jax.evaluation.cases import CANDIDATES, Case, fidelity_case
from kaleido_jax.evaluation.fidelity import FidelityJudge, shares
from kaleido_jax.evaluation.matching import Artist, Place, search
from kaleido_jax.evaluation.motion import MotionJudge

CASES = 4


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def judge(world: World) -> FidelityJudge:
    return FidelityJudge(world)


@pytest.fixture(scope="module")
def cases(world: World) -> list[Case]:
    return [fidelity_case(world, number) for number in range(1, 1 + CASES)]


def test_cases_are_held_out_and_hard(world: World, cases: list[Case]):
    for case in cases:
        assert len(case.candidates) == CANDIDATES
        assert all(candidate.number % 2 == 1 for candidate in case.candidates)
        subject = case.candidates[case.answer]
        others = [candidate for candidate in case.candidates if candidate is not subject]
        assert sum(other.silhouette is subject.silhouette for other in others) >= 5
        assert sum(world.looks(other).colour == world.looks(subject).colour for other in others) >= 5
        assert len(case.sample.references) == 1


def test_a_case_is_a_function_of_its_number(world: World, cases: list[Case]):
    again = fidelity_case(World(), cases[0].number)
    np.testing.assert_array_equal(again.sample.video, cases[0].sample.video)
    assert again.answer == cases[0].answer


def test_real_renderings_are_judged_right(judge: FidelityJudge, cases: list[Case]):
    found = shares(judge(case.sample.video, case).right for case in cases)
    # 3 of 4 of each: the measured error is a few percent, so these fixed cases leave room for one miss.
    assert all(found[name].right >= CASES - 1 for name in ("identity", "motion", "scene")), {
        name: str(share) for name, share in found.items()
    }


def test_another_subject_is_told_from_the_one_asked_for(judge: FidelityJudge, cases: list[Case]):
    # The video of one case shown to the judge of another: its subject is not there, nor its scene and motion together.
    verdicts = [judge(cases[i].sample.video, cases[i - 1]).right for i in range(2)]
    assert not any(all(verdict.values()) for verdict in verdicts)


def test_a_video_of_another_shape_is_refused(judge: FidelityJudge, cases: list[Case]):
    with pytest.raises(ValueError, match=r"must be uint8 \[17, 96, 96, 3\]"):
        judge(cases[0].sample.video[:5], cases[0])


def test_search_finds_where_a_subject_was_put(world: World):
    subject = world.identity(7)
    canvas = Image.new("RGB", (96, 96), (120, 120, 120))
    still = np.asarray(canvas).copy()
    place(canvas, world.painter_of(subject).sprite(subject, Pose()), 60, 40, 34, 0.0, False)
    artist = Artist(world)
    found = search(np.asarray(canvas), still, artist.templates([subject], angles=[0.0]))[0][0]
    # A pixel of the search is an eighth of the subject, and its sizes are 18 % apart.
    assert (found.x, found.y) == pytest.approx((60 / 96, 40 / 96), abs=34 / 96 / 8)
    assert found.size == pytest.approx(34 / 96, rel=0.18)


@pytest.mark.parametrize("motion", MOTIONS)
def test_exact_and_noisy_paths_are_named(motion: str):
    judge, rng, noise = MotionJudge(17), generator(99, MOTIONS.index(motion)), np.random.default_rng(0)
    right = 0
    for _ in range(10):
        path = draw_path(
            rng, motion, 17, aspect=1.0, lane=(0.0, 1.0), floor=(0.7, 0.97), grounded=True, low=0.34, high=0.52
        )
        dx, dy, ds, da = noise.normal(size=(4, 17)) * [[0.01], [0.01], [0.05], [0.1]]
        track = [
            Place(x=x, y=y, size=size, angle=angle, mirror=False, gain=1.0)
            for x, y, size, angle in zip(path.x + dx, path.y + dy, path.height * np.exp(ds), path.angle + da)
        ]
        right += judge(track) == motion
    assert right >= 9


def test_a_subject_is_taken_out_of_the_background():
    video = np.full((5, 64, 64, 3), 50, np.uint8)
    track = []
    y, x = np.mgrid[:64, :64] + 0.5
    for frame in range(5):  # a red disc that moves, but always hides the middle
        video[frame][(x - 30 - frame) ** 2 + (y - 32) ** 2 < 12**2] = (255, 0, 0)
        track.append(Place(x=(30 + frame) / 64, y=0.5, size=24 / 64, angle=0.0, mirror=False, gain=1.0))
    # Nothing of it is left; 0.01 is 2.5 of 255 levels.
    np.testing.assert_allclose(scene.background(video, track), 50 / 255, atol=0.01)
