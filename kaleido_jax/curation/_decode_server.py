"""The program that decodes clips for `kaleido_jax.curation.decoding`: one forked process a job, under limits.

A decoder fed with hostile bytes may crash, hang, or eat all memory; here it takes only its own process down. Starting
Python and its libraries costs more than decoding a short clip, so they are started once and every job is a fork of
them. Nothing of this package is imported. Jobs come on standard input, one line of JSON each; every answer on standard
output is the lengths of what follows (two uint64, little-endian), JSON, and raw RGB frames.
"""

import contextlib
import json
import os
import resource
import select
import signal
import struct
import sys
import time

import av
import numpy as np
from PIL import Image


class Refused(Exception):
    """The clip cannot be used; the message says why."""


def limit_resources(limits: dict) -> None:
    """Bounds memory, processor time and open files of this process."""
    for name, value in (
        ("RLIMIT_AS", limits["memory_bytes"]),
        ("RLIMIT_CPU", limits["cpu_seconds"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),  # a decoder has nothing to write
    ):
        with contextlib.suppress(ValueError, OSError):  # an administrator's lower limit
            resource.setrlimit(getattr(resource, name), (value, value))


@contextlib.contextmanager
def opened(job: dict):
    """The container and its first picture track, within the limits of the job."""
    limits = job["limits"]
    # The demuxer is named and no protocol is allowed, so that the file cannot make the library open another one.
    with open(job["path"], "rb") as file:
        check_whole(file, job["demuxer"])
        with av.open(file, mode="r", format=job["demuxer"], options={"protocol_whitelist": "none"}) as container:
            if not container.streams.video:
                raise Refused("no pictures")
            stream = container.streams.video[0]
            context = stream.codec_context
            if context.name not in job["codecs"]:
                raise Refused("unknown codec")
            if max(context.width, context.height) > limits["side"]:
                raise Refused("too large")
            if float(container.duration or 0) / av.time_base > limits["seconds"]:
                raise Refused("too long")
            stream.thread_type = "NONE"
            yield container, stream


def check_whole(file, demuxer: str) -> None:
    """Refused for a file that ends before it says so itself, by the sizes of its outermost parts.

    The demuxers read what is there and then behave as at the end of a whole file.
    """
    size = os.fstat(file.fileno()).st_size
    position = 0
    while position < size:
        file.seek(position)
        length = (mp4_box if demuxer == "mov" else ebml_element)(file.read(16))
        if length is None:  # not told: up to the end
            break
        position += length
    file.seek(0)
    if position > size:
        raise Refused("cut off")


def mp4_box(head: bytes) -> int | None:
    """Bytes of the box that begins so (ISO/IEC 14496-12, 4.2); None where it goes on to the end, or is none."""
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    return length if length >= 8 and head[4:8].isalnum() else None


def ebml_element(head: bytes) -> int | None:
    """Bytes of the element that begins so (RFC 8794, 4); None where it goes on to the end, or is none."""
    name = 9 - head[0].bit_length()
    if name > 4 or len(head) <= name or not head[name]:
        return None
    width = 9 - head[name].bit_length()
    length = int.from_bytes(head[name : name + width], "big") & ~(1 << (7 * width))
    unknown = length == (1 << (7 * width)) - 1
    return None if unknown else name + width + length


def timed_frames(container, stream, job: dict):
    """(seconds, frame) of every frame; time stamps where the file has them, else the number over the rate."""
    rate = float(stream.average_rate or 25)
    for number, frame in enumerate(container.decode(stream)):
        if number >= job["limits"]["decoded_frames"]:
            raise Refused("too many frames")
        if max(frame.width, frame.height) > job["limits"]["side"]:
            raise Refused("too large")
        yield (frame.time if frame.time is not None else number / rate), frame


def upright(frame, crop):
    """The frame as a picture, turned by the container's display matrix, then cut to `crop` (x0, x1, y0, y1)."""
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90) % 4)
    if crop:
        x0, x1, y0, y1 = crop
        pixels = pixels[y0:y1, x0:x1]
        if not pixels.size:
            raise Refused("crop outside")
    return Image.fromarray(np.ascontiguousarray(pixels))


