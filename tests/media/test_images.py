"""Pictures of strangers: every kind that is read gives the right pixels, everything else one clear sentence."""

import contextlib
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from kaleido_jax.errors import InputError
from kaleido_jax.media import images
from kaleido_jax.media.images import decode_image, read_image


def noise(height=17, width=23, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand, from the format's specification: for kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(
        [png_chunk(b"IHDR", header), *extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + body


# What is read


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_lossless_pictures_come_out_exactly(tmp_path, format):
    pixels = noise()
    path = tmp_path / "picture.dat"  # the name's ending plays no role
    path.write_bytes(encoded(Image.fromarray(pixels), format, lossless=True))
    np.testing.assert_array_equal(read_image(path), pixels)


def test_jpeg_is_as_pillow_decodes_it():
    data = encoded(Image.fromarray(noise()), "JPEG", quality=90)
    np.testing.assert_array_equal(decode_image(data, "x"), np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise()), format, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, "x"), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 40])
def test_broken_exif_does_not_break_the_picture(exif):
    assert decode_image(encoded(Image.fromarray(noise()), "JPEG", exif=exif), "x").shape == (17, 23, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_shown_on_white(mode):
    rgba = noise(channels=4)
    picture = Image.fromarray(rgba).convert(mode)
    straight = np.array(picture.convert("RGBA")).astype(float)
    alpha = straight[..., 3:] / 255
    expected = straight[..., :3] * alpha + 255 * (1 - alpha)
    actual = decode_image(encoded(picture, "PNG"), "x")
    assert np.abs(actual - expected).max() <= 1.0  # rounding of 8-bit compositing


def test_palette_with_a_transparent_colour():
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    actual = decode_image(encoded(picture, "PNG", transparency=1), "x")
    np.testing.assert_array_equal(actual, [[[255, 0, 0], [255] * 3], [[0, 0, 255], [255] * 3]])


def test_black_and_white_and_grey():
    grey = noise(channels=1)[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(grey), "PNG"), "x")[..., 1], grey)
    bits = Image.fromarray(grey > 127)
    np.testing.assert_array_equal(decode_image(encoded(bits, "PNG"), "x")[..., 2], np.where(grey > 127, 255, 0))


def test_cmyk_jpeg():
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    colour = decode_image(data, "x").reshape(-1, 3).mean(0)
    np.testing.assert_allclose(colour, [254, 0, 0], atol=4)  # full magenta and yellow ink is red


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    actual = decode_image(encoded(Image.fromarray(values), "PNG"), "x")
    np.testing.assert_array_equal(actual[0, :, 0], [0, 1, 128, 255])


def test_16_bit_grey_with_a_transparent_value():
    rows = b"\0" + np.array([100, 40000], ">u2").tobytes()
    data = raw_png(2, 1, 16, 0, rows, png_chunk(b"tRNS", struct.pack(">H", 100)))
    np.testing.assert_array_equal(decode_image(data, "x")[0, :, 0], [255, 156])


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour(colour, channels):
    values = np.full((1, 2, channels), 65535, ">u2")
    values[0, 0, :3] = [0, 0x8000, 0xFF00]
    actual = decode_image(raw_png(2, 1, 16, colour, b"\0" + values.tobytes()), "x")
    np.testing.assert_allclose(actual, [[[0, 128, 255], [255, 255, 255]]], atol=1)


def test_a_phones_jpeg_with_a_second_picture_behind_gives_the_first():
    first, second = Image.fromarray(noise(seed=1)), Image.fromarray(noise(seed=2))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_image(data, "x"), decode_image(encoded(first, "JPEG"), "x"))


def test_real_pictures_of_scikit_image():
    data = pytest.importorskip("skimage.data")
    for name in ("chelsea", "astronaut", "coffee"):
        pixels = getattr(data, name)()
        np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels), "PNG"), name), pixels)
    logo = data.logo()  # a cut-out: transparent around the snake
    actual = decode_image(encoded(Image.fromarray(logo), "PNG"), "logo")
    np.testing.assert_array_equal(actual[logo[..., 3] == 0], 255)
    np.testing.assert_array_equal(actual[logo[..., 3] == 255], logo[logo[..., 3] == 255][:, :3])


