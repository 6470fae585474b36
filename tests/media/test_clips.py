"""Clips of strangers, decoded in a process of their own: frames as they were, or one clear sentence."""

import contextlib
import io
import json
import struct
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from kaleido_jax.errors import InputError
from kaleido_jax.media import clips
from kaleido_jax.media.clips import is_clip, read_clip, read_frames


def encode(
    frames: np.ndarray,
    *,
    format: str = "mp4",
    codec: str = "libx264",
    rate: int = 8,
    times: list[int] | None = None,
    pixel_format: str = "yuv420p",
) -> bytes:
    """A clip made with PyAV; `times` are time stamps in frames, for a variable rate."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.time_base = Fraction(1, rate)
        if codec == "libx264":
            stream.options = {"crf": "8"}
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def greys(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame i is of one grey, 10 i."""
    return np.broadcast_to(
        (10 * np.arange(count) % 250).astype(np.uint8)[:, None, None, None], (count, height, width, 3)
    )


def read(tmp_path, content: bytes, name="clip.mp4", frames=17, height=32, width=48, rate=8):
    path = tmp_path / name
    path.write_bytes(content)
    return read_clip(path, frames=frames, height=height, width=width, frames_per_second=rate)


def refused(tmp_path, content: bytes, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content, **options)
    message = str(caught.value)
    assert message.startswith(str(tmp_path)) and message.endswith(".") and message.isprintable() and len(message) < 400
    return message


def levels(video: np.ndarray) -> list[int]:
    """The grey of every frame's middle as the number of the frame that it came from."""
    return np.rint(video[:, 16, 24].mean(-1) / 10).astype(int).tolist()


@pytest.mark.parametrize(("format", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9")])
def test_frames_in_order(tmp_path, format, codec):
    video = read(tmp_path, encode(greys(9), format=format, codec=codec))
    assert video.shape == (9, 32, 48, 3) and levels(video) == list(range(9))


def test_length_is_4n_plus_1_and_at_most_what_is_wanted(tmp_path):
    content = encode(greys(12))
    assert len(read(tmp_path, content)) == 9
    assert len(read(tmp_path, content, frames=5)) == 5
    assert len(read(tmp_path, encode(greys(1)))) == 1


def test_other_rates_are_sampled_by_time(tmp_path):
    assert levels(read(tmp_path, encode(greys(20), rate=16), rate=8, frames=9)) == list(range(0, 18, 2))
    assert levels(read(tmp_path, encode(greys(5), rate=4), rate=8, frames=9)) == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_variable_rate_follows_the_time_stamps(tmp_path):
    content = encode(greys(5), times=[0, 1, 2, 6, 8])
    assert levels(read(tmp_path, content, frames=9)) == [0, 1, 2, 2, 2, 2, 3, 3, 4]


def test_frames_are_fitted_on_white(tmp_path):
    video = read(tmp_path, encode(greys(1, height=32, width=32)), height=40, width=80)
    assert video.shape == (1, 40, 80, 3)
    assert (video[:, :, :20] == 255).all() and (video[:, :, 60:] == 255).all() and (video[:, :, 20:60] < 30).all()


def test_a_clip_filmed_upright_is_turned(tmp_path):
    frames = greys(1, 32, 48).copy()
    frames[:, :, :24] = 200  # bright on the left
    content = bytearray(encode(frames))
    # The display matrix of a phone held upright: a quarter turn clockwise. In the version 0 track header it follows
    # 36 bytes after the box's type and version (ISO 14496-12, 8.3.2).
    start = content.index(b"tkhd") + 4 + 4 + 36
    assert struct.unpack(">9i", content[start : start + 36])[:2] == (65536, 0)
    content[start : start + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 32 << 16, 0, 1 << 30)
    video = read(tmp_path, bytes(content), height=48, width=32)
    assert video[0, :20].mean() > 190 and video[0, 28:].mean() < 10  # what was on the left is above


def test_is_clip(tmp_path):
    for name, content, expected in [
        ("a", encode(greys(1)), True),
        ("b", encode(greys(1), format="webm", codec="libvpx-vp9"), True),
        ("c.mp4", b"\x89PNG\r\n\x1a\n" + bytes(40), False),
        ("d.mp4", b"", False),
    ]:
        (tmp_path / name).write_bytes(content)
        assert is_clip(tmp_path / name) is expected
    assert not is_clip(tmp_path / "missing") and not is_clip(tmp_path) and not is_clip("a\0b")


# What is refused


def test_cut_off_clips(tmp_path):
    whole = encode(np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8))
    for cut in np.linspace(8, len(whole) - 200, 12).astype(int):
        refused(tmp_path, whole[:cut])


def test_damaged_clips_give_frames_or_an_input_error(tmp_path):
    random = np.random.default_rng(1)
    whole = np.frombuffer(encode(greys(5)), np.uint8)
    for _ in range(12):
        damaged = whole.copy()
        places = random.integers(12, len(whole), 8)
        damaged[places] = random.integers(0, 256, 8)
        with contextlib.suppress(InputError):
            assert read(tmp_path, damaged.tobytes()).shape[1:] == (32, 48, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.mp4\n",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"",
    ],
)
def test_playlists_subtitles_and_others(tmp_path, content):
    assert "MP4, Matroska or WebM" in refused(tmp_path, content)


