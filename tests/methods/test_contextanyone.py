"""ContextAnyone: the gap, the one-way mask, branches that start at nothing, and the loss of the reconstruction."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax import masks
from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import patchify, unpatchify
from kaleido_jax.methods.contextanyone import ContextAnyone, reconstruct
from kaleido_jax.methods.method import Condition, losses
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.models.wan.modeling import Block

PLAIN = WanConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=3, out_channels=3, text_dim=8, freq_dim=8)
CONFIG = dataclasses.replace(PLAIN, image_dim=12, emphasis=True)
VIDEO, PICTURE, PATCH, TEXT = (2, 2, 3), (1, 2, 3), (1, 2, 2), 4
METHOD = ContextAnyone()
LAYOUT = METHOD.layout(VIDEO, [PICTURE], texts=(TEXT,))


def random_parameters(config, seed=0):
    random = np.random.default_rng(seed)
    graph, shapes = abstract(lambda: WanTransformer(config, nnx.Rngs(0)))
    return graph, {name: jnp.asarray(0.4 * random.normal(size=x.shape), x.dtype) for name, x in shapes.items()}


@pytest.fixture(scope="module")
def network():
    return merge(*random_parameters(CONFIG))


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def condition(seed=0, prompts=1, batch=1):
    return Condition(
        text=draw(batch, prompts * TEXT, 8, seed=seed),
        text_lengths=jnp.full((batch, prompts), TEXT, jnp.int32),
        references=[draw(batch, 1, 4, 6, 3, seed=seed + 1)],
        reference_frames=jnp.ones((batch, 1), jnp.int32),
        subjects=jnp.zeros((batch, 1), jnp.int32),
    )


def answer(network, x, time, given, layout=LAYOUT, method=METHOD):
    table = method.table(layout, jnp.full((1, 1), time), given)
    return network(method.tokens(x, given, PATCH), table, given.text, layout=layout, image=method.image(given, PATCH))


def test_the_video_stands_a_gap_after_the_reference():
    """Gap-RoPE(i) = RoPE(i + beta g_i), g_i = 1 for video tokens: with beta = 4 the reference at 0, the video at 5."""
    for beta, first in ((4, 5), (0, 1)):
        made = ContextAnyone(beta=beta).table(LAYOUT, jnp.full((1, 1), 0.5), condition())
        np.testing.assert_array_equal(np.asarray(made.positions)[0, :, 0], [0] * 6 + [first] * 6 + [first + 1] * 6)
        assert np.asarray(made.positions)[0, 0].tolist() == [0, 0, 0]


def test_both_are_targets_and_lambda_is_the_share_of_frames():
    assert [s.target for s in LAYOUT.segments] == [True, True, False]
    made = METHOD.table(LAYOUT, jnp.full((1, 1), 0.7), condition())
    np.testing.assert_allclose(made.timesteps, [[0.0, 0.7]], rtol=1e-6)
    np.testing.assert_allclose(made.loss_weights, [[1 / 2, 1.0]])  # one frame over two
    made = ContextAnyone(reconstruction=0.0).table(LAYOUT, jnp.full((1, 1), 0.7), condition())
    np.testing.assert_allclose(made.loss_weights, [[0.0, 1.0]])


def test_several_references_are_painted_again_each_by_its_own():
    """Our extension: each stands one frame after the other and weighs lambda; what is absent neither."""
    layout, given = METHOD.layout(VIDEO, [PICTURE] * 2, texts=(TEXT,)), condition(batch=2)
    frames = jnp.asarray([[1, 1], [1, 0]], jnp.int32)
    given = dataclasses.replace(given, reference_frames=frames, subjects=jnp.asarray([[0, 1]] * 2, jnp.int32))
    made = METHOD.table(layout, jnp.full((2, 1), 0.7), given)
    np.testing.assert_allclose(made.loss_weights, [[0.5, 0.5, 1.0], [0.5, 0.0, 1.0]])
    places = np.asarray(made.positions)[:, ::6, 0]
    assert places[0].tolist() == [0, 1, 6, 7] and places[1, [0, 2, 3]].tolist() == [0, 5, 6]
    sees = np.asarray(made.self_mask.dense())
    # References read each other, never the video, which reads those that are there.
    assert sees[0, :12, :12].all() and not sees[0, :12, 12:].any() and sees[0, 12:].all()
    assert not sees[1, 12:, 6:12].any() and sees[1, 12:, :6].all()


def test_the_reference_never_sees_the_video(network):
    """Not in self-attention, nor in Emphasize-Attention, nor over several layers: no bit changes."""
    run = jax.jit(lambda x, t, given: answer(network, x, t, given))
    given = condition()
    one, other = run(draw(1, 2, 4, 6, 3), 0.9, given), run(draw(1, 2, 4, 6, 3, seed=5), 0.2, given)
    np.testing.assert_array_equal(one[:, :6], other[:, :6])
    assert np.abs(one[:, 6:] - other[:, 6:]).max() > 1e-2
    # And the video sees the reference.
    changed = dataclasses.replace(given, references=[given.references[0] + 1.0])
    assert np.abs(run(draw(1, 2, 4, 6, 3), 0.9, changed)[:, 6:] - one[:, 6:]).max() > 1e-3
    # So the reconstruction needs no video at all (1e-5: other lengths of sums).
    alone = reconstruct(METHOD, network, given, layout=LAYOUT, patch=PATCH)
    np.testing.assert_allclose(alone[0], -unpatchify(one[:, :6], PICTURE, PATCH), rtol=1e-5, atol=1e-5)


def test_the_new_branches_start_at_nothing():
    """Fresh branches beside a plain network's weights change nothing; trained ones do."""
    graph, shapes = abstract(lambda: WanTransformer(CONFIG, nnx.Rngs(0)))
    _, old = random_parameters(PLAIN)
    new = {name for name in shapes if name not in old}
    assert {name.split(".")[1] for name in new if name.startswith("blocks")} == {
        "cross_attention",
        "emphasis_attention",
        "emphasis_norm",
    }
    _, drawn = random_parameters(CONFIG, seed=3)
    starts_at_zero = ("emphasis_attention.out", "cross_attention.image_value")
    fresh = {name: 0 * drawn[name] if any(part in name for part in starts_at_zero) else drawn[name] for name in new}
    given, x = condition(), draw(1, 2, 4, 6, 3)
    table = METHOD.table(LAYOUT, jnp.full((1, 1), 0.5), given)
    plain_graph, _ = abstract(lambda: WanTransformer(PLAIN, nnx.Rngs(0)))
    plain = merge(plain_graph, old)(METHOD.tokens(x, given, PATCH), table, given.text, layout=LAYOUT)
    both = jax.jit(lambda weights: answer(merge(graph, weights), x, 0.5, given))
    # Rounding of two programs, for answers up to 8.
    np.testing.assert_allclose(both(old | fresh), plain, rtol=1e-5, atol=1e-5)
    assert np.abs(both(old | {name: drawn[name] for name in new}) - plain).max() > 1e-2


