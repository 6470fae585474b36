"""AnyID: where references stand, that they are clean and say so, what counts in the loss, and who reads whom."""

import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.diffusion import guidance
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.layout import patchify
from kaleido_jax.methods.anyid import AnyID
from kaleido_jax.methods.differential import primary_first
from kaleido_jax.methods.leaks import leak
from kaleido_jax.methods.method import Condition, losses

VIDEO, CLIP, PATCH = (3, 2, 2), (2, 2, 2), (1, 2, 2)


def condition(frames, lengths, clips=2, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    batch = len(lengths)
    return Condition(
        text=draw(batch, 4, 6),
        text_lengths=jnp.asarray(lengths, jnp.int32)[:, None],
        references=[draw(batch, 2, 4, 4, 3) for _ in range(clips)],
        reference_frames=jnp.asarray(frames, jnp.int32),
        subjects=jnp.zeros((batch, clips), jnp.int32),
    )


def bucket(method=None, clips=2):
    return (method or AnyID()).layout(VIDEO, [CLIP] * clips, texts=(4,))


def test_the_first_reference_is_the_primary_one_and_only_the_video_is_predicted():
    segments = bucket().segments
    assert [(s.kind, s.primary, s.target) for s in segments] == [
        ("reference", True, False),
        ("reference", False, False),
        ("video", False, True),
        ("text", False, False),
    ]
    assert {s.subject for s in segments} == {0} and [s.picture for s in segments[:2]] == [0, 1]


def test_references_carry_time_zero_and_no_loss():
    made = AnyID().table(bucket(), jnp.asarray([[0.25], [0.75]]), condition([[2, 1], [1, 0]], [4, 2]))
    np.testing.assert_allclose(made.timesteps, [[0, 0, 0.25], [0, 0, 0.75]], rtol=1e-6)
    np.testing.assert_array_equal(made.loss_weights, [[0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(made.lengths, [[8, 4, 12, 4], [4, 0, 12, 2]])


@pytest.mark.parametrize(
    ("scheme", "starts"),
    [
        # Three frames of video, then a clip of two and a picture, and the same in front; pictures close up.
        ("concat-after", [[3, 5, 0], [3, 4, 0]]),
        ("concat-before", [[0, 2, 3], [0, 1, 2]]),
        ("negative-time", [[-2, -3, 0], [-1, -2, 0]]),
    ],
)
def test_placement(scheme, starts):
    method = AnyID(scheme=scheme)
    made = method.table(bucket(method), jnp.full((2, 1), 0.5), condition([[2, 1], [1, 1]], [4, 4]))
    np.testing.assert_array_equal(np.asarray(made.positions)[:, [0, 8, 16], 0], starts)


def test_who_reads_whom():
    given, times = condition([[2, 1]], [3]), jnp.full((1, 1), 0.5)
    present = np.array([1] * 12 + [0] * 4 + [1] * 12, bool)

    def sees(**options):
        made = AnyID(**options).table(bucket(), times, given)
        return np.asarray(made.self_mask.dense())[0], np.asarray(made.text_mask.dense())[0]

    whole, text = sees()
    np.testing.assert_array_equal(whole, present[:, None] & present[None])
    np.testing.assert_array_equal(text, present[:, None] & (np.arange(4) < 3)[None])
    one_way, text = sees(rule="unidirectional", references_read_text=False)
    video = np.arange(28) >= 16
    np.testing.assert_array_equal(one_way, whole & (video[:, None] | ~video[None]))
    assert not text[:16].any() and text[16:, :3].all()
    apart, _ = sees(rule="separate-references")
    assert not apart[:8, 8:16].any() and apart[:8, 16:].all() and apart[16:, :12].all()


def test_only_the_videos_tokens_are_in_the_loss():
    """With a network that answers noise, the loss is the mean over the video's tokens of the squared error."""
    random, given = np.random.default_rng(0), condition([[2, 1], [1, 0]], [4, 2])
    clean, noise = (jnp.asarray(random.normal(size=(2, 3, 4, 4, 3)), jnp.float32) for _ in range(2))
    answer = jnp.asarray(random.normal(size=(2, 12, 12)), jnp.float32)
    seen = {}

    def network(tokens, table, text, *, layout, image=None):
        seen["tokens"] = tokens
        return answer

    times = jnp.asarray([[0.25], [0.75]])
    found = losses(AnyID(), network, clean, noise, times, given, layout=bucket(), patch=PATCH)
    expected = ((np.asarray(answer) - np.asarray(patchify(noise - clean, PATCH))) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # References enter clean, whatever the time is.
    np.testing.assert_array_equal(seen["tokens"][:, :8], patchify(given.references[0], PATCH))


def test_guidance_has_one_empty_branch():
    """(1 - g) v(nothing) + g v(all), in two passes (the paper's equation in section 3.3)."""
    rule = AnyID().guidance(5.0)
    assert rule.weights == (-4.0, 5.0)
    assert rule.branches == (guidance.Branch(text="empty", references="zero_pixels"), guidance.PROMPT)


@pytest.mark.parametrize("count", [0, 6])
def test_no_or_too_many_references(count):
    with pytest.raises(UsageError, match=f"There are {count} references; anyid takes 1 to 5"):
        bucket(clips=count)


def test_the_primary_reference_comes_first():
    assert primary_first("abc", 2) == ["b", "a", "c"]
    for number in (0, 4):
        with pytest.raises(InputError, match=f"number {number}, and there are 3; it must be a number from 1 to 3"):
            primary_first("abc", number)
    with pytest.raises(InputError, match="no reference"):
        primary_first("", 1)


def test_a_first_frame_that_is_a_reference_is_found():
    random = np.random.default_rng(0)
    draw = lambda frames: random.integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    video, clip, picture = draw(5), draw(3), draw(1)
    assert leak(video, [clip, picture]).leaked == ()
    # A copy with noise of a tenth of its range, and brighter.
    copy = np.clip(0.8 * clip[1].astype(float) + 40 + random.normal(0, 15, clip[1].shape), 0, 255).astype(np.uint8)
    found = leak(np.concatenate([copy[None], video[1:]]), [picture, clip])
    assert found.leaked == (1,) and found.first[1] > 0.9 > 0.5 > found.later[1]
    assert leak(np.full_like(video, 7), [clip]).first == (0.0,)
