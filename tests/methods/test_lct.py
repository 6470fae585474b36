"""Long Context Tuning: a time and a prompt for each shot, causal shots, and the cache that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax import rope
from kaleido_jax.bundle import abstract, merge
from kaleido_jax.diffusion import guidance, samplers
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import patchify
from kaleido_jax.methods.lct import LCT, autoregress, hold, scene_prompts
from kaleido_jax.methods.method import Condition, losses, velocity
from kaleido_jax.models.mmdit import MMDiTConfig, VideoMMDiT
from kaleido_jax.models.wan import WanConfig, WanTransformer

CONFIG = WanConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=3, out_channels=3, text_dim=8, freq_dim=8)
PATCH, TEXT = (1, 2, 2), 3
SHOTS, FRAME = 3, 6  # tokens of a frame; a shot is one frame
VIDEO = (SHOTS, 2, 3)
SIZE = (SHOTS, 4, 6, 3)


@pytest.fixture(scope="module")
def network():
    random = np.random.default_rng(0)
    graph, shapes = abstract(lambda: WanTransformer(CONFIG, nnx.Rngs(0)))
    return merge(graph, {n: jnp.asarray(0.4 * random.normal(size=x.shape), x.dtype) for n, x in shapes.items()})


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def condition(lengths, seed=0):
    batch = len(lengths)
    return Condition(
        text=draw(batch, (1 + SHOTS) * TEXT, 8, seed=seed),
        text_lengths=jnp.asarray(lengths, jnp.int32),
        references=[],
        reference_frames=jnp.zeros((batch, 0), jnp.int32),
        subjects=jnp.zeros((batch, 0), jnp.int32),
    )


WHOLE = [[TEXT] * (1 + SHOTS)]


def bucket(method):
    return method.layout(VIDEO, [], texts=(TEXT,) * (1 + SHOTS))


def table(method, lengths=None, times=None):
    lengths = lengths or WHOLE
    times = jnp.asarray(times or [[0.2, 0.5, 0.9]] * len(lengths), jnp.float32)
    return method.table(bucket(method), times, condition(lengths))


def dense(mask):
    return np.asarray(mask.dense())[0].astype(int)


def test_every_shot_has_its_own_time_and_weighs_the_same():
    """The loss is computed for each shot and then averaged; a dummy is clean and in no loss."""
    made = table(LCT())
    np.testing.assert_allclose(made.timesteps, [[0.2, 0.5, 0.9]], rtol=1e-6)
    np.testing.assert_allclose(made.loss_weights, [[1 / 3] * 3], rtol=1e-6)
    made = table(LCT(global_prompt="dummy"))
    np.testing.assert_allclose(made.timesteps, [[0, 0.2, 0.5, 0.9]], rtol=1e-6)
    np.testing.assert_allclose(made.loss_weights, [[0] + [1 / 3] * 3], rtol=1e-6)
    assert LCT().draws(bucket(LCT())) == SHOTS


def test_a_single_shot_in_the_bucket_of_a_scene():
    """It has no global prompt; the other shots are absent and weigh nothing."""
    made = table(LCT(), [[0, 2, 0, 0], [3, 3, 3, 0]])
    np.testing.assert_allclose(made.loss_weights, [[1, 0, 0], [1 / 2, 1 / 2, 0]])
    np.testing.assert_array_equal(np.asarray(made.lengths), [[0, 2, 6, 0, 0, 0, 0], [3, 3, 6, 3, 6, 0, 0]])


def test_positions_follow_the_diagonal():
    """Each shot starts where its prompt ends, on all three axes, and ends where the widest of (1, 2, 3) does."""
    first = np.asarray(table(LCT()).positions)[0, ::FRAME]
    np.testing.assert_array_equal(first, [[start] * 3 for start in (3 + 3, 9 + 3, 15 + 3)])
    layout = bucket(LCT())
    expected = rope.positions(layout, rope.SCHEMES["interleaved-continuing-time"])
    np.testing.assert_array_equal(table(LCT(scheme="interleaved-continuing-time")).positions, expected)


def test_prompts_are_read_by_their_shots():
    blocks = lambda mask: dense(mask)[::FRAME, ::TEXT]
    np.testing.assert_array_equal(blocks(table(LCT()).text_mask), [[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]])
    made = table(LCT(global_prompt="dummy"))
    np.testing.assert_array_equal(blocks(made.text_mask), np.eye(4))
    short = dense(table(LCT(), [[1, 2, 3, 3]]).text_mask)
    np.testing.assert_array_equal(short[0], [1, 0, 0, 1, 1, 0] + [0] * 6)


def test_who_reads_whom():
    blocks = lambda made: dense(made.self_mask)[::FRAME, ::FRAME]
    np.testing.assert_array_equal(blocks(table(LCT())), np.ones((3, 3)))
    np.testing.assert_array_equal(blocks(table(LCT(attention="causal"))), np.tril(np.ones((3, 3))))
    made = table(LCT(attention="causal", global_prompt="dummy"))
    np.testing.assert_array_equal(blocks(made), np.tril(np.ones((4, 4))))
    np.testing.assert_array_equal(blocks(table(LCT(), [[3, 3, 0, 3]])), [[1, 0, 1], [0, 0, 0], [1, 0, 1]])


def test_each_shot_is_noised_by_its_own_time_and_the_losses_are_averaged():
    seen, clean, noise = {}, draw(1, *SIZE), draw(1, *SIZE, seed=1)
    answer = draw(1, SHOTS * FRAME, 12, seed=2)

    def network(tokens, table, text, *, layout, image=None):
        seen["tokens"] = tokens
        return answer

    times = np.array([[0.2, 0.5, 0.9]], np.float32)
    found = losses(
        LCT(), network, clean, noise, jnp.asarray(times), condition(WHOLE), layout=bucket(LCT()), patch=PATCH
    )
    level = times[:, :, None, None, None]
    expected = patchify(jnp.asarray((1 - level) * np.asarray(clean) + level * np.asarray(noise)), PATCH)
    np.testing.assert_allclose(seen["tokens"], expected, rtol=1e-5, atol=1e-6)
    error = np.asarray((answer - patchify(noise - clean, PATCH)) ** 2).reshape(SHOTS, -1).mean(axis=1)
    np.testing.assert_allclose(found[0], error.mean(), rtol=1e-5)


def test_a_shot_that_is_given_stays_at_a_low_noise():
    x, given, noise = draw(1, *SIZE), draw(1, *SIZE, seed=1), draw(1, *SIZE, seed=2)
    scene, times = hold(x, jnp.asarray(0.8), given, noise, jnp.asarray([False, True, False]), level=0.25)
    np.testing.assert_allclose(times, [[0.8, 0.25, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(scene[:, 1], 0.75 * given[:, 1] + 0.25 * noise[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(scene[:, ::2], x[:, ::2])


@pytest.mark.parametrize("global_prompt", ["read", "dummy"])
def test_kept_shots_change_nothing(network, global_prompt):
    """Shot by shot with a cache, and the same with the whole scene run every time. 1e-4: three shots of three steps."""
    method = LCT(attention="causal", global_prompt=global_prompt)
    layout, given = bucket(method), condition(WHOLE * 2)
    rule, steps = guidance.text_guidance(2.0), samplers.euler(3, 1.0)
    noise, level = draw(1, *SIZE, seed=4), 0.1
    options = {"layout": layout, "patch": PATCH}
    run = jax.jit(lambda n: autoregress(method, network, n, given, rule=rule, steps=steps, level=level, **options))
    made = run(noise)

    whole = jax.jit(lambda scene, times: velocity(method, network, scene, times, given, **options))
    scene = np.asarray(noise).copy()
    for shot in range(SHOTS):
        times = np.linspace(1, 0, 4, dtype=np.float32)
        for now, following in zip(times[:-1], times[1:]):
            shown = [level] * shot + [now] + [1.0] * (SHOTS - shot - 1)
            mixed = scene.copy()
            mixed[:, :shot] = (1 - level) * scene[:, :shot] + level * np.asarray(noise)[:, :shot]
            both = jnp.asarray(np.concatenate([mixed, mixed]))
            plain, prompted = np.asarray(whole(both, jnp.asarray([shown, shown], jnp.float32)))[:, shot]
            scene[0, shot] += (following - now) * (plain + 2.0 * (prompted - plain))
    assert np.abs(scene - np.asarray(noise)).max() > 0.5
    np.testing.assert_allclose(made, scene, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def mmdit():
    random = np.random.default_rng(7)
    config = MMDiTConfig(dim=24, ffn_dim=32, heads=2, layers=3, channels=3, text_dim=8, freq_dim=8)
    graph, shapes = abstract(lambda: VideoMMDiT(config, nnx.Rngs(0)))
    return merge(graph, {n: jnp.asarray(0.3 * random.normal(size=x.shape), x.dtype) for n, x in shapes.items()})


def test_the_same_scene_on_an_mmdit(mmdit):
    """Prompts stand in the sequence; shots made one by one with a cache are those of the whole scene, within 1e-4."""
    method = LCT(attention="causal", global_prompt="dummy", prompts_in="sequence")
    layout, given = bucket(method), condition(WHOLE)
    own_table = method.table(layout, jnp.asarray([[0.2, 0.5, 0.9]]), given)
    assert own_table.positions.shape == (1, layout.tokens(), 3) and layout.tokens() == 4 * (TEXT + FRAME)
    seen = dense(own_table.self_mask)
    shot = np.repeat(np.arange(4), TEXT + FRAME)  # the global prompt with its dummy, then each prompt with its shot
    np.testing.assert_array_equal(seen, shot[:, None] >= shot[None])
    rule, steps, level = guidance.text_guidance(1.0), samplers.euler(2, 1.0), 0.1
    noise, options = draw(1, *SIZE, seed=4), {"layout": layout, "patch": PATCH}
    run = jax.jit(lambda n: autoregress(method, mmdit, n, given, rule=rule, steps=steps, level=level, **options))
    made = run(noise)
    whole = jax.jit(lambda scene, times: velocity(method, mmdit, scene, times, given, **options))
    scene = np.asarray(noise).copy()
    for number in range(SHOTS):
        for now, following in ((1.0, 0.5), (0.5, 0.0)):
            mixed = scene.copy()
            mixed[:, :number] = (1 - level) * scene[:, :number] + level * np.asarray(noise)[:, :number]
            times = [[level] * number + [now] + [1.0] * (SHOTS - number - 1)]
            answer = np.asarray(whole(jnp.asarray(mixed), jnp.asarray(times, jnp.float32)))[:, number]
            scene[:, number] += (following - now) * answer
    assert np.abs(scene - np.asarray(noise)).max() > 0.1
    np.testing.assert_allclose(made, scene, rtol=1e-4, atol=1e-4)
    # Trained as on Wan: every shot at its own time, the same mean over shots.
    together = LCT(global_prompt="dummy", prompts_in="sequence")
    clean, times = draw(1, *SIZE, seed=5), jnp.asarray([[0.2, 0.5, 0.9]])
    level = np.asarray(times)[:, :, None, None, None]

    @jax.jit
    def both(clean, mixed):
        found = losses(together, mmdit, clean, noise, times, given, **options)
        return found, velocity(together, mmdit, mixed, times, given, **options)

    found, answer = both(clean, (1 - level) * clean + level * noise)
    np.testing.assert_allclose(found[0], np.square(answer - (noise - clean)).mean(), rtol=1e-5)


def test_shots_one_by_one_need_causal_attention(network):
    with pytest.raises(UsageError, match="only with attention=causal"):
        autoregress(
            LCT(),
            network,
            draw(1, *SIZE),
            condition(WHOLE),
            rule=guidance.text_guidance(1.0),
            steps=samplers.euler(1, 1.0),
            layout=bucket(LCT()),
            patch=PATCH,
        )


def test_the_prompt_of_a_scene():
    assert scene_prompts("a story||a cat || a dog ") == ("a story", "a cat", "a dog")
    assert scene_prompts("|| a cat") == ("", "a cat")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LCT(prompts_in="sequence"), "global_prompt must be dummy"),
        (lambda: LCT().layout((10, 2, 3), [], texts=(TEXT,) * 11), "There are 10 shots.* in parts of 9 and 1"),
        (lambda: LCT().layout(VIDEO, [], texts=(TEXT,)), "There is no shot"),
        (lambda: LCT().layout((4, 2, 3), [], texts=(TEXT,) * 4), "4 latent frames, which 3 shots do not divide"),
        (lambda: LCT().layout(VIDEO, [(1, 2, 3)], texts=(TEXT,) * 4), "There are 1 references, and lct takes none"),
        (lambda: scene_prompts("a story"), "There is no shot; write .* SCENE || SHOT"),
        (lambda: scene_prompts("a story || a cat || || a dog"), "Shot 2 has no prompt"),
        (lambda: scene_prompts(" || ".join(["a cat"] * 21)), "There are 20 shots.* parts of 9 and 9 and 2"),
    ],
)
def test_scenes_that_cannot_be_made(make, words):
    with pytest.raises(UsageError, match=words):
        make()
