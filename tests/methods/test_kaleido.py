"""Kaleido's conditioning: what the layout says, and that the network never reads what is absent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.methods import kaleido
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
