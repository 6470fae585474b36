"""Reading videos of strangers for curation: frames with their time stamps, or one of a few reasons why not."""

import json
import os
import select
import stat
import struct
import subprocess
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from kaleido_jax.curation.helper import Helper
from kaleido_jax.media.clips import CODECS
from kaleido_jax.media.images import file_kind

_DEMUXERS = {"MP4": "mov", "Matroska or WebM": "matroska"}
_SERVER = Path(__file__).with_name("_decode_server.py")
THUMBNAIL = 64  # pixels of the longer side of the pictures that shots are found in


class Undecodable(Exception):
    """A file that cannot be used; the message is one of a few short reasons, which are counted."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the decoding of one file or clip may take.

    memory_bytes, cpu_seconds, wall_seconds: of the process. file_bytes, seconds, side, decoded_frames: of the video;
    4096 pixels a side lets 4K in and keeps 8K out.
    """

    memory_bytes: int = 3_000_000_000
    cpu_seconds: int = 120
    wall_seconds: float = 240.0
    file_bytes: int = 8_000_000_000
    seconds: float = 1800.0
    side: int = 4096
    decoded_frames: int = 60_000


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Every frame of a video as a thumbnail.

    frames: uint8 [n, h, w, 3]. times: when each is shown, in seconds, by the file's time stamps. end: when the last one
    ends. height, width: of the video itself.
    """

    frames: np.ndarray
    times: np.ndarray
    end: float
    height: int
    width: int


class Decoder:
    """Decodes in processes of their own, forked from one that this object starts when it is first needed."""

    def __init__(self, limits: Limits = Limits()):
        self._limits = limits
        self._server = Helper(str(_SERVER), bufsize=0)
        self._lock = threading.Lock()

    def scan(self, path: str | os.PathLike[str]) -> Scan:
        """Every frame of the video as a thumbnail with its time; Undecodable with the reason."""
        header, pixels = self._ask(path, {"mode": "scan", "height": THUMBNAIL, "width": THUMBNAIL})
        times = np.asarray(header["times"], np.float64)
        height, width = header["size"]
        return Scan(frames=pixels, times=times, end=float(header["end"]), height=height, width=width)

    def span(
        self,
        path: str | os.PathLike[str],
        begin: float,
        end: float,
        *,
        frames: int,
        fps: float,
        height: int,
        width: int,
        crop: tuple[int, int, int, int] | None = None,
    ) -> UInt8[np.ndarray, "f h w 3"]:
        """The frames shown at begin + k / fps, before `end`, at most `frames`, fitted inside height x width.

        Time stamps decide, so that sources of any rate, a variable one too, come out at `fps`. `crop` is (x0, x1, y0,
        y1) in pixels of the upright video, applied first.
        """
        wanted = {"begin": begin, "end": end, "frames": frames, "fps": fps, "height": height, "width": width}
        return self._ask(path, {"mode": "span", "crop": crop, **wanted})[1]

    def close(self) -> None:
        """Ends the process that jobs are forked from."""
        self._server.close()

    def _ask(self, path: str | os.PathLike[str], job: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
        demuxer = _checked_kind(path, self._limits)
        job = {**job, "path": os.fspath(path), "demuxer": demuxer, "codecs": CODECS, "limits": asdict(self._limits)}
        with self._lock:
            try:
                server = self._server.started()
                server.stdin.write(json.dumps(job).encode() + b"\n")
                server.stdin.flush()
                deadline = time.monotonic() + self._limits.wall_seconds + 30
                lengths = struct.unpack("<QQ", _read(server, 16, deadline))
                header = json.loads(_read(server, lengths[0], deadline))
                content = _read(server, lengths[1], deadline)
            except (OSError, ValueError, EOFError):
                self.close()  # a new one is started for the next file
                raise Undecodable("decoder crashed") from None
        if "refused" in header:
            raise Undecodable(header["refused"])
        return header, np.frombuffer(content, np.uint8).reshape(header["shape"])


def _checked_kind(path: str | os.PathLike[str], limits: Limits) -> str:
    """The demuxer for the file's first bytes; Undecodable for what is not a clip."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would wait for its writer
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Undecodable("not a file")
            head = file.read(32)
    except (OSError, ValueError):
        raise Undecodable("cannot be opened") from None
    if not head:
        raise Undecodable("empty")
    if status.st_size > limits.file_bytes:
        raise Undecodable("file too large")
    demuxer = _DEMUXERS.get(file_kind(head) or "")
    if demuxer is None:
        raise Undecodable("not a video")
    return demuxer


def _read(server: subprocess.Popen, count: int, deadline: float) -> bytes:
    chunks, missing = [], count
    while missing:
        if not select.select([server.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise OSError("the decoder does not answer")
        chunk = os.read(server.stdout.fileno(), min(missing, 1 << 20))
        if not chunk:
            raise EOFError
        chunks.append(chunk)
        missing -= len(chunk)
    return b"".join(chunks)
