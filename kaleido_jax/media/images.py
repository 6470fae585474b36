"""Reading a picture that a stranger made: PNG, JPEG or WebP, recognised by content, under fixed limits."""

import io
import os
import stat
import struct
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from kaleido_jax.errors import InputError, printable

MAX_FILE_BYTES = 20_000_000
MAX_PIXELS = 25_000_000
MAX_SIDE = 8192
FORMATS = ("PNG", "JPEG", "WEBP")

# (offset, magic bytes, what the file is), to say what was found instead of a picture. Checked in this order.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WebP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyp", "MP4"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML or SVG"),
    (0, b"<!DOCTYPE", "HTML"),
    (0, b"<html", "HTML"),
    (0, b"8BPS", "Photoshop"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"#EXTM3U", "M3U playlist"),
    (0, b"ffconcat", "ffconcat playlist"),
)


def file_kind(head: bytes) -> str | None:
    """What a file that begins with `head` (at least 16 bytes, if it has them) is, or None if that is not known."""
    for offset, magic, kind in _SIGNATURES:
        if head[offset : offset + len(magic)].lower() == magic.lower():
            return kind
    return None


def read_bytes(path: str | os.PathLike[str], limit: int, what: str) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
      InputError: the file is missing, unreadable, a folder or a device, empty, or too large; `what` is what is wanted.
    """
    shown = printable(str(path))
    if "\0" in str(path):
        raise InputError(f"{shown}: a file name cannot hold a NUL character.")
    try:
        # Non-blocking, or opening a named pipe would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise InputError(f"{shown}: there is no such file; give the path of {what}.") from None
    except PermissionError:
        raise InputError(f"{shown}: no permission to read this file; give {what} that you may read.") from None
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid file name"
        raise InputError(f"{shown}: cannot be opened ({reason}); give the path of {what}.") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise InputError(f"{shown}: is {kind}; give the path of {what}.")
    with open(descriptor, "rb") as file:
        if status.st_size == 0:
            raise InputError(f"{shown}: the file is empty (0 bytes); give {what}.")
        if status.st_size > limit:
            raise InputError(
                f"{shown}: has {status.st_size / 1e6:.1f} MB, and at most {limit / 1e6:.0f} MB are read; "
                f"give a smaller version of {what}."
            )
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{shown}: cannot be read ({error.strerror}); give {what}.") from None
    if len(data) > limit:
        raise InputError(f"{shown}: grew beyond {limit / 1e6:.0f} MB while it was read; give {what}.")
    return data


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """One picture as RGB, upright (EXIF rotation applied), with transparency shown on white.

    Palettes, greys, CMYK and 16 bits per channel become 8-bit RGB; colour profiles are not applied.

    Raises:
      InputError: with one sentence that names the file and what would be right.
    """
    return decode_image(read_bytes(path, MAX_FILE_BYTES, "a PNG, JPEG or WebP picture"), name=str(path))


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Like `read_image`, of a file's content; `name` is what errors call it."""
    name = printable(name)
    kind = file_kind(data[:32])
    if kind is not None and kind.upper() not in FORMATS:
        raise InputError(f"{name}: is a {kind} file, and pictures are read as PNG, JPEG or WebP; convert it first.")
    try:
        # The limits below are ours and tighter than Pillow's, which are global: its warning would only say it twice.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_header(picture, name)
            return _to_rgb(picture)
    except Image.DecompressionBombError:
        raise InputError(_too_large(name, "over 178 million pixels")) from None
    except Image.UnidentifiedImageError:
        raise InputError(
            f"{name}: is not a picture that can be read{f' although it begins like {kind}' if kind else ''}; "
            "give a whole PNG, JPEG or WebP file."
        ) from None
    except InputError:
        raise
    # Pillow's decoders raise whatever broken bytes lead them to (OSError, SyntaxError, ValueError, struct.error...).
    except (Exception, MemoryError) as error:
        reason = printable(str(error) or type(error).__name__, 100)
        raise InputError(
            f"{name}: the picture is damaged or cut off ({reason}); give a whole PNG, JPEG or WebP file."
        ) from None


def _too_large(name: str, found: str) -> str:
    return (
        f"{name}: the picture has {found}, and at most {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} pixels a "
        "side are read; give a smaller version."
    )


def _check_header(picture: Image.Image, name: str) -> None:
    """Everything that must be known before a pixel is decoded."""
    width, height = picture.size
    if width < 1 or height < 1:
        raise InputError(f"{name}: the picture has no pixels ({width} x {height}); give one of at least 1 x 1.")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(_too_large(name, f"{width} x {height} pixels"))
    # A phone's JPEG may carry a second picture (a depth map, a preview) behind the first: that is no animation.
    if picture.format != "MPO" and getattr(picture, "is_animated", False):
        frames = getattr(picture, "n_frames", 0)
        raise InputError(
            f"{name}: is an animation of {frames} pictures; give one still picture, or the clip as MP4 or WebM."
        )


def _to_rgb(picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    orientation = _orientation(picture)
    picture.load()
    transparent = picture.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in picture.info
    if picture.mode.startswith(("I", "F")):
        upright = _sixteen_bit_to_rgba(picture)
    else:
        upright = picture.convert("RGBA" if transparent else "RGB")
    if orientation is not None:
        upright = upright.transpose(orientation)
    if upright.mode == "RGBA":
        canvas = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(canvas, upright).convert("RGB")
    return np.array(upright, dtype=np.uint8)


def _sixteen_bit_to_rgba(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits: Pillow's own conversion clips values above 255 instead of scaling them."""
    grey = np.asarray(picture, dtype=np.float64)
    alpha = np.full(grey.shape, 255, np.uint8)
    key = picture.info.get("transparency")
    if isinstance(key, int):
        alpha[grey == key] = 0
    grey = np.clip(np.round(grey / 257.0), 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, grey, grey, alpha], axis=-1), "RGBA")


# EXIF tag 0x0112, from its value to what turns the stored picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(picture: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(picture.getexif().get(0x0112, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return None  # a broken EXIF block does not make a broken picture