def test_playlist_with_the_first_bytes_of_a_clip(tmp_path):
    # The demuxer is chosen by the first bytes and no other is tried.
    refused(tmp_path, b"\0\0\0\x10ftypisom" + b"\nffconcat version 1.0\nfile /etc/hostname\n")


def test_sound_only(tmp_path):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "no pictures" in refused(tmp_path, buffer.getvalue())


def test_other_codecs(tmp_path):
    content = encode(greys(2), format="matroska", codec="mjpeg", pixel_format="yuvj420p")
    assert "coded as mjpeg" in refused(tmp_path, content)


def test_too_large_too_long_too_many(tmp_path):
    assert "at most 4096" in refused(tmp_path, encode(greys(1, 16, 4112)))
    assert "at most 60 s" in refused(tmp_path, encode(greys(62, 16, 16), rate=1))
    assert "over 1000 frames" in refused(tmp_path, encode(greys(1100, 16, 16), rate=1000))


def test_file_of_too_many_bytes(tmp_path):
    path = tmp_path / "large.mp4"
    with open(path, "wb") as file:
        file.write(b"\0\0\0\x18ftypisom")
        file.truncate(clips.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match="at most 200 MB"):
        read_clip(path, frames=5, height=32, width=32, frames_per_second=8)


# What the process around the decoder is for. The real worker is replaced by one that misbehaves.


def misbehaving(tmp_path, monkeypatch, program: str) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(f"import json, os, signal, sys, time\n{program}\n")
    monkeypatch.setattr(clips, "_WORKER", worker)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("sys.exit(3)", "status 3"),
        ("print('{')", "no answer"),
        ("print(json.dumps({'frames': 9, 'height': 32, 'width': 48}))", "stopped in the middle"),
        ("print(json.dumps({'refused': 'is\\x1b[31m bad'}))", "bad"),
    ],
)
def test_a_crash_of_the_decoder_is_an_input_error(tmp_path, monkeypatch, program, message):
    misbehaving(tmp_path, monkeypatch, program)
    assert message in refused(tmp_path, encode(greys(1)))


def test_a_decoder_that_hangs_is_ended(tmp_path, monkeypatch):
    misbehaving(tmp_path, monkeypatch, "time.sleep(60)")
    monkeypatch.setattr(clips, "WALL_SECONDS", 0.5)
    assert "did not end within" in refused(tmp_path, encode(greys(1)))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce RLIMIT_AS")
def test_a_decoder_that_takes_too_much_memory_is_refused(tmp_path, monkeypatch):
    content = encode(greys(2, 2160, 4096))
    assert len(read(tmp_path, content, frames=1)) == 1
    monkeypatch.setattr(clips, "LIMITS", clips.LIMITS | {"memory_bytes": 330_000_000})
    refused(tmp_path, content)


def test_the_worker_imports_nothing_of_this_package():
    # It starts in a fraction of a second, and what it can reach is small.
    source = clips._WORKER.read_text()
    assert "kaleido_jax." not in source.replace("`kaleido_jax.media", "")
    assert json.loads(json.dumps(clips.LIMITS)) == clips.LIMITS


def test_every_frame_is_read_in_its_own_size(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(greys(7, 48, 64), rate=8, times=[0, 1, 4, 5, 6, 9, 10]))
    frames = read_frames(path)
    assert frames.shape == (7, 48, 64, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), 10 * np.arange(7), atol=2)  # what H.264 loses
    monkeypatch.setattr(clips, "FRAME_LIMITS", clips.FRAME_LIMITS | {"decoded_bytes": 10_000})
    with pytest.raises(InputError, match="has over 0 MB of pixels; give a shorter or smaller clip"):
        read_frames(path)
