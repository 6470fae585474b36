"""Positions against numbers worked out by hand from the papers; rotation against diffusers and complex float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_jax.layout import Segment, TokenLayout
from kaleido_jax.rope import (
    SCHEMES,
    Continuing,
    FixedTime,
    Interleaved,
    Principles,
    SpatialShift,
    apply_rotary,
    positions,
    principles,
    rotary_angles,
)

# A video of 3 frames of 2 x 4 tokens; two pictures of one subject and one of another, each as large as a frame.
VIDEO, PICTURE = (3, 2, 4), (1, 2, 4)
REFERENCES = tuple(Segment(kind="reference", grid=PICTURE, subject=subject) for subject in (0, 0, 1))
LAYOUT = TokenLayout((*REFERENCES, Segment(kind="video", grid=VIDEO)))


def first_tokens(layout, scheme, contents=None, stream=None, **kwargs):
    """The position of each segment's first token, in the batch's last sample."""
    places = np.asarray(positions(layout, scheme, contents, stream=stream, **kwargs))[-1]
    return [tuple(places[piece.start].tolist()) for piece in layout.slices(stream)]


# For each variant: the first token of each of the three pictures, then of the video; and which of the principles of A.2
# it meets: video and references distinguishable, references separable, no continuity implied between images.
VARIANTS = {
    # Table 2 and Figure 6: plain concatenation reads the pictures as further frames.
    "concat-before": ([(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)], (False, True, False)),
    "concat-after": ([(3, 0, 0), (4, 0, 0), (5, 0, 0), (0, 0, 0)], (False, True, False)),
    "shift-w": ([(0, 0, 4), (1, 0, 4), (2, 0, 4), (0, 0, 0)], (True, True, False)),
    "shift-h": ([(0, 2, 0), (1, 2, 0), (2, 2, 0), (0, 0, 0)], (True, True, False)),
    # Equation 4: [i - 1, H_max : , W_max : ]. The pictures follow each other in time, though far from the video.
    "shift-wh": ([(0, 2, 4), (1, 2, 4), (2, 2, 4), (0, 0, 0)], (True, True, False)),
    "shift-wh-released": ([(0, 80, 80), (1, 80, 80), (2, 80, 80), (0, 0, 0)], (True, True, False)),
    # "beginning from t = 0 for each image": nothing tells the pictures apart any more.
    "shift-wh-zero-time": ([(0, 2, 4), (0, 2, 4), (0, 2, 4), (0, 0, 0)], (True, False, True)),
    "shift-wh-no-overlap": ([(0, 2, 4), (1, 4, 8), (2, 6, 12), (0, 0, 0)], (True, True, True)),
    # A.2 numbers the pictures of each subject, so those of two subjects meet.
    "fixed-time": ([(-1, 0, 0), (-1, 0, 0), (-1, 0, 0), (0, 0, 0)], (False, False, True)),
    "negative-time": ([(-1, 0, 0), (-2, 0, 0), (-1, 0, 0), (0, 0, 0)], (False, False, False)),
    "future-time": ([(4, 0, 0), (5, 0, 0), (4, 0, 0), (0, 0, 0)], (True, False, False)),
    "phantom": ([(3, 0, 0), (4, 0, 0), (5, 0, 0), (0, 0, 0)], (False, True, False)),
    "wan-s2v": ([(30, 0, 0), (30, 0, 0), (30, 0, 0), (0, 0, 0)], (True, False, True)),
    # beta = 4: with one reference at 0 the video starts at 5, with three at 7.
    "gap": ([(0, 0, 0), (1, 0, 0), (2, 0, 0), (7, 0, 0)], (True, True, False)),
    "interleaved": ([(0, 0, 0), (4, 4, 4), (8, 8, 8), (12, 12, 12)], (True, True, True)),
    "interleaved-continuing-time": ([(0, 0, 0), (1, 4, 4), (2, 8, 8), (3, 12, 12)], (True, True, True)),
    "flux": ([(0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)], (False, False, True)),
}


def test_every_scheme_is_tested():
    assert set(SCHEMES) == set(VARIANTS) | {"channel-concat"}


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(name):
    expected, met = VARIANTS[name]
    assert first_tokens(LAYOUT, SCHEMES[name]) == expected
    assert principles(LAYOUT, SCHEMES[name]) == Principles(*met)


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"interleaved", "interleaved-continuing-time"}))
def test_references_behind_the_video_in_token_order_stand_where_they_stood_before_it(name):
    behind = TokenLayout((LAYOUT.segments[-1], *REFERENCES))
    expected, _ = VARIANTS[name]
    assert first_tokens(behind, SCHEMES[name]) == [expected[-1], *expected[:-1]]


def test_inside_a_segment_tokens_run_by_frame_row_column():
    places = np.asarray(positions(LAYOUT, SCHEMES["shift-wh"]))[0]
    picture, video = places[LAYOUT.slices()[1]], places[LAYOUT.slices()[3]]
    assert picture.tolist() == [[1, 2 + row, 4 + column] for row in range(2) for column in range(4)]
    assert video.tolist() == [list(place) for place in itertools.product(range(3), range(2), range(4))]


def test_channel_concat_has_no_reference_tokens():
    video = TokenLayout((Segment(kind="video", grid=VIDEO),))
    plain = np.asarray(positions(video, SCHEMES["channel-concat"]))[0]
    assert plain.tolist() == [list(place) for place in itertools.product(range(3), range(2), range(4))]
    assert principles(video, SCHEMES["channel-concat"]) == Principles(True, True, True)
    with pytest.raises(ValueError, match="the layout has reference segments; remove them"):
        positions(LAYOUT, SCHEMES["channel-concat"])


def test_released_model_at_its_own_size():
    """512 x 896 pixels, 81 frames: latent 21 x 64 x 112, patches 21 x 32 x 56; every reference is one full frame."""
    picture = Segment(kind="reference", grid=(1, 32, 56))
    layout = TokenLayout((picture, picture, Segment(kind="video", grid=(21, 32, 56))))
    places = np.asarray(positions(layout, SCHEMES["shift-wh-released"]))[0]
    second = places[1792:3584].reshape(32, 56, 3)
    assert (second[..., 0] == 1).all()
    assert second[0, 0].tolist() == [1, 80, 80] and second[-1, -1].tolist() == [1, 111, 135]
    # The fixed offset is not that of equation 4, which starts where this video ends.
    assert first_tokens(layout, SCHEMES["shift-wh"])[1] == (1, 32, 56)


def test_released_offset_without_overlap_is_a_multiple():
    assert first_tokens(LAYOUT, SpatialShift(offset=80, overlap=False))[:3] == [
        (0, 80, 80),
        (1, 160, 160),
        (2, 240, 240),
    ]


def test_gap_with_one_reference():
    """beta = 4 and the reference at 0: the first video frame at 5; without a reference there is no gap to leave."""
    one = TokenLayout((REFERENCES[0], LAYOUT.segments[-1]))
    assert first_tokens(one, SCHEMES["gap"]) == [(0, 0, 0), (5, 0, 0)]
    absent = one.contents(lengths=np.array([[0, 24]]))
    assert first_tokens(one, SCHEMES["gap"], absent)[1] == (0, 0, 0)
    assert first_tokens(one, Continuing(references="after", gap=4)) == [(7, 0, 0), (0, 0, 0)]


def test_clips_take_the_time_of_their_frames():
    clip = Segment(kind="reference", grid=(2, 2, 4))
    layout = TokenLayout((clip, REFERENCES[1], clip, LAYOUT.segments[-1]))
    assert [t for t, _, _ in first_tokens(layout, SCHEMES["shift-wh"])] == [0, 2, 3, 0]
    assert [t for t, _, _ in first_tokens(layout, SCHEMES["concat-before"])] == [0, 2, 3, 5]
    assert [t for t, _, _ in first_tokens(layout, SCHEMES["future-time"])] == [4, 6, 7, 0]
    # Before the video a clip ends where a picture would stand.
    assert [t for t, _, _ in first_tokens(layout, SCHEMES["negative-time"])] == [-2, -3, -5, 0]
    assert [t for t, _, _ in first_tokens(layout, FixedTime(time=-1))] == [-2, -1, -2, 0]


def test_no_overlap_follows_the_size_of_each_reference():
    sizes = [(1, 2, 4), (1, 3, 2), (1, 1, 1)]
    pictures = [Segment(kind="reference", grid=grid) for grid in sizes]
    layout = TokenLayout((*pictures, LAYOUT.segments[-1]))
    assert first_tokens(layout, SCHEMES["shift-wh-no-overlap"])[:3] == [(0, 2, 4), (1, 4, 8), (2, 7, 10)]


def test_pictures_of_a_subject_are_ordered_by_their_number():
    pictures = [Segment(kind="reference", grid=PICTURE, subject=s, picture=p) for s, p in ((0, 1), (1, 0), (0, 0))]
    layout = TokenLayout((*pictures, LAYOUT.segments[-1]))
    assert [t for t, _, _ in first_tokens(layout, SCHEMES["negative-time"])][:3] == [-2, -1, -1]
    # Other subjects at run time: the layout's numbers belong to its own subjects and count no more.
    contents = layout.contents(subjects=np.array([[0, 0, 0, 0]]))
    assert [t for t, _, _ in first_tokens(layout, SCHEMES["negative-time"], contents)][:3] == [-1, -2, -3]
    contents = layout.contents(subjects=np.array([[0, 0, 0, 0]]), pictures=np.array([[2, 1, 0, 0]]))
    assert [t for t, _, _ in first_tokens(layout, SCHEMES["negative-time"], contents)][:3] == [-3, -2, -1]


# LCT: a global prompt with dummy video tokens, then two shots; a text of 3, 2 and 4 tokens.
def text(tokens, shot):
    return Segment(kind="text", grid=(tokens, 1, 1), shot=shot)


SHOTS = TokenLayout(
    (
        text(3, 0),
        Segment(kind="dummy", grid=(1, 2, 2)),
        text(2, 1),
        Segment(kind="video", grid=(3, 2, 4), shot=1),
        text(4, 2),
        Segment(kind="video", grid=(2, 2, 4), shot=2),
    )
)


def test_interleaved_runs_along_the_diagonal():
    starts = [0, 3, 5, 7, 11, 15]  # 3 words, 2 wide, 2 words, 4 wide, 4 words
    assert first_tokens(SHOTS, Interleaved()) == [(s, s, s) for s in starts]
    places = np.asarray(positions(SHOTS, Interleaved(), stream="text"))[0]
    assert places[:, 0].tolist() == [0, 1, 2, 5, 6, 11, 12, 13, 14]
    assert (places[:, 0] == places[:, 1]).all() and (places[:, 0] == places[:, 2]).all()


def test_interleaved_in_continuing_time():
    scheme = Interleaved(time="continuing")
    assert first_tokens(SHOTS, scheme) == [(0, 0, 0), (0, 3, 3), (1, 5, 5), (1, 7, 7), (4, 11, 11), (4, 15, 15)]
    places = np.asarray(positions(SHOTS, scheme, stream="text"))[0]
    assert places[3:5].tolist() == [[1, 5, 5], [1, 6, 6]]


def test_a_shot_stands_to_its_text_as_a_single_shot_does():
    """What the pretrained model knows of text and video of one shot stays true in every shot."""
    for time in ("diagonal", "continuing"):
        places = np.asarray(positions(SHOTS, Interleaved(time=time), stream=None))[0]
        for i in (2, 4):
            alone = TokenLayout(SHOTS.segments[i : i + 2])
            expected = np.asarray(positions(alone, Interleaved(time=time), stream=None))[0]
            pieces = SHOTS.slices()
            got = places[pieces[i].start : pieces[i + 1].stop]
            np.testing.assert_array_equal(got - got[0], expected)


def test_texts_of_any_length_move_what_follows():
    contents = SHOTS.contents(lengths=np.array([[3, 4, 2, 24, 4, 16], [1, 4, 2, 8, 0, 16]]))
    starts = [s for s, _, _ in first_tokens(SHOTS, Interleaved(), contents)]
    assert [starts[i] for i in (0, 1, 2, 3, 5)] == [0, 1, 3, 5, 9]


# Ragged batches and packing: a sample stands where it would stand alone.
SCHEME_NAMES = sorted(set(SCHEMES) - {"channel-concat"})
# Few sizes, because every new shape is a new program.
grids = st.sampled_from([(1, 2, 2), (2, 1, 3)])


@st.composite
def batches(draw):
    """The references of a bucket, whether they come first, and for each sample: which it has, of whom, and its frames.

    Plain numbers only: run-time type checks draw random numbers, which hypothesis wants no strategy to do.
    """
    references = draw(st.lists(grids, min_size=3, max_size=3))
    several = lambda values: st.lists(values, min_size=len(references), max_size=len(references))
    sample = st.tuples(several(st.booleans()), several(st.integers(0, 2)), st.integers(1, 3))
    return references, draw(st.booleans()), draw(st.lists(sample, min_size=2, max_size=2))


def bucket(references, first):
    pictures = [Segment(kind="reference", grid=grid) for grid in references]
    video = Segment(kind="video", grid=(3, 2, 2))
    return TokenLayout((*pictures, video) if first else (video, *pictures))


def alone(layout, row):
    """The layout that holds just what one sample has, and which of the bucket's tokens those are."""
    has, subjects, frames = row
    references, present, segments = iter(zip(has, subjects)), [], []
    for segment in layout.segments:
        if segment.kind == "video":
            segments.append(Segment(kind="video", grid=(frames, 2, 2)))
            present.append(frames * 4)
        else:
            wanted, subject = next(references)
            present.append(segment.tokens if wanted else 0)
            if wanted:
                segments.append(Segment(kind="reference", grid=segment.grid, subject=subject))
    tokens = [piece.start + i for piece, count in zip(layout.slices(), present) for i in range(count)]
    return TokenLayout(tuple(segments)), tokens, present


