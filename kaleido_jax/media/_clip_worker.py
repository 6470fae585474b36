"""The program that decodes a clip in a process of its own, run by `kaleido_jax.media.clips` and by nothing else.

A decoder fed with hostile bytes may crash, hang, or eat all memory; here it takes only itself down. It imports nothing
of this package. The clip comes on standard input; the answer goes to standard output: one line of JSON, then the frames
as raw RGB bytes, already scaled down and few, so that the parent's memory is bounded whatever the clip is.
"""

import contextlib
import io
import json
import math
import sys


class Refused(Exception):
    """The clip cannot be used; the message is for the user."""


def limit_resources(limits: dict) -> None:
    """Bounds memory, processor time and open files of this process, where the platform knows how."""
    with contextlib.suppress(ImportError):
        import resource

        for name, value in (
            ("RLIMIT_AS", limits["memory_bytes"]),
            ("RLIMIT_CPU", limits["cpu_seconds"]),
            ("RLIMIT_NOFILE", limits["open_files"]),
            ("RLIMIT_CORE", 0),
        ):
            with contextlib.suppress(ValueError, OSError):  # an administrator's lower limit, or a platform without it
                resource.setrlimit(getattr(resource, name), (value, value))


def decode(data: bytes, job: dict):
    """Frames of `data` at the moments k / fps, at most `frames` of them, fitted inside height x width; arrays.

    A job whose fps is None takes every frame in its own size.
    """
    import av

    limits = job["limits"]
    # The demuxer is named, so that no playlist or subtitle format is ever tried; the bytes come from memory and no
    # protocol is allowed, so that the file cannot make the library open another one.
    with av.open(
        io.BytesIO(data), mode="r", format=job["demuxer"], options={"protocol_whitelist": "none"}
    ) as container:
        if not container.streams.video:
            raise Refused("holds no pictures, only sound or text; give a clip with a video track")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.name not in job["codecs"]:
            raise Refused(
                f"is coded as {context.name}, and clips are read as H.264, H.265, VP9 or AV1; convert it first"
            )
        if max(context.width, context.height) > limits["side"]:
            raise Refused(
                f"has {context.width} x {context.height} pixels, and at most {limits['side']} a side are read; "
                "give a smaller version"
            )
        seconds = float(container.duration or 0) / av.time_base
        if seconds > limits["seconds"]:
            raise Refused(f"lasts {seconds:.0f} s, and at most {limits['seconds']} s are read; cut it first")
        stream.thread_type = "NONE"
        if job["fps"] is None:
            return every(container, stream, job)
        frames, shown, start, time = [], None, None, 0.0
        # The moment k / fps shows the last frame that has begun by then: a slow clip repeats frames, a fast one skips
        # them. A thousandth of a second lets rounded time stamps pass as equal.
        missing = lambda time: len(frames) < job["frames"] and len(frames) / job["fps"] < time - start - 1e-3
        for number, frame in enumerate(container.decode(stream)):
            if number >= limits["decoded_frames"]:
                raise Refused(
                    f"has over {limits['decoded_frames']} frames before the {job['frames']} wanted at {job['fps']} "
                    "a second are found; give a shorter or slower clip"
                )
            if max(frame.width, frame.height) > limits["side"]:
                raise Refused(f"changes its size to {frame.width} x {frame.height}; give a smaller version")
            time = frame.time if frame.time is not None else number / float(stream.average_rate or job["fps"])
            start = time if start is None else start
            if missing(time):
                picture = fitted(shown, job)
                while missing(time):
                    frames.append(picture)
            if len(frames) == job["frames"]:
                break
            shown = frame
        if shown is not None:
            picture, end = fitted(shown, job), time + 1.0 / float(stream.average_rate or job["fps"])
            while missing(end):
                frames.append(picture)
    if not frames:
        raise Refused("holds no frame that can be decoded; give a whole clip")
    return frames


def every(container, stream, job: dict):
    """All frames as they are, at most as many and as many bytes of them as the limits allow."""
    limits, frames, taken = job["limits"], [], 0
    for frame in container.decode(stream):
        if max(frame.width, frame.height) > limits["side"]:
            raise Refused(f"changes its size to {frame.width} x {frame.height}; give a smaller version")
        if len(frames) >= limits["decoded_frames"]:
            raise Refused(f"has over {limits['decoded_frames']} frames; give a shorter clip")
        frames.append(fitted(frame, job))
        taken += frames[-1].nbytes
        if taken > limits["decoded_bytes"]:
            raise Refused(f"has over {limits['decoded_bytes'] / 1e6:.0f} MB of pixels; give a shorter or smaller clip")
    if not frames:
        raise Refused("holds no frame that can be decoded; give a whole clip")
    return frames


def fitted(frame, job: dict):
    """The frame as RGB array [h, w, 3], turned upright by the container's display matrix.

    Inside the wanted box, in the size of `kaleido_jax.media.references.fitted_size`; or, for a job with `sizes`,
    covering the nearest of them, what sticks out cut off.
    """
    import numpy as np
    from PIL import Image

    rotation = round(getattr(frame, "rotation", 0) / 90) % 4
    pixels = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), rotation))
    if job["fps"] is None:
        return pixels
    picture = Image.fromarray(pixels)
    ratio = picture.width / picture.height
    if "sizes" in job:
        height, width = nearest(job["sizes"], picture.height, picture.width)
        scale = max(height / picture.height, width / picture.width)
        wide, high = width / scale, height / scale
        left, top = (picture.width - wide) / 2, (picture.height - high) / 2
        box = (max(left, 0.0), max(top, 0.0), min(left + wide, picture.width), min(top + high, picture.height))
        return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))
    if ratio > job["width"] / job["height"]:
        size = job["width"], max(1, int(job["width"] / ratio))
    else:
        size = max(1, int(job["height"] * ratio)), job["height"]
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def nearest(sizes: list, height: int, width: int):
    """The (height, width) whose aspect differs least, by ratio, from that of height x width.

    Of several of one aspect, the largest that is not larger than the picture, or the smallest of all.
    """
    distance = lambda size: round(abs(math.log(size[1] / size[0]) - math.log(width / height)), 6)
    least = min(map(distance, sizes))
    alike = sorted((size for size in sizes if distance(size) == least), key=math.prod)
    smaller = [size for size in alike if size[0] <= height and size[1] <= width]
    return smaller[-1] if smaller else alike[0]


def main() -> None:
    job = json.loads(sys.argv[1])
    limit_resources(job["limits"])
    output = sys.stdout.buffer
    try:
        frames = decode(sys.stdin.buffer.read(), job)
    except Refused as refusal:
        output.write(json.dumps({"refused": str(refusal)}).encode() + b"\n")
        return
    except MemoryError:
        output.write(
            json.dumps({"refused": "needs too much memory to decode; give a smaller version"}).encode() + b"\n"
        )
        return
    except Exception as error:
        reason = f"is damaged or cut off ({type(error).__name__}); give a whole MP4, Matroska or WebM clip"
        output.write(json.dumps({"refused": reason}).encode() + b"\n")
        return
    height, width = frames[0].shape[:2]
    if any(frame.shape != frames[0].shape for frame in frames):
        output.write(json.dumps({"refused": "changes its size; give one of a single size"}).encode() + b"\n")
        return
    output.write(json.dumps({"frames": len(frames), "height": height, "width": width}).encode() + b"\n")
    for frame in frames:
        output.write(frame.tobytes())


if __name__ == "__main__":
    main()
