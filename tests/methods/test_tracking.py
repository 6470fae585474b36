"""Points of references that a video's tokens read once more: two layers written out by hand, and the whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import UsageError
from kaleido_jax.methods.kaleido import Kaleido
from kaleido_jax.methods.method import Condition, velocity
from kaleido_jax.methods.tracking import ReferenceTracking
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.rope import apply_rotary

CONFIG = WanConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=3, out_channels=3, text_dim=8, freq_dim=8)
PATCH, TEXT, THRESHOLD = (1, 2, 2), 3, 0.1
METHOD = Kaleido(tracking=THRESHOLD)
LAYOUT = METHOD.layout((2, 1, 2), [(1, 1, 2), (1, 1, 2)], texts=(TEXT,))  # 2 + 2 tokens of references, 4 of the video


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def condition(references=2):
    return Condition(
        text=draw(1, TEXT, 8),
        text_lengths=jnp.full((1, 1), TEXT, jnp.int32),
        references=[draw(1, 1, 2, 4, 3, seed=seed) for seed in (1, 2)],
        reference_frames=jnp.asarray([[1] * references + [0] * (2 - references)], jnp.int32),
        subjects=jnp.zeros((1, 2), jnp.int32),
    )


def test_two_layers_by_hand():
    """The second reference is absent. Points are those of the first layer; the second reads them."""
    table = METHOD.table(LAYOUT, jnp.full((1, 1), 0.5), condition(1))
    rope = draw(1, 8, 3, seed=9)
    q, k, v = (draw(2, 1, 8, 2, 6, seed=seed) for seed in (3, 4, 5))

    @jax.jit
    def run(q, k, v):
        hook = ReferenceTracking.start(LAYOUT, THRESHOLD, 2, 1)
        return [hook(q[i], k[i], v[i], table, rope, None)[0] for i in range(2)]

    first, second = run(q, k, v)
    turned = lambda x, angles=rope: np.float64(apply_rotary(x, angles))[0]
    there = np.array([0, 1, 4, 5, 6, 7])

    def attend(layer, more_keys=None, more_values=None):
        keys, values = turned(k[layer])[there], np.float64(v[layer])[0, there]
        if more_keys is not None:
            keys, values = np.concatenate([keys, more_keys]), np.concatenate([values, more_values])
        scores = np.einsum("qhd,khd->hqk", turned(q[layer]), keys) / np.sqrt(6)
        return np.einsum("hqk,khd->qhd", special.softmax(scores, axis=-1), values)

    out = attend(0)
    np.testing.assert_allclose(first[0][there], out[there], rtol=1e-4, atol=1e-5)
    unit = out.reshape(8, -1) / np.linalg.norm(out.reshape(8, -1), axis=1, keepdims=True)
    cosine = unit[4:] @ unit[:2].T
    point, pair = cosine.argmax(axis=1), cosine.max(axis=1) > THRESHOLD
    assert pair.any()
    keys = turned(k[1][:, point], rope[:, 4:])[pair]
    expected = attend(1, keys, np.float64(v[1])[0, point][pair])
    np.testing.assert_allclose(second[0][4:], expected[4:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second[0][:2], attend(1)[:2], rtol=1e-4, atol=1e-5)  # references read no points


def test_in_sampling_alone():
    graph, shapes = abstract(lambda: WanTransformer(CONFIG, nnx.Rngs(0)))
    random = np.random.default_rng(0)
    network = merge(graph, {n: jnp.asarray(0.4 * random.normal(size=x.shape), x.dtype) for n, x in shapes.items()})
    x, times, given = draw(1, 2, 2, 4, 3, seed=6), jnp.full((1, 1), 0.5), condition()
    options = {"layout": LAYOUT, "patch": PATCH}
    run = lambda method: np.asarray(jax.jit(lambda x: velocity(method, network, x, times, given, **options))(x))
    plain = run(Kaleido())
    np.testing.assert_allclose(run(Kaleido(tracking=1.0)), plain, rtol=1e-5, atol=1e-5)  # no cosine is above 1
    assert np.abs(run(METHOD) - plain).max() > 1e-3
    assert METHOD.sampling_hook(network, METHOD.layout((2, 1, 2), [], texts=(TEXT,)), 1) == {}
    assert not Kaleido(reference_time="zero", rule="unidirectional", tracking=0.5).pinned
    with pytest.raises(UsageError, match="mesh must not divide"):
        METHOD.sampling_hook(lambda: None, LAYOUT, 1)
    with pytest.raises(UsageError, match="must be a cosine"):
        Kaleido(tracking=1.5)
    with pytest.raises(UsageError, match="channel-concat has none"):
        Kaleido(scheme="channel-concat", tracking=0.5)