def subjects_of(layout, row):
    subjects = iter(row[1])
    return [0 if segment.kind == "video" else next(subjects) for segment in layout.segments]


@pytest.mark.parametrize("name", SCHEME_NAMES)
@settings(deadline=None, max_examples=8)
@given(batch=batches())
def test_a_sample_of_a_ragged_batch_stands_where_it_would_alone(name, batch):
    references, first, rows = batch
    layout = bucket(references, first)
    lengths = np.array([alone(layout, row)[2] for row in rows])
    contents = layout.contents(lengths=lengths, subjects=np.array([subjects_of(layout, row) for row in rows]))
    places = np.asarray(positions(layout, SCHEMES[name], contents))
    for row, got in zip(rows, places):
        single, tokens, _ = alone(layout, row)
        np.testing.assert_array_equal(got[tokens], np.asarray(positions(single, SCHEMES[name]))[0])


@pytest.mark.parametrize("name", SCHEME_NAMES)
@settings(deadline=None, max_examples=4)
@given(batch=batches())
def test_positions_start_anew_in_each_packed_sample(name, batch):
    references, first, rows = batch
    layout = bucket(references, first)
    packed = TokenLayout(layout.segments * len(rows))
    contents = packed.contents(
        lengths=np.concatenate([np.array([alone(layout, row)[2]]) for row in rows], axis=1),
        subjects=np.concatenate([np.array([subjects_of(layout, row)]) for row in rows], axis=1),
        samples=np.repeat(np.arange(len(rows)), len(layout.segments))[None],
    )
    places = np.asarray(positions(packed, SCHEMES[name], contents))[0].reshape(len(rows), layout.tokens(), 3)
    for row, got in zip(rows, places):
        single, tokens, _ = alone(layout, row)
        np.testing.assert_array_equal(got[tokens], np.asarray(positions(single, SCHEMES[name]))[0])


