"""CharaConsist piece by piece: masks, points, who reads whom, which steps do what, inversion, what stays in memory."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import ndimage, special

from kaleido_jax import config as configs
from kaleido_jax.bundle import abstract, merge, parameters
from kaleido_jax.diffusion import samplers
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import patchify
from kaleido_jax.methods import characonsist, text_to_image
from kaleido_jax.methods.characonsist import CharaConsist, Texts, create, passes
from kaleido_jax.methods.characonsist_attention import Tracking, slots_mask
from kaleido_jax.methods.characonsist_matching import (
    characters_shown,
    cosines,
    matches,
    tracked_characters,
    word_scores,
)
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.testing.tiny import randomised
from tests.methods.characonsist_reference import Network, turned

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "characonsist_flux_dev.py"


def test_word_scores():
    random = np.random.default_rng(0)
    q, k = random.standard_normal((2, 5, 3, 4)), random.standard_normal((2, 6, 3, 4))
    words = np.array([[0, 0, 1, 2, 3, -1], [0, 2, 2, 3, -1, -1]], np.int32)
    ours = word_scores(jnp.float32(q), jnp.float32(k), jnp.asarray(words), 2)
    for row in range(2):
        real = words[row] >= 0
        read = special.softmax(np.einsum("nhd,mhd->hnm", q[row], k[row][real]), axis=-1).sum(0)
        said = words[row][real]
        for column, kind in enumerate((said == 0, said > 0, said == 1, said == 2)):
            expected = read[:, kind].mean(1) if kind.any() else np.full(5, -1.0)
            np.testing.assert_allclose(ours[row, :, column], expected, rtol=1e-5)


@pytest.mark.parametrize(("erode", "dilate"), [(1, 1), (3, 5), (3, 1), (1, 3)])
def test_masks_are_cleaned_as_by_scipy(erode, dilate):
    scores = np.random.default_rng(1).standard_normal((2, 12 * 9, 4)).astype(np.float32)
    scores[..., 1] += 1.2
    ours = np.asarray(characters_shown(jnp.asarray(scores), (1, 12, 9), erode=erode, dilate=dilate))
    for row in range(2):
        mask = (scores[row, :, 1] >= scores[row, :, 0]).reshape(12, 9)
        mask = ndimage.binary_erosion(mask, np.ones((erode, erode)), border_value=1)
        mask = ndimage.binary_dilation(mask, np.ones((dilate, dilate))).ravel()
        np.testing.assert_array_equal(ours[row], np.where(mask, 1 + (scores[row, :, 3] > scores[row, :, 2]), 0))
    assert (ours > 0).any()


def test_points_and_pairs():
    random = np.random.default_rng(2)
    identity = random.standard_normal((6, 8)).astype(np.float32)
    order = np.array([[3, 3, 0, 5, 1, 2], [0, 1, 2, 3, 4, 5]])
    frames = 2.5 * identity[order]  # a length that does not matter
    similarity = cosines(jnp.asarray(frames), jnp.asarray(identity))
    match, how = matches(similarity)
    np.testing.assert_array_equal(match, order)
    np.testing.assert_allclose(how, 1.0, rtol=1e-6)
    np.testing.assert_array_equal(matches(jnp.ones((1, 2, 3)))[0], [[0, 0]])  # of equals the first
    shown, there = jnp.asarray([[1, 2, 1, 0, 2, 1]] * 2), jnp.asarray([1, 2, 0, 1, 1, 0])
    pairs = tracked_characters(match, how.at[0, 0].set(0.4), shown, there, 0.5)
    np.testing.assert_array_equal(pairs, [[0, 0, 1, 0, 2, 0], [1, 2, 0, 0, 0, 0]])


def test_who_reads_whom():
    tracking = Tracking(
        match=jnp.zeros((1, 4), jnp.int32),
        similarity=jnp.zeros((1, 4)),
        tracked=jnp.asarray([[1, 0, 2, 0]], jnp.int32),
        shown=jnp.asarray([[1, 1, 2, 0]], jnp.int32),
        identity=jnp.asarray([1, 0, 2, 0], jnp.int32),
    )
    mask = slots_mask(tracking, 2, 2, foreground=True, background=True).dense()[0]
    assert mask.shape == (6, 2 + 4 + 4 + 4)
    own, points, places = np.split(np.asarray(mask), [6, 10], axis=1)
    assert own.all()
    assert not points[:2].any() and not places[:2].any()  # texts read the picture's own tokens alone
    expected = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]  # a character reads its own points
    np.testing.assert_array_equal(points[2:], np.array(expected, bool))
    expected = [[0, 0, 0, 0]] * 3 + [[0, 0, 0, 1]]  # the background what is background in both
    np.testing.assert_array_equal(places[2:], np.array(expected, bool))
    assert slots_mask(tracking, 2, 2, foreground=True, background=False).shape == (1, 6, 10)


def test_the_released_steps():
    method = CharaConsist.released()
    weights = [method.merge_at(step, 50) for step in range(50)]
    assert weights[0] == 0 and weights[1:12] == [0.8] * 11 and weights[31:] == [0] * 19
    assert weights[21] == pytest.approx(0.4) and weights[30] == pytest.approx(0.4 * (1 + math.cos(math.pi * 19 / 20)))
    assert [step for step in range(50) if method.shares_at(step, 50)] == list(range(1, 41))
    assert method.layer_kinds(5, foreground=True, background=True).tolist() == [1, 0, 1, 0, 1]
    kept = dataclasses.replace(method, keep_background=True)
    assert [kept.kinds[kind] for kind in kept.layer_kinds(3, foreground=True, background=True)] == [
        (True, True), (False, True), (True, True),
    ]  # fmt: skip
    plan = list(passes(method, 50))
    assert [at.phase for at in plan] == ["ahead"] * 11 + ["pictures"] * 50
    assert [at.step for at in plan if at.points] == [10, 10] and plan[10].identity and not plan[10].foreground
    plan = list(passes(kept, 50))
    assert [at.phase for at in plan] == ["identity"] * 11 + ["ahead"] * 11 + ["pictures"] * 50
    assert [at.step for at in plan if at.identity] == [10] and plan[12].background and not plan[11].background
    short = [at for at in passes(method, 10) if at.phase == "pictures"]
    assert [at.step for at in short if at.foreground] == list(range(8)) and short[2].points


def test_the_papers_steps():
    plan = list(passes(CharaConsist.paper(), 4))
    assert [(at.step, at.foreground, at.advances) for at in plan] == [
        (step, late, late) for step in range(4) for late in (False, True)
    ]
    assert all(at.points and at.identity and at.masks for at in plan[::2])


def test_settings_and_options():
    assert create() == CharaConsist.released() and create("paper") == CharaConsist.paper()
    changed = create("paper", ["threshold=0.3", "match_at=7", "keep_background=True"])
    assert (changed.threshold, changed.match_at, changed.keep_background) == (0.3, 7, True)
    assert create(None, ["match_at=None"]).match_at is None
    for option, sentence in [
        ("share_from=42", r"share_from, share_until are \[42, 41\]; they must rise, from 0 to of_steps=50"),
        ("foreground_every=0", "foreground_every is 0; it must be at least 1"),
        ("threshold=2", "threshold is 2.0; it must be a cosine"),
        ("merge_weight=-1", "merge_weight is -1.0; it must be from 0 to 1"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            create(None, [option])


def test_inversion_goes_the_way_back():
    config = FluxConfig(
        dim=16, ffn_dim=16, heads=1, double_layers=1, single_layers=1, guidance=True, channels=2, text_dim=4,
        pooled_dim=4, axes=(4, 6, 6), freq_dim=8,
    )  # fmt: skip
    network = randomised(lambda: FluxTransformer(config, nnx.Rngs(0)), np.random.default_rng(0))
    weights, random = parameters(network), np.random.default_rng(1)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    texts = Texts(text=jnp.asarray(normal(1, 3, 4)), pooled=jnp.asarray(normal(1, 4)), words=np.zeros((1, 3), np.int32))
    layout, picture = text_to_image.layout((1, 2, 3), text_tokens=3), jnp.asarray(normal(1, 1, 4, 6, 2))
    table = samplers.euler(3, 1.5)
    method = CharaConsist.released(inversion_guidance=0.002)  # as in the tests of FLUX: sinusoids of 1000 times it
    graph = abstract(lambda: FluxTransformer(config, nnx.Rngs(0)))[0]

    @jax.jit
    def invert(weights, x, rows):
        return characonsist.invert(method, merge(graph, weights), x, rows, texts, layout=layout)

    path = invert(weights, picture, samplers.Steps(*(np.float32(column) for column in table)))
    assert path.shape == (4, *picture.shape)
    np.testing.assert_array_equal(path[3], picture)
    peer = Network(weights, config)

    def attend(block, q, k, v):
        places = [(0, 0, 0)] * 3 + [(0, row, column) for row in range(2) for column in range(3)]
        rotated = lambda x: np.stack([turned(x, place, config.axes) for x, place in zip(x, places)])
        scores = np.einsum("qhd,khd->hqk", rotated(q), rotated(k)) / 4.0
        return np.einsum("hqk,khd->qhd", special.softmax(scores, axis=-1), v)

    for index in (2, 1, 0):
        after, before = (np.float64(patchify(path[at], config.patch)[0]) for at in (index + 1, index))
        velocity = peer(
            after,
            table.time[index],
            np.asarray(texts.text[0]),
            np.asarray(texts.pooled[0]),
            np.float64(np.float32(0.002)),
            attend,
        )
        np.testing.assert_allclose(before, after - table.delta[index] * velocity, rtol=1e-4, atol=1e-5)


def test_a_pass_at_full_size_keeps_nothing_of_a_layer(record_property):
    """FLUX.1 [dev] at 1024 x 1024, all 57 layers sharing: what outlives a layer, from the traced program."""
    recipe = configs.load(CONFIG)
    assert recipe.method == CharaConsist.paper(keep_background=True) and recipe.transformer.single_layers == 38
    function, shapes = recipe.abstract_pass()
    program = jax.make_jaxpr(function)(*shapes)
    loops = [eqn for eqn in program.eqns if eqn.primitive.name == "scan" and eqn.params["length"] > 1]
    assert sorted(eqn.params["length"] for eqn in loops) == [19, 38]
    size = lambda variables: sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in variables)
    kept = [size(eqn.outvars[eqn.params["num_carry"] :]) for eqn in loops]  # stacked over the layers
    assert max(kept) <= 57 * 4  # what each layer shares, nothing else
    carried = max(size(eqn.outvars[: eqn.params["num_carry"]]) for eqn in loops)
    references = [v.aval.inner_aval for v in loops[0].invars if hasattr(v.aval, "inner_aval")]
    assert sorted(leaf.shape for leaf in references) == [(4, 4096, 4096), (5, 4096, 3)]  # similarities, scores of words
    sums, tokens = sum(math.prod(leaf.shape) * 4 for leaf in references), 4096 * 3072 * 2
    record_property("bytes", {"tokens": carried, "sums over layers": sums, "keys and values": 2 * tokens})
    # Beside the pictures' own tokens: the sums, and within a layer the identity picture's keys, values and outputs.
    assert sums + 3 * tokens <= 4e8  # 4 GB are claimed
