"""What is known of devices: kinds by the names that jax gives them, memory, and rates."""

import types

import jax
import pytest

from kaleido_jax.parallel.chips import CHIPS
from kaleido_jax.parallel.devices import chip_of, memory_of, most_used, peak_of, rate_of


def device(kind, **stats):
    return types.SimpleNamespace(device_kind=kind, platform="tpu", process_index=0, memory_stats=lambda: stats)


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
    ],
)
def test_chips_by_the_names_that_jax_gives_them(kind, chip):
    assert chip_of(device(kind)) is CHIPS[chip]
    assert peak_of([device(kind)] * 4) == 4 * CHIPS[chip].peak
    assert rate_of([device(kind)] * 4) == 4 * CHIPS[chip].peak * CHIPS[chip].reached


def test_memory_is_the_devices_own():
    assert memory_of([device("TPU v5", bytes_limit=100)] * 2) == 100
    assert most_used([device("TPU v5", peak_bytes_in_use=7), device("TPU v5", peak_bytes_in_use=9)]) == 9


def test_shares_of_one_processor():
    """Eight devices have its memory and its rate together."""
    devices = jax.devices()
    assert chip_of(devices[0]) is None
    assert memory_of(devices) == pytest.approx(memory_of(devices[:1]) / 8, rel=1e-6)
    assert 1e8 < peak_of(devices, size=64) < 1e14 and most_used(devices) > 1e8
