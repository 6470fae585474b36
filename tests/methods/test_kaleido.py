"""Kaleido's conditioning: what the layout says, and that the network never reads what is absent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax import rope
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import patchify, unpatchify
from kaleido_jax.methods import kaleido
from kaleido_jax.methods.kaleido import Kaleido
from kaleido_jax.methods.method import Condition, losses, velocity
from kaleido_jax.models.wan import WanConfig, WanTransformer

VIDEO, PICTURE, TEXT = (2, 3, 4), (1, 3, 4), 5
CONFIG = WanConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=3, out_channels=3, text_dim=8, freq_dim=8)


def layout(references: int):
    return kaleido.layout(VIDEO, [PICTURE] * references, text_tokens=TEXT)


def table(references: int, counts: list[int], lengths: list[int], **options):
    return kaleido.table(
        layout(references),
        times=jnp.linspace(0.2, 0.8, len(counts), dtype=jnp.float32),
        reference_counts=jnp.asarray(counts, jnp.int32),
        text_lengths=jnp.asarray(lengths, jnp.int32),
        **options,
    )


@pytest.fixture(scope="module")
def network():
    graph, state = nnx.split(WanTransformer(CONFIG, nnx.Rngs(0)))
    # The head starts at zero, so every weight is redrawn: otherwise all outputs would be equal for the wrong reason.
    keys = iter(jax.random.split(jax.random.key(1), 100))
    state = jax.tree.map(lambda x: 0.3 * jax.random.normal(next(keys), x.shape, x.dtype), state)
    run = lambda tokens, table, text, layout: nnx.merge(graph, state)(tokens, table, text, layout=layout)
    return jax.jit(run, static_argnums=3)


def inputs(references: int, batch: int, seed: int = 0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    return draw(batch, 2, 6, 8, 3), [draw(batch, 1, 6, 8, 3) for _ in range(references)], draw(batch, TEXT, 8)


def test_references_come_first_and_only_the_video_is_predicted():
    segments = layout(2).segments
    assert [s.kind for s in segments] == ["reference", "reference", "video", "text"]
    assert [s.target for s in segments] == [False, False, True, False]
    video, pictures, _ = inputs(2, 1)
    tokens = kaleido.tokens(video, pictures, CONFIG.patch)
    np.testing.assert_array_equal(tokens[:, 12:24], kaleido.tokens(pictures[1], [], CONFIG.patch))


def test_positions_are_those_of_equation_4():
    """The i-th of N references stands at time i - 1 and starts at row H and column W, behind the video's last ones."""
    positions = np.asarray(table(2, [2], [TEXT]).positions)
    frames, height, width = VIDEO
    expected = [(i, height + row, width + column) for i in range(2) for row in range(height) for column in range(width)]
    expected += [(f, row, column) for f in range(frames) for row in range(height) for column in range(width)]
    np.testing.assert_array_equal(positions[0], np.asarray(expected, np.float32))


def test_references_have_the_videos_time_and_no_loss():
    made = table(2, [2, 1], [TEXT, 3])
    np.testing.assert_allclose(made.timesteps, np.tile([[0.2], [0.8]], (1, 3)), rtol=1e-6)
    np.testing.assert_array_equal(made.loss_weights, [[0.0, 0.0, 1.0]] * 2)


def test_what_is_absent_is_never_read(network):
    """Changing absent references and padded text changes no bit of the velocity."""
    video, pictures, text = inputs(3, 3)
    made, bucket = table(3, [1, 2, 3], [2, 5, 1]), layout(3)
    base = network(kaleido.tokens(video, pictures, CONFIG.patch), made, text, bucket)
    assert base.shape == (3, 24, 12)

    absent = np.arange(3)[None] >= np.asarray([[1], [2], [3]])
    changed = [
        p + 100.0 * jnp.asarray(absent[:, i], jnp.float32)[:, None, None, None, None] for i, p in enumerate(pictures)
    ]
    padded = np.arange(TEXT)[None] >= np.asarray([[2], [5], [1]])
    other = text + 100.0 * jnp.asarray(padded, jnp.float32)[:, :, None]
    np.testing.assert_array_equal(network(kaleido.tokens(video, changed, CONFIG.patch), made, other, bucket), base)

    # And what is present is read.
    present = [pictures[0] + 1.0, *pictures[1:]]
    assert np.abs(network(kaleido.tokens(video, present, CONFIG.patch), made, text, bucket) - base).max() > 1e-3


def test_a_bucket_does_not_change_a_sample(network):
    """One reference in a bucket of three equals one reference in a bucket of one (1e-5: sums of other lengths)."""
    video, pictures, text = inputs(3, 1)
    large = network(kaleido.tokens(video, pictures, CONFIG.patch), table(3, [1], [4]), text, layout(3))
    small = network(kaleido.tokens(video, pictures[:1], CONFIG.patch), table(1, [1], [4]), text, layout(1))
    np.testing.assert_allclose(large, small, rtol=1e-5, atol=1e-5)


def test_subjects_may_have_several_pictures_and_be_traced():
    made = jax.jit(lambda shown: table(3, [3], [TEXT], subjects=shown, scheme="negative-time"))(
        jnp.asarray([[0, 0, 1]], jnp.int32)
    )
    times = np.asarray(made.positions)[0, :36, 0].reshape(3, 12)
    # Two pictures of one subject are told apart in time; the other subject starts anew.
    assert (times == times[:, :1]).all()
    assert times[0, 0] != times[1, 0]
    assert times[0, 0] == times[2, 0]


def test_an_unknown_scheme_names_the_nearest():
    with pytest.raises(ValueError, match="shift-wh"):
        table(1, [1], [TEXT], scheme="shift-hw")


