"""The released preparation of references: arithmetic checked by hand, pixels against Pillow's own padding."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from kaleido_jax.media.references import fit_on_white, fitted_size, to_model_range


@pytest.mark.parametrize(
    ("picture", "frame", "expected"),
    [
        ((100, 100), (96, 96), (96, 96)),
        ((300, 451), (96, 96), (63, 96)),  # 96 / (451 / 300) = 63.86: cut, not rounded
        ((451, 300), (96, 96), (96, 63)),
        ((1080, 1920), (512, 896), (504, 896)),
        ((10, 10), (480, 832), (480, 480)),  # small pictures are enlarged
        ((1, 8192), (96, 96), (1, 96)),  # nothing vanishes
        ((8192, 1), (96, 96), (96, 1)),
    ],
)
def test_fitted_size(picture, frame, expected):
    assert fitted_size(*picture, *frame) == expected


@pytest.mark.parametrize("shape", [(300, 451), (451, 300), (7, 5), (64, 64)])
def test_fit_on_white_is_pillows_lanczos_with_the_odd_pixel_right_and_below(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    height, width = fitted_size(*shape, 48, 65)
    inner = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    left, top = (65 - width) // 2, (48 - height) // 2
    border = (left, top, 65 - width - left, 48 - height - top)
    expected = np.array(ImageOps.expand(inner, border, fill=(255, 255, 255)))
    np.testing.assert_array_equal(fit_on_white(pixels, 48, 65), expected)


def test_model_range():
    every = np.arange(256, dtype=np.uint8)
    scaled = to_model_range(every)
    assert scaled.dtype == np.float32 and scaled[0] == -1 and scaled[255] == 1
    np.testing.assert_allclose(scaled, (every.astype(float) - 127.5) / 127.5, atol=1e-7)  # float32
