"""Measurements of pictures in numpy: luma, blur, motion, boxes and masks."""

import io

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

Box = tuple[float, float, float, float]


def luma(pixels: UInt8[np.ndarray, "*n h w 3"]) -> Float32[np.ndarray, "*n h w"]:
    """Rec. 601 luma in [0, 255]."""
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def blur(grey: Float32[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"] | None = None) -> float:
    """The variance of the 4-neighbour Laplacian, over the mask's inside where one is given: low is blurred."""
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    if mask is not None:
        # Only where all five pixels are the subject's: its outline is as sharp as the cut, not as the lens.
        inside = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        laplacian = laplacian[inside]
    return float(laplacian.var()) if laplacian.size else 0.0


def motion(frames: UInt8[np.ndarray, "f h w 3"]) -> float:
    """The mean absolute change of luma between frames that follow each other."""
    return float(np.abs(np.diff(luma(frames), axis=0)).mean()) if len(frames) > 1 else 0.0


def box_of(mask: Bool[np.ndarray, "h w"]) -> Box:
    """(x0, y0, x1, y1) around the mask; all 0 for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def whole_box(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """The box in whole pixels inside the picture, at least one pixel large."""
    x0, y0 = min(max(int(np.floor(box[0])), 0), width - 1), min(max(int(np.floor(box[1])), 0), height - 1)
    x1, y1 = min(max(int(np.ceil(box[2])), x0 + 1), width), min(max(int(np.ceil(box[3])), y0 + 1), height)
    return x0, y0, x1, y1


def mask_overlap(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union; 0 for two empty masks."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def box_overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
    return wide * high / (area(a) + area(b) - wide * high)


def png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """The picture as PNG; equal pixels give equal bytes with one version of Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def from_png(content: bytes, mode: str = "RGB") -> np.ndarray:
    """The pixels of a PNG that `png` wrote."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        return np.asarray(picture.convert(mode))


def resized(pixels: UInt8[np.ndarray, "h w c"], height: int, width: int) -> UInt8[np.ndarray, "height width c"]:
    """Lanczos."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def resized_mask(mask: Bool[np.ndarray, "h w"], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Bilinear, then half."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(grey) > 127


def grown(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    """The mask widened by a square of `pixels` to every side."""
    for axis in (0, 1):
        padded = np.pad(mask, [(pixels, pixels) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * pixels + 1, axis)
        mask = np.asarray(windows.any(-1))
    return mask
