"""References that are cut out of their own video, at a share."""

import dataclasses

import numpy as np
import pytest

from kaleido_jax.data.pairing import paired
from kaleido_jax.data.world import Sample

RED, BLUE = (200, 30, 60), (0, 0, 250)


@pytest.fixture
def sample():
    """A red box, 16 x 8, before blue, in the third frame only partly; subject 2 is nowhere, subject 0 the scene."""
    video, masks = np.full((3, 32, 48, 3), BLUE, np.uint8), np.zeros((3, 32, 48), np.uint8)
    for frame, width in enumerate((16, 16, 4)):
        box = (frame, slice(10, 18), slice(20, 20 + width))
        video[box], masks[box] = RED, 1
    grey = np.full((32, 48, 3), 90, np.uint8)
    return Sample(video=video, references=[(grey, 1), (grey, 2), (grey, 0)], prompt="a", masks=masks, truth={})


def test_a_reference_is_cut_out_whole_and_centred_on_white(sample):
    """Nothing of what is behind the subject is left of it; its shape stays, within a pixel of rounding on each side."""
    for seed in range(8):
        (cut, _), *others = paired(sample, seed, 0.0).references
        assert cut.shape == (32, 48, 3) and cut.dtype == np.uint8
        assert tuple(cut[16, 24]) == RED and tuple(cut[0, 0]) == (255, 255, 255)
        seen = (cut < 250).any(axis=-1)
        height, width = seen.any(axis=1).sum(), seen.any(axis=0).sum()
        assert 0.6 * 48 < width < 48 and abs(width - 2 * height) <= 3
        assert cut[..., 2][seen].max() <= 70  # red has 60 of blue, what is behind it 250
        for (one, subject), (own, number) in zip(others, sample.references[1:]):
            assert subject == number and one is own


def test_the_share_is_that_of_the_samples(sample):
    samples = [dataclasses.replace(sample, prompt=str(seed)) for seed in range(60)]
    kept = [paired(one, seed, 0.7) is one for seed, one in enumerate(samples)]
    assert 0.5 < np.mean(kept) < 0.9
    assert all(paired(one, seed, 1.0) is one for seed, one in enumerate(samples))
    assert [paired(one, seed, 0.7) is one for seed, one in enumerate(samples)] == kept