def fitted(frame, job: dict, how) -> np.ndarray:
    """The frame inside height x width, aspect kept, never enlarged."""
    picture = upright(frame, job.get("crop"))
    scale = min(job["height"] / picture.height, job["width"] / picture.width, 1.0)
    if scale < 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), how)
    return np.asarray(picture)


def scan(job: dict):
    """Every frame as a thumbnail, and when it is shown: what shots are found in."""
    frames, times, time = [], [], 0.0
    with opened(job) as (container, stream):
        for time, frame in timed_frames(container, stream, job):
            times.append(time)
            frames.append(fitted(frame, job, Image.Resampling.BOX))
        size = (stream.codec_context.height, stream.codec_context.width)
        end = time + 1 / float(stream.average_rate or 25)
    return frames, {"times": times, "end": end, "size": size}


def span(job: dict):
    """The frames shown at begin + k / fps, before `end`, at most `frames` of them.

    The moment k / fps shows the last frame that has begun by then: a slow clip repeats frames, a fast one skips them. A
    thousandth of a second lets rounded time stamps pass as equal.
    """
    begin, last = job["begin"], job["end"]
    frames, shown, time = [], None, 0.0
    missing = lambda time: len(frames) < job["frames"] and len(frames) / job["fps"] < min(time, last) - begin - 1e-3
    with opened(job) as (container, stream):
        if begin > 0.5:
            container.seek(int((begin - 0.5) * av.time_base))  # to the key frame before
        for time, frame in timed_frames(container, stream, job):
            if shown is not None and missing(time):
                picture = fitted(shown, job, Image.Resampling.LANCZOS)
                while missing(time):
                    frames.append(picture)
            if len(frames) == job["frames"] or time >= last:
                break
            shown = frame
        if shown is not None and missing(end := time + 1 / float(stream.average_rate or 25)):
            picture = fitted(shown, job, Image.Resampling.LANCZOS)
            while missing(end):
                frames.append(picture)
    return frames, {}


def answer(job: dict) -> bytes:
    """The whole answer to one job, in the process that was forked for it."""
    limit_resources(job["limits"])
    try:
        frames, found = {"scan": scan, "span": span}[job["mode"]](job)
        if not frames:
            raise Refused("no frame")
        if any(frame.shape != frames[0].shape for frame in frames):
            raise Refused("changes its size")
    except Refused as refusal:
        return json.dumps({"refused": str(refusal), "bytes": 0}).encode() + b"\n"
    except MemoryError:
        return json.dumps({"refused": "too much memory", "bytes": 0}).encode() + b"\n"
    except Exception as error:
        return json.dumps({"refused": "damaged", "detail": type(error).__name__, "bytes": 0}).encode() + b"\n"
    pixels = np.stack(frames)
    return json.dumps({"shape": pixels.shape, **found, "bytes": pixels.nbytes}).encode() + b"\n" + pixels.tobytes()


def forked(job: dict) -> bytes:
    """The answer of a process forked for the job, or the reason why there is none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with contextlib.suppress(BaseException):
            content = memoryview(answer(job))
            while content:
                content = content[os.write(writing, content) :]
        os._exit(0)
    os.close(writing)
    chunks, deadline, late = [], time.monotonic() + job["limits"]["wall_seconds"], False
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            late = True
            os.kill(child, signal.SIGKILL)
            break
        chunk = os.read(reading, 1 << 20)
        if not chunk:
            break
        chunks.append(chunk)
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    content = b"".join(chunks)
    if late or status == -signal.SIGXCPU:
        return b'{"refused": "takes too long", "bytes": 0}\n'
    line, _, pixels = content.partition(b"\n")
    if status or not line or json.loads(line)["bytes"] != len(pixels):
        return json.dumps({"refused": "decoder crashed", "detail": str(status), "bytes": 0}).encode() + b"\n"
    return content


def main() -> None:
    for line in sys.stdin.buffer:
        header, _, pixels = forked(json.loads(line)).partition(b"\n")
        for part in (struct.pack("<QQ", len(header), len(pixels)), header, pixels):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