def test_other_contents_need_no_new_program():
    calls = []

    @jax.jit
    def place(contents):
        calls.append(None)
        return positions(LAYOUT, SCHEMES["negative-time"], contents)

    for subjects in ([[0, 0, 0, 0]] * 2, [[0, 1, 1, 0], [0, 1, 2, 0]]):
        for lengths in ([[8, 8, 8, 24]] * 2, [[8, 0, 0, 24], [8, 8, 0, 16]]):
            contents = LAYOUT.contents(lengths=np.array(lengths), subjects=np.array(subjects))
            np.testing.assert_array_equal(place(contents), positions(LAYOUT, SCHEMES["negative-time"], contents))
    assert len(calls) == 1


def test_a_learned_shift_moves_segments_and_gets_a_gradient():
    shift = jnp.zeros((1, 4, 3)).at[0, 1].set(jnp.array([0.5, -1.0, 2.0]))
    assert first_tokens(LAYOUT, SCHEMES["shift-wh"], shift=shift)[:2] == [(0, 2, 4), (1.5, 1, 6)]
    gradient = jax.grad(lambda s: positions(LAYOUT, SCHEMES["shift-wh"], shift=s).sum())(shift)
    assert gradient[0, :, 0].tolist() == [8, 8, 8, 24]


# Rotation.


