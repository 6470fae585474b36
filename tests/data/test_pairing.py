"""References that are cut out of their own video, at a share."""

import numpy as np
import pytest

from kaleido_jax.data.pairing import paired
from kaleido_jax.data.world import World


@pytest.fixture(scope="module")
def world():
    return World(32, 5, photographs=False)


def test_a_reference_that_is_cut_out_is_made_of_its_videos_colours(world):
    """Resized, its mean colour stays that of the subject in some frame. 25 of 255: edges blend with white."""
    for seed in range(6):
        sample = world.sample(seed)
        other = paired(sample, seed, 0.0)
        assert [s for _, s in other.references] == [s for _, s in sample.references]
        for (cut, subject), (own, _) in zip(other.references, sample.references):
            assert cut.shape == own.shape and cut.dtype == np.uint8
            if not subject:
                np.testing.assert_array_equal(cut, own)
                continue
            seen = [f[m == subject] for f, m in zip(sample.video, sample.masks) if (m == subject).any()]
            inside = cut[(cut < 245).any(axis=-1)]
            if len(inside) < 200 or not seen:
                continue
            near = min(np.abs(inside.mean(axis=0) - f[(f < 245).any(axis=-1)].mean(axis=0)).max() for f in seen)
            assert near < 25
        np.testing.assert_array_equal(other.video, sample.video)


def test_the_share_is_that_of_the_samples(world):
    samples = [world.sample(seed) for seed in range(2)] * 30
    kept = [paired(sample, seed, 0.7) is sample for seed, sample in enumerate(samples)]
    assert 0.5 < np.mean(kept) < 0.9
    assert all(paired(sample, seed, 1.0) is sample for seed, sample in enumerate(samples))
    again = [paired(sample, seed, 0.7) is sample for seed, sample in enumerate(samples)]
    assert again == kept
