import pytest

from kaleido_jax.evaluation.intervals import Share


# Published values of Wilson's 95 % interval (Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263, 15 of 148,
# 0 of 20,
# 1 of 29), to their four decimals.
@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(right: int, total: int, low: float, high: float):
    assert Share(right, total).interval == pytest.approx((low, high), abs=6e-5)


def test_no_answers_say_nothing():
    assert Share(0, 0).interval == (0.0, 1.0)