# What is refused


def refused(tmp_path, content: bytes, name: str = "bad.png") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(str(path)), message
    assert message.endswith(".") and message.isprintable() and len(message) < 500
    return message


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no such file.*PNG, JPEG or WebP"):
        read_image(tmp_path / "nothing.png")


def test_folder_pipe_and_impossible_name(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):  # and does not wait for a writer
        read_image(tmp_path / "pipe")
    for name in ("a\0b.png", "x" * 5000 + ".png", "\ud800.png"):
        with pytest.raises(InputError):
            read_image(name)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    (tmp_path / "mine.png").write_bytes(encoded(Image.fromarray(noise()), "PNG"))
    (tmp_path / "mine.png").chmod(0)
    with pytest.raises(InputError, match="no permission"):
        read_image(tmp_path / "mine.png")


def test_empty_file(tmp_path):
    assert "empty (0 bytes)" in refused(tmp_path, b"")


def test_large_file(tmp_path):
    path = tmp_path / "large.png"
    with open(path, "wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match=r"20\.0 MB, and at most 20 MB"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"GIF89a" + bytes(30), "GIF"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\0\0\0\x18ftypheic" + bytes(30), "HEIC"),
        (b"\0\0\0\x18ftypavif" + bytes(30), "AVIF"),
        (b"\0\0\0\x18ftypisom" + bytes(30), "MP4"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<!doctype html><script>alert(1)</script>", "HTML"),
        (b"BM" + bytes(60), "BMP"),
        (b"II*\0" + bytes(60), "TIFF"),
        (b"GIF89a/*<html>*/=1;", "GIF"),  # a polyglot
        (b"#EXTM3U\nhttp://localhost/\n", "M3U"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, content, kind):
    message = refused(tmp_path, content)
    assert f"is a {kind}" in message and "PNG, JPEG or WebP" in message


@pytest.mark.parametrize("content", [b"just some text\n", b"\0" * 100, bytes(range(256))])
def test_something_else_entirely(tmp_path, content):
    assert "is not a picture that can be read" in refused(tmp_path, content)


@pytest.mark.parametrize("size", [(20_000, 10_000), (100_000, 1), (1, 8193), (13_000, 13_000), (2**31 - 1, 2**31 - 1)])
def test_pictures_of_too_many_pixels(tmp_path, size):
    # 200 megapixels of one bit are a file of some kilobytes; nothing of it is decoded.
    rows = bytes(1000)
    message = refused(tmp_path, raw_png(*size, 1, 0, rows))
    assert "25 megapixels" in message and "smaller version" in message


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_pictures_without_pixels(tmp_path, size):
    refused(tmp_path, raw_png(*size, 8, 2, b""))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animations(tmp_path, format):
    frames = [Image.fromarray(noise(seed=i)) for i in range(3)]
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    assert "animation of 3 pictures" in refused(tmp_path, content)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_truncated_at_any_place(tmp_path, format):
    whole = encoded(Image.fromarray(noise(64, 64)), format)
    for cut in np.linspace(1, len(whole) * 0.9, 25).astype(int):
        refused(tmp_path, whole[:cut])


def test_compressed_text_bomb(tmp_path):
    bomb = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(200_000_000)))
    content = raw_png(1, 1, 8, 2, b"\0\1\2\3", bomb)
    assert len(content) < 300_000
    refused(tmp_path, content)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_random_damage_gives_a_picture_or_an_input_error(format):
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = np.frombuffer(encoded(Image.fromarray(noise(40, 40)), format, exif=exif), np.uint8)
    for _ in range(150):
        damaged = whole.copy()
        places = random.integers(0, len(whole), random.integers(1, 6))
        damaged[places] = random.integers(0, 256, len(places))
        with contextlib.suppress(InputError):
            picture = decode_image(damaged.tobytes(), "damaged")
            assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_names_with_control_characters_are_escaped(tmp_path):
    path = tmp_path / "a\x1b[31m\nb.png"
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value).isprintable() and "\\u001b" in str(caught.value)