def condition(references: list, frames, lengths: list[int], text, subjects=None) -> Condition:
    batch = len(lengths)
    return Condition(
        text=text,
        text_lengths=jnp.asarray(lengths, jnp.int32)[:, None],
        references=references,
        reference_frames=jnp.asarray(frames, jnp.int32),
        subjects=jnp.asarray(subjects or [list(range(len(references)))] * batch, jnp.int32),
    )


def test_the_method_makes_the_same_table_as_its_functions():
    video, pictures, text = inputs(2, 2)
    method = Kaleido()
    bucket = method.layout(VIDEO, [PICTURE] * 2, texts=(TEXT,))
    assert bucket == layout(2)
    made = method.table(bucket, jnp.asarray([[0.2], [0.8]]), condition(pictures, [[1, 1], [1, 0]], [5, 3], text))
    same = table(2, [2, 1], [TEXT, 3])
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


@pytest.mark.parametrize("scheme", ["shift-h", "shift-wh-released", "negative-time", "gap"])
def test_any_scheme_that_places_references_can_be_chosen(scheme):
    video, pictures, text = inputs(2, 1)
    method = Kaleido(scheme=scheme)
    made = method.table(layout(2), jnp.full((1, 1), 0.5), condition(pictures, [[1, 1]], [4], text))
    expected = rope.positions(layout(2), rope.SCHEMES[scheme], layout(2).contents(lengths=np.array([[12, 12, 24, 4]])))
    np.testing.assert_array_equal(made.positions, expected)


def test_references_may_be_pinned_at_zero_and_blind_to_the_video():
    _, pictures, text = inputs(1, 1)
    method = Kaleido(reference_time="zero", rule="unidirectional", references_read_text=False)
    made = method.table(layout(1), jnp.full((1, 1), 0.7), condition(pictures, [[1]], [TEXT], text))
    np.testing.assert_allclose(made.timesteps, [[0.0, 0.7]], rtol=1e-6)
    assert made.self_mask is not None and made.text_mask is not None
    sees = np.asarray(made.self_mask.dense())[0]
    assert sees[12:].all() and sees[:12, :12].all() and not sees[:12, 12:].any()
    reads = np.asarray(made.text_mask.dense())[0]
    assert reads[12:].all() and not reads[:12].any()


def test_a_clip_shorter_than_its_slot_takes_the_room_that_it_needs():
    """A slot of two frames with one in it: the next reference stands where a picture would let it."""
    slots = [(2, 3, 4), PICTURE]
    bucket = Kaleido(scheme="concat-before").layout(VIDEO, slots, texts=(TEXT,))
    _, pictures, text = inputs(2, 2)
    made = Kaleido(scheme="concat-before").table(
        bucket, jnp.full((2, 1), 0.5), condition(pictures, [[1, 1], [2, 1]], [4, 4], text)
    )
    np.testing.assert_array_equal(made.lengths, [[12, 12, 24, 4], [24, 12, 24, 4]])
    np.testing.assert_array_equal(made.positions[:, 24, 0], [1, 2])
    np.testing.assert_array_equal(made.positions[:, 36, 0], [2, 3])


def test_channel_concat_has_no_reference_tokens():
    """Channels after the video's own: each reference over all frames, and zeros where there is none."""
    method = Kaleido(scheme="channel-concat")
    bucket = method.layout(VIDEO, [PICTURE] * 2, texts=(TEXT,))
    assert [s.kind for s in bucket.segments] == ["video", "text"]
    video, pictures, text = inputs(2, 2)
    given = condition(pictures, [[1, 1], [1, 0]], [4, 4], text)
    tokens = method.tokens(video, given, CONFIG.patch)
    assert tokens.shape == (2, 24, 4 * method.in_channels(3, 2))
    whole = np.asarray(unpatchify(tokens, VIDEO, CONFIG.patch))
    np.testing.assert_array_equal(whole[..., :3], video)
    for frame in range(2):
        np.testing.assert_array_equal(whole[:, frame, ..., 3:6], pictures[0][:, 0])
        np.testing.assert_array_equal(whole[0, frame, ..., 6:], pictures[1][0, 0])
    assert not whole[1, ..., 6:].any()
    made = method.table(bucket, jnp.full((2, 1), 0.5), given)
    assert made.positions.shape == (2, 24, 3) and not np.asarray(made.positions)[0, 0].any()


def test_the_loss_is_the_mean_over_the_videos_tokens(network):
    video, pictures, text = inputs(2, 2)
    given = condition(pictures, [[1, 1], [1, 0]], [4, 2], text)
    noise, times = inputs(0, 2, seed=1)[0], jnp.asarray([[0.3], [0.9]])
    method, bucket = Kaleido(), layout(2)
    run = lambda tokens, table, text, *, layout, image=None: network(tokens, table, text, layout)
    loss = losses(method, run, video, noise, times, given, layout=bucket, patch=CONFIG.patch)
    noisy = (1 - times[:, :, None, None, None]) * video + times[:, :, None, None, None] * noise
    out = run(
        method.tokens(noisy, given, CONFIG.patch), method.table(bucket, times, given), text, layout=bucket, image=None
    )
    error = np.asarray(out) - np.asarray(patchify(noise - video, CONFIG.patch))
    np.testing.assert_allclose(loss, (error**2).mean(axis=(1, 2)), rtol=1e-5)
    answer = velocity(method, run, noisy, times, given, layout=bucket, patch=CONFIG.patch)
    np.testing.assert_allclose(answer, unpatchify(out, VIDEO, CONFIG.patch), rtol=1e-6)


def test_several_prompts_are_refused():
    with pytest.raises(UsageError, match="kaleido takes one"):
        Kaleido().layout(VIDEO, [PICTURE], texts=(3, 3))
