"""The bytes of clips: equal pixels give equal ones, whatever lies on the heap."""

import av
import numpy as np
import pytest

from kaleido_jax.curation.encoding import Encoder
from kaleido_jax.errors import StorageError
from tests.curation.scenery import ball_video


@pytest.fixture(scope="module")
def encoder():
    one = Encoder()
    yield one
    one.close()


def test_equal_pixels_give_equal_bytes(encoder):
    """Of a size that libx264 pads (no multiple of 16), for the first clip of a helper and after others."""
    odd = ball_video(2)[:, :46, :42]
    first = encoder.mp4(odd, 8, 14)
    again = [encoder.mp4(video, 8, 14) for video in (ball_video(0), odd, ball_video(1)[:, :30], odd)]
    assert again[1] == again[3] == first and again[0] != first
    encoder.close()  # as after a kill: a new helper is started
    assert encoder.mp4(odd, 8, 14) == first


def test_the_clip_shows_what_went_in(encoder, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(encoder.mp4(ball_video(0), 8, 14))
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.abs(np.stack(frames).astype(int) - ball_video(0)).mean() < 6  # 4:2:0 and a rate factor of 14


def test_what_the_encoder_cannot_do_is_told(encoder):
    with pytest.raises(StorageError, match="died"):
        encoder.mp4(np.zeros((1, 0, 0, 3), np.uint8), 8, 14)
    assert encoder.mp4(ball_video(0), 8, 14)  # the next clip is