def test_a_network_is_made_with_those_zeros():
    tiny = dataclasses.replace(CONFIG, dim=4, ffn_dim=4, layers=1)
    made = nnx.state(Block(tiny, nnx.Rngs(0)), nnx.Param)
    zero = lambda module: not np.asarray(module["kernel"][...]).any()
    assert zero(made["emphasis_attention"]["out"]) and zero(made["cross_attention"]["image_value"])
    assert not zero(made["emphasis_attention"]["value"]) and not zero(made["cross_attention"]["image_key"])


def test_emphasis_is_videos_reading_references():
    sees = np.asarray(masks.visibility(LAYOUT, masks.emphasis).dense())[0]
    assert sees[6:, :6].all() and not sees[6:, 6:].any() and not sees[:6].any()


def test_the_loss_is_the_videos_and_lambda_times_the_references(network):
    """L_gen + lambda L_ref, each a mean over its own tokens, computed from the answer by hand."""
    given, clean, noise = condition(), draw(1, 2, 4, 6, 3, seed=7), draw(1, 2, 4, 6, 3, seed=8)
    times = jnp.full((1, 1), 0.4)
    run = jax.jit(lambda clean: losses(METHOD, network, clean, noise, times, given, layout=LAYOUT, patch=PATCH))
    out = answer(network, 0.6 * clean + 0.4 * noise, 0.4, given)
    video = ((out[:, 6:] - patchify(noise - clean, PATCH)) ** 2).mean()
    painted = ((-out[:, :6] - patchify(given.references[0], PATCH)) ** 2).mean()
    np.testing.assert_allclose(run(clean)[0], video + painted / 2, rtol=1e-5)


