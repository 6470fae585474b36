"""The MP4 that is written plays everywhere and shows what it should."""

import av
import numpy as np
import pytest

from kaleido_jax.errors import StorageError
from kaleido_jax.media.video import write_mp4


def smooth(frames=5, height=32, width=48):
    """Smooth colours, which 4:2:0 keeps."""
    y, x, t = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), np.linspace(0, 1, frames), indexing="ij")
    video = np.stack([255 * x, 255 * y, 100 + 100 * t], -1)
    return np.moveaxis(video, 2, 0).astype(np.uint8)


def read(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_pixels_survive(tmp_path):
    video = smooth()
    write_mp4(tmp_path / "a.mp4", video, 8)
    error = np.abs(read(tmp_path / "a.mp4").astype(int) - video)
    # Quantisation, and chroma at half the resolution; a wrong colour matrix would be off by 10 on average.
    assert error.mean() < 3 and error.max() < 16


def test_format(tmp_path):
    write_mp4(tmp_path / "a.mp4", smooth(17), 8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8 and stream.frames == 17
        assert stream.codec_context.colorspace == 1  # BT.709, and said so
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # a browser can start before the end has arrived


def test_equal_pixels_give_equal_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, smooth(), 8)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_odd_sizes_are_padded(tmp_path):
    write_mp4(tmp_path / "a.mp4", smooth(1, 33, 47), 8)
    assert read(tmp_path / "a.mp4").shape == (1, 34, 48, 3)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(StorageError):
        write_mp4(tmp_path / "missing" / "a.mp4", smooth(), 8)
