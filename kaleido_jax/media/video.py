"""Writing a video as H.264 in MP4, which every browser and player shows."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from kaleido_jax.errors import StorageError
from kaleido_jax.media.storage import storage_error


def write_mp4(path: Path, video: UInt8[np.ndarray, "f h w 3"], frames_per_second: int, quality: int = 14) -> None:
    """Writes `video` to `path` (under this very name; see `storage.written_whole` for a whole-or-nothing file).

    H.264 through PyAV's libx264, 4:2:0, BT.709, one thread and no look ahead, with which the first clip of a process
    came out otherwise than later ones: equal pixels give equal bytes with one version of PyAV.
    `quality` is x264's constant rate factor, lower is better. Odd sides are padded by repeating the last row or column,
    because 4:2:0 needs even ones.

    Raises:
      StorageError: the file cannot be written, or PyAV was built without H.264.
    """
    import av

    if "libx264" not in av.codecs_available:
        raise StorageError("This PyAV has no H.264 encoder (libx264); install PyAV from its wheel: pip install av.")
    odd = [(0, size % 2) for size in video.shape[1:3]]
    if any(after for _, after in odd):
        video = np.pad(video, [(0, 0), *odd, (0, 0)], mode="edge")
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream(
                "libx264",
                rate=frames_per_second,
                options={"crf": str(quality), "preset": "medium", "tune": "zerolatency"},
            )
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.thread_count = 1
            context = stream.codec_context
            context.color_range, context.colorspace = 1, 1  # limited range, BT.709
            context.color_primaries, context.color_trc = 1, 1
            for picture in video:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                for packet in stream.encode(frame):
                    container.mux(packet)
            for packet in stream.encode(None):
                container.mux(packet)
    except OSError as error:
        raise storage_error(path, error) from error