@pytest.mark.parametrize("on", ["latents", "pixels"])
def test_the_gradient_of_both_losses(on):
    """With a linear decoder z M, written out in float64: lambda 2 / N (u + r) M M' of the reference."""
    given, clean, noise = condition(), draw(1, 2, 4, 6, 3, seed=7), draw(1, 2, 4, 6, 3, seed=8)
    method, decoder = ContextAnyone(reconstruction_on=on), np.random.default_rng(3).normal(size=(3, 5))
    fixed = {"layout": LAYOUT, "patch": PATCH, "decode": lambda z: z @ jnp.asarray(decoder, jnp.float32)}

    def loss(out):
        network = lambda tokens, table, text, *, layout, image=None: out
        return losses(method, network, clean, noise, jnp.full((1, 1), 0.4), given, **fixed)[0]

    out = draw(1, 18, 12, seed=9)
    value, gradient = jax.value_and_grad(loss)(out)
    u, reference = (np.asarray(x, np.float64) for x in (unpatchify(out[:, :6], PICTURE, PATCH), given.references[0]))
    change = np.eye(3) if on == "latents" else decoder @ decoder.T
    count = u.size if on == "latents" else u.size // 3 * 5
    expected = patchify(jnp.asarray(0.5 * 2 / count * (u + reference) @ change), PATCH)
    np.testing.assert_allclose(gradient[:, :6], expected, rtol=1e-4, atol=1e-6)
    video = np.asarray(out[:, 6:] - patchify(noise - clean, PATCH), np.float64)
    np.testing.assert_allclose(gradient[:, 6:], 2 / video.size * video, rtol=1e-4, atol=1e-7)
    painted = (((u + reference) @ decoder if on == "pixels" else u + reference) ** 2).mean()
    np.testing.assert_allclose(value, (video**2).mean() + painted / 2, rtol=1e-5)


def test_one_prompt_or_the_references_and_the_videos():
    assert METHOD.prompts("a cat runs") == ("a cat runs",)
    assert METHOD.prompts("a cat || it runs") == ("a cat", "it runs")
    for wrong in ("a || b || c", "a ||", "|| a"):
        with pytest.raises(UsageError, match="takes one prompt, or two as REFERENCE"):
            METHOD.prompts(wrong)


def test_two_prompts_are_read_each_by_its_own_segment():
    layout = METHOD.layout(VIDEO, [PICTURE], texts=(TEXT, TEXT))
    made = METHOD.table(layout, jnp.full((1, 1), 0.5), condition(prompts=2))
    reads = np.asarray(made.text_mask.dense())[0]
    assert reads[:6, :4].all() and not reads[:6, 4:].any()
    assert reads[6:, 4:].all() and not reads[6:, :4].any()


def test_what_is_refused():
    with pytest.raises(UsageError, match="There are 0 references; contextanyone takes 1 to 5"):
        METHOD.layout(VIDEO, [], texts=(TEXT,))
    with pytest.raises(UsageError, match="There are 3 prompts; contextanyone takes one"):
        METHOD.layout(VIDEO, [PICTURE], texts=(TEXT,) * 3)
    with pytest.raises(UsageError, match="beta is -1"):
        ContextAnyone(beta=-1)
