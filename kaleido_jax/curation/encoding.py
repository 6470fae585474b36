"""Clips as MP4 whose bytes are a function of their pixels, whatever the process did before.

libx264 reads memory that it has not written: fed with equal frames whose sides are no multiple of 16, its look-ahead
chose otherwise in one of twenty clips, depending on what lay on the heap. So every clip is encoded in a fork of a
process that does nothing else, and glibc is told to fill what it hands out (MALLOC_PERTURB_): all of 120 clips were
then the same. Other C libraries ignore that; what helps there is that `write_mp4` leaves the look-ahead away.
"""

import json
import os
import struct
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from kaleido_jax.curation.helper import Helper
from kaleido_jax.errors import StorageError
from kaleido_jax.media.video import write_mp4

_ANSWER = struct.Struct("<?Q")  # whether it is a clip, or else the reason; how many bytes follow


class Encoder:
    """Encodes in processes of their own, forked from one that this object starts when it is first needed."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        program = f"import sys; sys.path.insert(0, {root!r}); from kaleido_jax.curation.encoding import serve; serve()"
        self._server = Helper("-c", program)
        self._lock = threading.Lock()

    def mp4(self, video: UInt8[np.ndarray, "f h w 3"], frames_per_second: int, quality: int) -> bytes:
        """What `write_mp4` writes: with one version of PyAV and one processor, equal pixels give equal bytes.

        Raises:
          StorageError: the encoder cannot do it, or died.
        """
        job = {"shape": video.shape, "frames_per_second": frames_per_second, "quality": quality}
        with self._lock:
            try:
                server = self._server.started()
                server.stdin.write(json.dumps(job).encode() + b"\n")
                server.stdin.write(np.ascontiguousarray(video).data)
                server.stdin.flush()
                good, length = _ANSWER.unpack(_exactly(server.stdout, _ANSWER.size))
                content = _exactly(server.stdout, length)
            except (OSError, EOFError) as error:
                self.close()
                raise StorageError(f"the encoder of clips died ({type(error).__name__}); run again.") from None
        if not good:
            raise StorageError(content.decode())
        return content

    def close(self) -> None:
        """Ends the process that jobs are forked from."""
        self._server.close()


@cache
def encoder() -> Encoder:
    """One encoder a process."""
    return Encoder()


def serve() -> None:
    """The helper's program: every job on standard input is done by a fork of this process, the answer written out."""
    import av  # noqa: F401  # before the forks, so that they need not load it

    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        pixels = _exactly(sys.stdin.buffer, int(np.prod(job["shape"])))
        with tempfile.TemporaryDirectory() as folder:
            good, content = _forked(job, pixels, Path(folder))
        sys.stdout.buffer.write(_ANSWER.pack(good, len(content)) + content)
        sys.stdout.buffer.flush()


def _forked(job: dict, pixels: bytes, folder: Path) -> tuple[bool, bytes]:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            video = np.frombuffer(pixels, np.uint8).reshape(job["shape"])
            write_mp4(folder / "video.mp4", video, job["frames_per_second"], job["quality"])
            status = 0
        except StorageError as error:
            (folder / "reason").write_text(str(error))
        finally:
            os._exit(status)
    if not os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        return True, (folder / "video.mp4").read_bytes()
    reason = folder / "reason"
    return False, reason.read_bytes() if reason.is_file() else b"the encoder of clips died; run again."


def _exactly(pipe, count: int) -> bytes:
    content = pipe.read(count)
    if len(content) < count:
        raise EOFError
    return content
