"""Reading a clip that a stranger made: MP4, Matroska or WebM, decoded in a process of its own under fixed limits."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from kaleido_jax.errors import InputError, printable
from kaleido_jax.media.images import file_kind, read_bytes
from kaleido_jax.media.references import centre_on_white

MAX_FILE_BYTES = 200_000_000
WALL_SECONDS = 30
LIMITS = {
    "memory_bytes": 2_000_000_000,
    "cpu_seconds": 20,
    "open_files": 64,
    "seconds": 60,
    "side": 4096,
    "decoded_frames": 1000,
}
FRAME_LIMITS = LIMITS | {"memory_bytes": 6_000_000_000, "cpu_seconds": 60, "decoded_bytes": 1_500_000_000}
CODECS = ("h264", "hevc", "vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1")
_DEMUXERS = {"MP4": "mov", "Matroska or WebM": "matroska"}
_WORKER = Path(__file__).with_name("_clip_worker.py")
_WANTED = "an MP4, Matroska or WebM clip"


def is_clip(path: str | os.PathLike[str]) -> bool:
    """Whether the file's first bytes are those of a clip that `read_clip` reads. False for what cannot be opened."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            return file_kind(file.read(32)) in _DEMUXERS
    except (OSError, ValueError):
        return False


def read_clip(
    path: str | os.PathLike[str], *, frames: int, height: int, width: int, frames_per_second: int
) -> UInt8[np.ndarray, "f height width 3"]:
    """The clip's first frames as a reference: sampled at `frames_per_second`, at most `frames` of them, a count 4n + 1.

    Every frame is fitted like a reference picture: inside height x width, aspect kept, on white. A clip that is shorter
    than `frames` gives the largest 4n + 1 that it has.

    Raises:
      InputError: one sentence that names the file; a decoder that crashes, hangs or takes too much memory is one too.
    """
    name = printable(str(path))
    data = read_bytes(path, MAX_FILE_BYTES, _WANTED)
    demuxer = _DEMUXERS.get(file_kind(data[:32]) or "")
    if demuxer is None:
        raise InputError(f"{name}: is not {_WANTED}; convert it first.")
    decoded = _decode(
        data,
        name,
        {
            "demuxer": demuxer,
            "codecs": CODECS,
            "frames": frames,
            "height": height,
            "width": width,
            "fps": frames_per_second,
            "limits": LIMITS,
        },
    )
    whole = len(decoded) - (len(decoded) - 1) % 4
    return np.stack([centre_on_white(frame, height, width) for frame in decoded[:whole]])


def read_video(
    path: str | os.PathLike[str], *, sizes: Sequence[tuple[int, int]], frames: int, frames_per_second: int
) -> UInt8[np.ndarray, "f height width 3"]:
    """The clip's first frames as something to learn from: sampled at `frames_per_second`, at most `frames` of them.

    Every frame is scaled to cover the (height, width) of `sizes` whose aspect is nearest, and cut around its middle.

    Raises:
      InputError: as `read_clip`.
    """
    name = printable(str(path))
    data = read_bytes(path, MAX_FILE_BYTES, _WANTED)
    demuxer = _DEMUXERS.get(file_kind(data[:32]) or "")
    if demuxer is None:
        raise InputError(f"{name}: is not {_WANTED}; convert it first.")
    job = {"demuxer": demuxer, "codecs": CODECS, "frames": frames, "fps": frames_per_second, "limits": LIMITS}
    return _decode(data, name, job | {"sizes": [list(size) for size in sizes]})


def read_frames(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "f h w 3"]:
    """Every frame of a clip as it is, in its own size and whatever its rate: what a measurement looks at.

    Raises:
      InputError: as `read_clip`; also for more frames or pixels than `FRAME_LIMITS` lets in.
    """
    name = printable(str(path))
    data = read_bytes(path, MAX_FILE_BYTES, _WANTED)
    demuxer = _DEMUXERS.get(file_kind(data[:32]) or "")
    if demuxer is None:
        raise InputError(f"{name}: is not {_WANTED}; convert it first.")
    job = {"demuxer": demuxer, "codecs": CODECS, "frames": LIMITS["decoded_frames"], "limits": FRAME_LIMITS}
    return _decode(data, name, job | {"fps": None})


def _decode(data: bytes, name: str, job: Mapping[str, object]) -> UInt8[np.ndarray, "f h w 3"]:
    # -P keeps this folder off the worker's module path; the environment is ours but for what a loader may need.
    command = [sys.executable, "-P", str(_WORKER), json.dumps(job)]
    try:
        result = subprocess.run(
            command, input=data, capture_output=True, timeout=WALL_SECONDS, check=False, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{name}: decoding did not end within {WALL_SECONDS} s; give a shorter or simpler clip."
        ) from None
    if result.returncode != 0:
        reason = f"signal {-result.returncode}" if result.returncode < 0 else f"status {result.returncode}"
        raise InputError(f"{name}: the decoder failed on this clip ({reason}); give a whole, ordinary clip.")
    line, _, pixels = result.stdout.partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        raise InputError(f"{name}: the decoder gave no answer for this clip; give a whole, ordinary clip.") from None
    if "refused" in header:
        raise InputError(f"{name}: the clip {printable(header['refused'])}.")
    shape = (header["frames"], header["height"], header["width"], 3)
    if len(pixels) != int(np.prod(shape)):
        raise InputError(f"{name}: the decoder stopped in the middle of this clip; give a whole, ordinary clip.")
    return np.frombuffer(pixels, np.uint8).reshape(shape)
