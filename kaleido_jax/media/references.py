"""Kaleido's preparation of a reference: fitted inside the video's frame, centred on white, scaled to [-1, 1]."""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image


def fitted_size(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """(height, width) of a picture scaled to touch the frame `to_height` x `to_width` from inside, aspect kept.

    The shorter side is cut down to whole pixels, through the ratio as a float, as the released model does it; a picture
    so thin that nothing would be left keeps one pixel.
    """
    ratio = width / height
    if ratio > to_width / to_height:
        return max(1, int(to_width / ratio)), to_width
    return to_height, max(1, int(to_height * ratio))


def fit_on_white(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The picture fitted inside `height` x `width` with Lanczos, centred (an odd pixel goes right, below), on white."""
    inner_height, inner_width = fitted_size(*picture.shape[:2], height, width)
    inner = Image.fromarray(picture).resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    return centre_on_white(np.asarray(inner), height, width)


def fill(picture: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The picture scaled with Lanczos to cover `height` x `width`, and what stands out on two sides cut off."""
    tall, wide = picture.shape[:2]
    ratio = max(height / tall, width / wide)
    size = max(width, round(wide * ratio)), max(height, round(tall * ratio))
    covering = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return covering[top : top + height, left : left + width]


def centre_on_white(
    picture: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture, not larger than `height` x `width`, in the middle of that much white."""
    canvas = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def to_model_range(pixels: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """(x - 127.5) / 127.5: bytes as float32 in [-1, 1]."""
    return (pixels.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
