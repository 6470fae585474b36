"""The formulas on features whose scores can be told by hand, or with another library's arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image

from kaleido_jax.evaluation.metrics import leaks, presence, similarity, temporal

BICUBIC = Image.Resampling.BICUBIC


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(torch.nn.functional.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b), dim=0))


def test_references_and_texts_are_averaged_over_all_pairs():
    frames, references = rows(3, 5), rows(2, 5, seed=1)
    expected = np.mean([[cosine(f, r) for r in references] for f in frames])
    assert similarity.reference_similarity(frames, references) == pytest.approx(expected, abs=1e-12)
    assert similarity.text_similarity(frames, references[:1]) == pytest.approx(
        np.mean([cosine(f, references[0]) for f in frames]), abs=1e-12
    )


def test_a_set_is_compared_in_pairs():
    a, b, c = pictures = rows(3, 4)
    expected = (cosine(a, b) + cosine(a, c) + cosine(b, c)) / 3
    assert similarity.pairwise_similarity(pictures) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        similarity.pairwise_similarity(pictures[:1])


def test_regions_take_the_best_reference_of_their_own_subject():
    regions, references = rows(4, 2, 6), rows(3, 6, seed=1)
    seen, subjects = np.array([[1, 1], [1, 0], [0, 1], [1, 1]], bool), np.array([1, 2, 1])
    best = [max(cosine(regions[f, 0], references[r]) for r in (0, 2)) for f in (0, 1, 3)]
    found = similarity.region_similarity(regions, seen, references, subjects, over_references="max")
    assert found[0] == pytest.approx(sum(best) / 4, abs=1e-12)  # a frame without the subject counts 0
    skipped = similarity.region_similarity(
        regions, seen, references, subjects, over_references="mean", undetected="skip"
    )
    assert skipped[1] == pytest.approx(np.mean([cosine(regions[f, 1], references[1]) for f in (0, 2, 3)]), abs=1e-12)
    nobody = similarity.region_similarity(
        regions, seen & False, references[:1], subjects[:1], over_references="max", undetected="skip"
    )
    assert nobody[0] == 0 and np.isnan(nobody[1])


def test_decoupling_is_one_minus_similarity():
    frames, references = rows(3, 5), rows(2, 5, seed=1)
    table = np.array([[cosine(f, r) for r in references] for f in frames])
    assert similarity.s2v_decoupling(frames, references) == pytest.approx(1 - table.mean(), abs=1e-12)
    worst = similarity.s2v_decoupling(frames, references, over_references="max")
    assert worst == pytest.approx(1 - table.max(1).mean(), abs=1e-12)
    assert similarity.s2v_decoupling(frames, frames[:1]) < 1


def test_temporal_scores():
    frames = rows(9, 4)
    near = [cosine(a, b) for a, b in zip(frames, frames[1:])]
    assert temporal.temporal_consistency(frames) == pytest.approx(np.mean(near), abs=1e-12)
    assert temporal.first_latent_consistency(frames, latent_frames=2) == pytest.approx(np.mean(near[:4]), abs=1e-12)
    both = [max(0, n) + max(0, cosine(frames[0], f)) for n, f in zip(near, frames[1:])]
    assert temporal.vbench_consistency(frames) == pytest.approx(np.mean(both) / 2, abs=1e-12)
    assert temporal.vbench_consistency(frames[:1]) == temporal.temporal_consistency(frames[:1]) == 1


def test_a_gap_at_the_start_shows_in_the_first_latent_frames():
    steady = np.tile(rows(1, 16), (49, 1))
    broken = steady.copy()
    broken[:2] = rows(2, 16, seed=1)
    assert temporal.temporal_consistency(broken) > 0.95
    assert temporal.first_latent_consistency(broken) < 0.85


def test_pixels_move_smoothly_or_not():
    ramp = np.broadcast_to(np.arange(0, 50, 10, dtype=np.uint8)[:, None, None, None], (5, 4, 4, 3))
    assert temporal.temporal_flickering(ramp) == pytest.approx((255 - 10) / 255)
    assert temporal.motion_smoothness(ramp, temporal.halfway) == 1
    jumping = ramp.copy()
    jumping[1] += 51
    assert temporal.motion_smoothness(jumping, temporal.halfway) == pytest.approx((255 - 51 / 2) / 255)
    assert temporal.motion_smoothness(ramp[:2], temporal.halfway) == 1


def test_a_reference_among_the_frames_is_found():
    rng = np.random.default_rng(0)
    noise = lambda *size: Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize(size, BICUBIC)
    frames = [np.asarray(noise(60, 40)) for _ in range(4)]
    reference = np.asarray(noise(50, 80))
    features = leaks.correlation_features
    clean = leaks.reference_leak(features(frames), features([reference]))
    frames[2] = np.asarray(Image.fromarray(reference).resize((60, 40), BICUBIC))
    assert clean < 0.5
    assert leaks.reference_leak(features(frames), features([reference])) > 0.9
    assert leaks.first_frame_leak(features(frames), features([reference])) < 0.5


def test_copied_frames_are_counted():
    reference = rows(1, 6)
    regions = np.concatenate([2 * reference, rows(1, 6, seed=1), reference])
    seen = np.array([True, True, False])
    assert leaks.copy_paste_rate(regions, seen, reference) == pytest.approx(1 / 3)
    assert leaks.copy_paste_rate(regions[:0], seen[:0], reference) == 0


def similarities(*frames) -> np.ndarray:
    return np.array(frames, float)


BOXES = np.array([[0, 0, 4, 4], [10, 0, 14, 4]], float)


def test_subjects_are_counted():
    first, second, none, gone = [0.9, 0.1], [0.2, 0.8], [0.1, 0.2], [np.nan, np.nan]
    frames = similarities([first, second], [first, first], [gone, none], [second, first])
    found = presence.presence(frames, np.tile(BOXES, (4, 1, 1)), np.array([1, 2]), present=0.5)
    np.testing.assert_allclose(found.missing, [1 / 4, 2 / 4])
    np.testing.assert_allclose(found.duplicated, [1 / 4, 0])
    np.testing.assert_allclose(found.swapped, [1 / 4, 2 / 4])
    np.testing.assert_allclose(found.overlapping, [0, 0])
    shared = np.array([[[0, 0, 4, 4], [1, 1, 3, 3]]], float)
    crowded = presence.presence(frames[:1], shared, np.array([0, 0]), present=0.5)
    np.testing.assert_allclose(crowded.overlapping, [1, 1])
    np.testing.assert_allclose(crowded.swapped, [0, 0])
    empty = presence.presence(frames[:, :0], np.zeros((4, 0, 4)), np.zeros(0, int), present=0.5)
    np.testing.assert_allclose(empty.missing, [1, 1])


def test_second_instances_and_exchanged_ones_score_higher():
    first, second = [0.9, 0.1], [0.2, 0.8]
    right, twice = similarities([first, second]), similarities([first, first])
    assert presence.duplication(twice) == pytest.approx(0.9) and presence.duplication(right) == pytest.approx(0.2)
    claimed = np.array([1, 2])
    assert presence.swap(right, claimed) == pytest.approx((0.1 - 0.9 + 0.2 - 0.8) / 2)
    assert presence.swap(right[:, ::-1], claimed) == pytest.approx(0.7)
    assert presence.swap(right, np.array([0, 0])) == 0 == presence.duplication(right[:, :1])
