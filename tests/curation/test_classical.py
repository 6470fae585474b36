"""Detectors without weights, on balls whose masks are known. They need OpenCV (the extra `curation`)."""

import numpy as np
import pytest

from kaleido_jax.curation import pictures
from kaleido_jax.curation.models.classical import Cutter, FrontalFaces, MovingSubjects, Smear, Turn, grabcut
from tests.curation.scenery import ball_video, colourful

pytest.importorskip("cv2")
KEYS = (0, 4, 8)


def rolling(number: int) -> np.ndarray:
    """A ball that covers no place for more than half of the time."""
    return ball_video(number, radius=6, step=4)


def cut(frames: np.ndarray) -> np.ndarray:
    found = MovingSubjects().detect(frames, KEYS, ["ball"])
    return Cutter().segment(frames, KEYS, found)[0]


@pytest.mark.parametrize("number", range(3))
def test_what_moves_is_found_and_cut_out(number):
    frames = rolling(number)
    for mask, key in zip(cut(frames), KEYS):
        assert pictures.mask_overlap(mask, colourful(frames[key])) > 0.85


def test_what_stands_still_is_found_with_a_low_score():
    frames = np.repeat(rolling(0)[4:5], 9, 0)
    (found,) = MovingSubjects().detect(frames, KEYS, ["ball"])
    assert set(found.scores) == {0.2}
    assert pictures.mask_overlap(Cutter().segment(frames, KEYS, [found])[0, 0], colourful(frames[0])) > 0.7


def test_in_doubt_nothing_is_named():
    assert MovingSubjects().detect(rolling(0), KEYS, ["ball", "dog"]) == [None, None]
    assert MovingSubjects().detect(rolling(0), KEYS, ["ball", "ball"]) == [None, None]  # there is one
    both = np.concatenate([rolling(0), rolling(1)], 2)
    assert MovingSubjects().detect(both, KEYS, ["ball"]) == [None]  # there are two
    found = MovingSubjects().detect(both, KEYS, ["ball", "ball"])
    assert found[0].boxes[0][2] < 48 < found[1].boxes[0][0]


def test_shadows_are_not_the_subject():
    frames = rolling(0)
    for frame in range(9):
        shadow = np.zeros((48, 48), bool)
        shadow[36:42, 6 + 4 * frame : 20 + 4 * frame] = True
        frames[frame][shadow] = (0.7 * frames[frame][shadow]).astype(np.uint8)
    assert pictures.mask_overlap(cut(frames)[1], colourful(frames[4])) > 0.8


def test_holes_are_filled_and_cut_outs_turned():
    frames = rolling(0)
    ball = colourful(frames[4])
    painted = Smear().paint(frames[4], pictures.grown(ball, 2))
    assert not colourful(painted).any()
    picture, mask = Turn().vary(frames[4], ball, "ball", "seed")
    again = Turn().vary(frames[4], ball, "ball", "seed")
    assert np.array_equal(picture, again[0]) and np.array_equal(mask, again[1])
    assert picture.shape[:2] == mask.shape and 0.7 < mask.sum() / ball.sum() < 1.4
    assert colourful(picture)[mask].mean() > 0.9
    other = Turn().vary(frames[4], ball, "ball", "another seed")
    assert other[0].shape != picture.shape or not np.array_equal(other[0], picture)


def test_hints_without_two_sides_come_back():
    hints = np.zeros((8, 8), np.uint8)
    assert not grabcut(np.zeros((8, 8, 3), np.uint8), hints, 1).any()


def test_a_frontal_face_is_found_and_no_other_thing():
    data = pytest.importorskip("skimage.data")
    astronaut, cat = data.astronaut(), data.chelsea()
    faces, none, tiny = FrontalFaces().load().find([astronaut, cat, astronaut[:8, :8]])
    assert len(faces) == 1 and none == tiny == []
    x0, y0, x1, y1 = faces[0].box
    # Her eyes and mouth, read off the photograph of 512 x 512.
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in ((203, 115), (245, 115), (225, 165)))
    assert x1 - x0 < 200 and faces[0].score == 1.0
    assert FrontalFaces().load().find([data.coffee()]) == [[]]
