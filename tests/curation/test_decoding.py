"""Videos of strangers: frames by their time stamps, or one of a few reasons; a decoder that dies costs one file."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from kaleido_jax.curation.decoding import Decoder, Limits, Undecodable

RATE = 8


def encode(count=12, height=32, width=48, *, times=None, pixel_format="yuv420p", audio=False, container="mp4") -> bytes:
    """Frame i is of one grey, 20 i; `times` in eighths of a second, for a variable rate."""
    buffer, kind = io.BytesIO(), container
    with av.open(buffer, "w", format=kind) as container:
        if audio:
            stream = container.add_stream("aac", rate=8000)
            for number in range(4):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.rate, frame.pts = 8000, 1024 * number
                container.mux(stream.encode(frame))
        else:
            stream = container.add_stream("libx264", rate=RATE, options={"crf": "8"})
            stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
            stream.time_base = Fraction(1, RATE)
            for number in range(count):
                grey = np.full((height, width, 3), 20 * number % 250, np.uint8)
                frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                frame.pts, frame.time_base = number if times is None else times[number], Fraction(1, RATE)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def decoder():
    one = Decoder(Limits(side=64, seconds=20.0, decoded_frames=100, wall_seconds=60.0))
    yield one
    one.close()


def levels(frames: np.ndarray) -> list[int]:
    """Each frame's number, from its grey."""
    return np.rint(frames[:, 4, 4].mean(-1) / 20).astype(int).tolist()


def test_frames_and_times(decoder, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(encode())
    scan = decoder.scan(path)
    assert levels(scan.frames) == list(range(12)) and (scan.height, scan.width) == (32, 48)
    np.testing.assert_allclose(scan.times, np.arange(12) / RATE, atol=1e-3)
    assert scan.end == pytest.approx(12 / RATE, abs=1e-3)
    span = lambda begin, end, fps: levels(decoder.span(path, begin, end, frames=100, fps=fps, height=32, width=48))
    assert span(0.5, 1.0, 8.0) == [4, 5, 6, 7]
    assert span(0.0, 1.5, 4.0) == [0, 2, 4, 6, 8, 10]  # a lower rate skips frames
    assert span(1.0, 1.5, 16.0) == [8, 8, 9, 9, 10, 10, 11, 11]  # a higher one repeats them


def test_a_variable_rate_is_read_by_its_time_stamps(decoder, tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode(4, times=[0, 1, 2, 6]))
    frames = decoder.span(tmp_path / "a.mp4", 0.0, 0.875, frames=100, fps=8.0, height=32, width=48)
    assert levels(frames) == [0, 1, 2, 2, 2, 2, 3]


def test_ten_bits_size_and_crop(decoder, tmp_path):
    (tmp_path / "a.mp4").write_bytes(encode(pixel_format="yuv420p10le"))
    frames = decoder.span(tmp_path / "a.mp4", 0.0, 1.0, frames=5, fps=8.0, height=16, width=48, crop=(8, 48, 0, 32))
    assert frames.shape == (5, 16, 20, 3) and levels(frames) == list(range(5))


def test_matroska_is_read_whole(decoder, tmp_path):
    (tmp_path / "a.mkv").write_bytes(encode(container="matroska"))
    assert levels(decoder.scan(tmp_path / "a.mkv").frames) == list(range(12))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: encode()[:1200], "cut off"),
        (lambda: encode()[:-1], "cut off"),
        (lambda: encode(container="matroska")[:-40], "cut off"),
        (lambda: encode(audio=True), "no pictures"),
        (lambda: b"", "empty"),
        (lambda: b"MZ" + bytes(100), "not a video"),
        (lambda: b"#EXTM3U\nhttp://127.0.0.1/a.ts\n" + bytes(40), "not a video"),
        (lambda: encode()[:40] + bytes(2000), "damaged"),
        (lambda: encode(4, 80, 128), "too large"),
        (lambda: encode(4, times=[0, 80, 160, 240]), "too long"),
        (lambda: encode(110, times=list(range(110))), "too many frames"),
    ],
)
def test_reasons(decoder, tmp_path, content, reason):
    (tmp_path / "a.mp4").write_bytes(content())
    with pytest.raises(Undecodable, match=f"^({reason})$"):
        decoder.scan(tmp_path / "a.mp4")


def test_what_is_no_file(decoder, tmp_path):
    for path, reason in ((tmp_path, "cannot be opened|not a file"), (tmp_path / "none", "cannot be opened")):
        with pytest.raises(Undecodable, match=reason):
            decoder.scan(path)


def test_memory_and_time_are_limited_and_a_dead_decoder_costs_one_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(encode())
    for limits, reason in (
        (Limits(memory_bytes=1_000_000), "too much memory|decoder crashed|damaged"),
        (Limits(wall_seconds=0.0), "takes too long"),
    ):
        decoder = Decoder(limits)
        with pytest.raises(Undecodable, match=reason):
            decoder.scan(path)
        decoder.close()
    decoder = Decoder()
    assert len(decoder.scan(path).frames) == 12
    server = decoder._server.started()
    server.kill()
    server.wait()
    assert len(decoder.scan(path).frames) == 12  # by a new one
    decoder.close()
