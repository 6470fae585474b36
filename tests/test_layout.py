"""Layouts against plain counting; patches against torch's strided convolution, which Wan embeds them with."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaleido_jax.layout import Contents, Segment, TokenLayout, patchify, unpatchify


@pytest.fixture
def as_users_run_it():
    """Run-time type checks off, so that the library's own checks speak."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


LAYOUT = TokenLayout(
    (
        Segment(kind="text", grid=(3, 1, 1)),
        Segment(kind="reference", grid=(1, 2, 2), subject=1),
        Segment(kind="video", grid=(2, 2, 3)),
        Segment(kind="text", grid=(1, 1, 1), shot=1),
    )
)


def test_segments_know_their_stream_and_whether_they_are_the_target():
    text, reference, video, _ = LAYOUT.segments
    assert (text.stream, reference.stream, video.stream) == ("text", "visual", "visual")
    assert (text.target, reference.target, video.target) == (False, False, True)
    assert Segment(kind="reference", grid=(1, 2, 2), target=True).target
    assert Segment(kind="video", grid=(1, 2, 2)) == Segment(kind="video", grid=(1, 2, 2), stream="visual", target=True)


def test_token_order():
    assert [LAYOUT.tokens(), LAYOUT.tokens("visual"), LAYOUT.tokens("text")] == [20, 16, 4]
    assert LAYOUT.slices() == (slice(0, 3), slice(3, 7), slice(7, 19), slice(19, 20))
    assert LAYOUT.slices("visual") == (slice(0, 4), slice(4, 16))
    assert LAYOUT.segment_ids("visual").tolist() == [0] * 4 + [1] * 12
    assert LAYOUT.token_indices("text").tolist() == [0, 1, 2, 19]
    assert LAYOUT.indices("text") == (0, 3)
    assert LAYOUT.select("text") == (LAYOUT.segments[0], LAYOUT.segments[3])


def test_a_layout_is_a_key():
    same = TokenLayout(tuple(dataclasses.replace(segment) for segment in LAYOUT.segments))
    assert hash(same) == hash(LAYOUT) and same == LAYOUT
    assert TokenLayout(LAYOUT.segments[:2]) != LAYOUT


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "picture", "grid": (1, 1, 1)}, "Segment.kind is 'picture'"),
        ({"kind": "video", "grid": (1, 0, 2)}, r"Segment.grid is \(1, 0, 2\)"),
        ({"kind": "text", "grid": (4, 2, 1)}, "must be \\(tokens, 1, 1\\)"),
        ({"kind": "video", "grid": (1, 1, 1), "subject": -1}, "Segment.subject is -1"),
        ({"kind": "video", "grid": (1, 1, 1), "stream": "audio"}, "Segment.stream is 'audio'"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_wrong_segment_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Segment(**fields)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_wrong_layout_is_refused():
    with pytest.raises(ValueError, match="empty"):
        TokenLayout(())
    with pytest.raises(ValueError, match="holds 'video'; it must hold Segments only"):
        TokenLayout(("video",))
    with pytest.raises(ValueError, match="stream is 'audio'"):
        LAYOUT.tokens("audio")


def test_contents_default_to_the_layout():
    contents = LAYOUT.contents()
    assert contents.lengths.tolist() == [[3, 4, 12, 1]]
    assert contents.subjects.tolist() == [[0, 1, 0, 0]]
    assert contents.samples.tolist() == [[0, 0, 0, 0]]


def test_contents_take_the_batch_of_what_is_given():
    contents = LAYOUT.contents(lengths=np.array([[3, 4, 12, 1], [2, 0, 12, 1]]))
    assert contents.subjects.shape == (2, 4) and contents.lengths.dtype == np.int32
    traced = jax.jit(lambda n: LAYOUT.contents(lengths=n))(jnp.ones((2, 4), jnp.int32))
    assert isinstance(traced, Contents) and traced.samples.shape == (2, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lengths": np.ones((2, 3), np.int32)}, r"lengths has shape \(2, 3\); it must be \[batch, 4\]"),
        ({"lengths": np.ones((2, 4), np.float32)}, "lengths has dtype float32"),
        ({"lengths": np.full((1, 4), 9, np.int32)}, r"between 0 and the segment's \[3, 4, 12, 1\]"),
        (
            {"lengths": np.ones((2, 4), np.int32), "subjects": np.ones((3, 4), np.int32)},
            "lengths has 2, subjects has 3",
        ),
    ],
)
def test_wrong_contents_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        LAYOUT.contents(**given)


grids = st.tuples(*[st.integers(1, 3)] * 3)


@settings(deadline=None, max_examples=8)
@given(grid=grids, patch=grids, channels=st.integers(1, 3), batch=st.integers(1, 2))
def test_patchify_round_trip(grid, patch, channels, batch):
    size = tuple(n * p for n, p in zip(grid, patch))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(batch, *size, channels)), jnp.float32)
    tokens = patchify(x, patch)
    assert tokens.shape == (batch, np.prod(grid), np.prod(patch) * channels)
    np.testing.assert_array_equal(unpatchify(tokens, grid, patch), x)


def test_patches_are_those_of_a_strided_convolution():
    rng = np.random.default_rng(1)
    patch, x = (2, 2, 3), rng.normal(size=(2, 4, 6, 9, 3)).astype(np.float32)
    weight = rng.normal(size=(5, 3, *patch)).astype(np.float32)  # out, c, pt, ph, pw
    expected = torch.nn.functional.conv3d(torch.tensor(x).permute(0, 4, 1, 2, 3), torch.tensor(weight), stride=patch)
    expected = expected.flatten(2).transpose(1, 2).numpy()
    tokens = np.asarray(patchify(jnp.asarray(x), patch))
    got = tokens @ weight.transpose(2, 3, 4, 1, 0).reshape(-1, 5)
    # Sums of 36 products in float32 in two orders.
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_size_that_does_not_divide_names_the_nearest():
    with pytest.raises(ValueError, match=r"height of the input is 7; .* patch size 2 \(nearest: 6 or 8\)"):
        patchify(jnp.zeros((1, 1, 7, 8, 3)), (1, 2, 2))
    with pytest.raises(ValueError, match="tokens has 5 tokens; the grid"):
        unpatchify(jnp.zeros((1, 5, 4)), (1, 2, 2), (1, 2, 2))
    with pytest.raises(ValueError, match="a token has 6 values; it must be a multiple of 4"):
        unpatchify(jnp.zeros((1, 4, 6)), (1, 2, 2), (1, 2, 2))