def reference_rotation(x, places, axes, theta=10000.0):
    """Rotary embedding as the product of complex numbers, in float64."""
    frequency = np.concatenate([theta ** (-np.arange(0, d, 2) / d) for d in axes])
    axis = np.repeat(np.arange(3), [d // 2 for d in axes])
    turn = np.exp(1j * places.astype(np.float64)[..., axis] * frequency)[:, :, None, :]
    pairs = x.astype(np.float64).reshape(*x.shape[:-1], -1, 2)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


@pytest.mark.parametrize(
    ("head_dim", "axes"), [(128, (44, 42, 42)), (24, (8, 8, 8)), (64, (24, 20, 20)), (20, (8, 6, 6))]
)
def test_rotation_is_a_complex_product(head_dim, axes):
    rng = np.random.default_rng(head_dim)
    places = rng.integers(-3, 140, size=(2, 9, 3)).astype(np.float32)
    x = rng.normal(size=(2, 9, 3, head_dim)).astype(np.float32)
    got = apply_rotary(jnp.asarray(x), rotary_angles(places, head_dim))
    # An angle of 140 rounded to float32 is off by up to 140 * 2^-24 = 8e-6 twice (frequency, product).
    np.testing.assert_allclose(got, reference_rotation(x, places, axes), atol=8e-5)


def test_flux_axes():
    rng = np.random.default_rng(0)
    places = rng.integers(0, 64, size=(1, 5, 3)).astype(np.float32)
    x = rng.normal(size=(1, 5, 2, 128)).astype(np.float32)
    got = apply_rotary(jnp.asarray(x), rotary_angles(places, 128, axes=(16, 56, 56)))
    np.testing.assert_allclose(got, reference_rotation(x, places, (16, 56, 56)), atol=4e-5)
    with pytest.raises(ValueError, match="three even widths that add up to head_dim=128"):
        rotary_angles(places, 128, axes=(16, 56, 58))


@pytest.mark.parametrize("head_dim", [128, 24, 20])
def test_plain_video_is_diffusers_wan(head_dim):
    grid, patch = (5, 6, 7), (1, 2, 2)
    peer = WanRotaryPosEmbed(head_dim, patch, 1024)
    latent = torch.zeros(1, 16, grid[0], grid[1] * 2, grid[2] * 2)
    cos, sin = (table.numpy()[:, :, 0, 0::2] for table in peer(latent))
    layout = TokenLayout((Segment(kind="video", grid=grid),))
    angles = rotary_angles(positions(layout, SCHEMES["channel-concat"]), head_dim)
    np.testing.assert_allclose(np.cos(angles), cos, atol=2e-6)
    np.testing.assert_allclose(np.sin(angles), sin, atol=2e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31 - 1), shift=st.tuples(*[st.integers(-40, 40)] * 3))
def test_rotation_keeps_norms_and_sees_only_differences(seed, shift):
    rng = np.random.default_rng(seed)
    q, k = (jnp.asarray(rng.normal(size=(1, 6, 2, 24)), jnp.float32) for _ in range(2))
    places = rng.integers(-10, 60, size=(1, 6, 3)).astype(np.float32)
    turned = [apply_rotary(x, rotary_angles(places, 24)) for x in (q, k)]
    moved = [apply_rotary(x, rotary_angles(places + np.array(shift, np.float32)[None, None], 24)) for x in (q, k)]
    np.testing.assert_allclose(jnp.linalg.norm(turned[0], axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5)
    scores = [np.einsum("bqhd,bkhd->bhqk", *pair) for pair in (turned, moved)]
    # Sums of 24 products with angles off by up to 1e-5 each.
    np.testing.assert_allclose(*scores, atol=1e-3)


def test_angles_do_not_depend_on_the_activation_type():
    rng = np.random.default_rng(3)
    angles = rotary_angles(rng.integers(0, 200, size=(1, 4, 3)).astype(np.float32), 24)
    x = jnp.asarray(rng.normal(size=(1, 4, 2, 24)), jnp.bfloat16)
    turned = apply_rotary(x, angles)
    assert angles.dtype == jnp.float32 and turned.dtype == jnp.bfloat16
    # Only the last rounding, to 8 bits, is bfloat16's.
    np.testing.assert_array_equal(turned, apply_rotary(x.astype(jnp.float32), angles).astype(jnp.bfloat16))


def test_angles_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"it must be \[1 or 2, 4, 12\]"):
        apply_rotary(jnp.zeros((2, 4, 1, 24)), jnp.zeros((1, 4, 24)))
