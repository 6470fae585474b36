"""tools/finer_patches.py: cells of the new patches take the weights of the nearest cells of the old ones."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.bundle import abstract, merge, parameters
from kaleido_jax.models.wan import WanConfig, WanTransformer

TOOLS = pathlib.Path(__file__).resolve().parents[3] / "tools"


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        yield importlib.import_module("finer_patches")


def test_corners_of_three_by_three_become_two_by_two(tool):
    np.testing.assert_array_equal(tool.cells((1, 3, 3), (1, 2, 2)), [0, 2, 6, 8])
    np.testing.assert_array_equal(tool.cells((1, 2, 2), (1, 2, 2)), range(4))


def test_everything_else_is_kept(tool):
    config = WanConfig(
        dim=8, ffn_dim=16, heads=2, layers=1, in_channels=3, out_channels=2, patch=(1, 3, 3), text_dim=4, freq_dim=4
    )
    graph, shapes = abstract(lambda: WanTransformer(config, nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    before = {name: rng.standard_normal(x.shape, np.float32) for name, x in shapes.items()}
    finer = tool.with_patch(merge(graph, jax.tree.map(jnp.asarray, before)), (1, 2, 2))
    after = parameters(finer)
    changed = {"patch_embedding.kernel", "head.projection.kernel", "head.projection.bias"}
    assert finer.config.patch == (1, 2, 2) and after.keys() == before.keys()
    for name in before.keys() - changed:
        np.testing.assert_array_equal(after[name], before[name])
    # The third cell of a new patch is the seventh of an old one: row 2, column 0.
    np.testing.assert_allclose(after["patch_embedding.kernel"][6:9], 1.5 * before["patch_embedding.kernel"][18:21])
    np.testing.assert_array_equal(after["head.projection.kernel"][:, 4:6], before["head.projection.kernel"][:, 12:14])
    np.testing.assert_array_equal(after["head.projection.bias"][4:6], before["head.projection.bias"][12:14])
