"""The sheet holds every reference and the first and last frame, and any prompt."""

import numpy as np
import pytest

from kaleido_jax.media.contact_sheet import contact_sheet

RED, GREEN, BLUE, YELLOW = ([220, 20, 20], [20, 200, 20], [20, 20, 220], [220, 220, 20])


def plain(colour, height=32, width=32):
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3))


def sheet(video, references=(), subjects=(), prompt="a red cat"):
    return contact_sheet(video, references, subjects, prompt=prompt, caption="a caption", frames_per_second=8)


def share(picture, colour) -> float:
    return float((np.abs(picture.astype(int) - colour).max(-1) < 3).mean())


def test_references_left_and_frames_right():
    video = np.stack([plain(GREEN), *[plain([90, 90, 90])] * 15, plain(BLUE)])
    picture = sheet(video, [plain(RED), plain(YELLOW)], [0, 1])
    places = {name: np.argwhere((picture == colour).all(-1)).mean(0) for name, colour in
              {"red": RED, "yellow": YELLOW, "first": GREEN, "last": BLUE}.items()}  # fmt: skip
    assert places["red"][1] < places["first"][1] and places["yellow"][1] < places["first"][1]
    assert places["red"][0] < places["yellow"][0]
    assert places["first"][0] < places["last"][0] and places["first"][1] < places["last"][1]


def test_equal_inputs_give_equal_sheets():
    video = np.stack([plain(GREEN)] * 5)
    np.testing.assert_array_equal(sheet(video, [plain(RED)], [0]), sheet(video, [plain(RED)], [0]))


def test_pictures_of_one_subject_share_a_colour():
    video = np.stack([plain(GREEN)] * 5)
    references = [plain(RED), plain(BLUE)]
    assert not np.array_equal(sheet(video, references, [0, 0]), sheet(video, references, [0, 1]))


@pytest.mark.parametrize(
    ("count", "size"), [(0, (32, 32)), (1, (48, 96)), (3, (32, 32)), (5, (128, 64)), (16, (48, 96))]
)
def test_any_number_of_references_and_any_shape(count, size):
    video = np.stack([plain(GREEN, *size)] * 9)
    picture = sheet(video, [plain(RED, *size)] * count, range(count))
    assert share(picture, GREEN) > 0.1
    assert (share(picture, RED) > 0.005) == (count > 0)
    assert max(picture.shape) < 5000


@pytest.mark.parametrize("frames", [1, 4, 5, 81])
def test_any_number_of_frames(frames):
    assert share(sheet(np.stack([plain(GREEN)] * frames)), GREEN) > 0.05


@pytest.mark.parametrize(
    "prompt", ["", "word " * 400, "x" * 2000, "一只红色的猫", "cat 🐈 \u202egnp", "a\u0301" * 50, "W" * 90 + " i" * 90]
)
def test_any_prompt(prompt):
    picture = sheet(np.stack([plain(GREEN)] * 5), prompt=prompt)
    margin = picture[:, -40:]
    assert (margin == margin[0, 0]).all()  # nothing runs over the edge
