"""Sizes that cannot be are refused, and the message names the field."""

import dataclasses

import pytest

from kaleido_jax.models.wan import WanConfig
from kaleido_jax.testing.wan import TINY


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "WanConfig.layers is 0; expected a positive integer"),
        ({"dim": 50}, "WanConfig.dim is 50; expected an even multiple of the 3 heads"),
        ({"dim": 45}, "WanConfig.dim is 45; expected an even multiple of the 3 heads"),
        ({"freq_dim": 31}, "WanConfig.freq_dim is 31; expected an even number"),
        ({"patch": (1, 2, 0)}, r"WanConfig.patch is \(1, 2, 0\); expected three positive integers"),
        (
            {"data_std": (1.0, 2.0)},
            r"WanConfig.data_std has 2 values; expected one for each of as many channels in \(in",
        ),
        (
            {"in_channels": 2, "out_channels": 2, "data_std": (1.0, 0.0)},
            "WanConfig.data_std holds 0.0; expected numbers",
        ),
        ({"dtype": "float64"}, "WanConfig.dtype is 'float64'; expected float32, bfloat16 or float16"),
    ],
)
def test_refuses_impossible_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize("name", ["t2v_1_3b", "t2v_14b", "i2v_14b", "ti2v_5b"])
def test_released_heads_are_128_wide(name):
    assert getattr(WanConfig, name)().head_dim == 128
