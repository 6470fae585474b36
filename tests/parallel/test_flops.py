"""Operations counted in jaxprs, against closed formulas."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.methods import kaleido
from kaleido_jax.models.hook import default_attend
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel.flops import attend_without_products, count, dense_attend, forward_operations

f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_convolutions_scans_and_conditionals():
    assert count(jnp.matmul, f32(3, 4, 5), f32(3, 5, 6)) == 2 * 3 * 4 * 5 * 6
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", feature_group_count=2)
    assert count(convolve, f32(1, 4, 8, 8), f32(6, 2, 3, 3)) == 2 * (6 * 4 * 4) * (2 * 3 * 3)
    loop = lambda x: jax.lax.scan(lambda c, _: (jax.jit(jnp.dot)(c, x), None), x, length=7)[0]
    assert count(loop, f32(4, 4)) == 7 * 2 * 4**3
    choose = lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x @ x @ x)
    assert count(choose, f32(4, 4)) == 2 * 2 * 4**3
    assert count(lambda x: (x @ x @ x, x)[1], f32(4, 4)) == 0  # which compilers leave out too
    with pytest.raises(ValueError, match="how often it runs is not known"):
        count(lambda x: jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ c, x), f32(4, 4))


def formula(config, tokens, targets, text, segments):
    """(products, attention) of one sample: 2 n i o a linear map, 4 n m d attention."""
    d, n, m = config.dim, tokens, text
    layer = 2 * (6 * n * d * d + 2 * m * d * d + 2 * n * d * config.ffn_dim)
    patch = math.prod(config.patch)
    ends = 2 * (n * patch * config.in_channels * d + targets * d * patch * config.out_channels)
    ends += 2 * (m * (config.text_dim + d) * d + segments * (config.freq_dim + 7 * d) * d)
    return config.layers * layer + ends, config.layers * 4 * (n * n + n * m) * d


@pytest.mark.parametrize(
    ("config", "grid"), [(WanConfig.t2v_1_3b(), (21, 30, 52)), (WanConfig.t2v_14b(), (21, 45, 80))]
)
def test_wan_within_one_percent_of_the_formula(config, grid):
    """81 frames at 480p and 720p with three references."""
    config = dataclasses.replace(config, dtype="bfloat16")
    layout = kaleido.layout(grid, [(1, *grid[1:])] * 3, text_tokens=512)
    graph, parameters = abstract(lambda: WanTransformer(config, nnx.Rngs(0)))
    table = jax.eval_shape(
        lambda: kaleido.table(
            layout, times=np.array([0.5], np.float32), reference_counts=np.array([3]), text_lengths=np.array([512])
        )
    )
    tokens, text = f32(1, layout.tokens("visual"), 64), f32(1, 512, config.text_dim)

    def loss(attend, parameters, tokens, table, text):
        network = merge(graph, parameters)
        return network(tokens, table, text, layout=layout, remat=False, attend=attend).astype(jnp.float32).sum()

    products, attention = formula(config, layout.tokens("visual"), math.prod(grid), 512, 4)
    forward = count(functools.partial(loss, dense_attend), parameters, tokens, table, text)
    assert forward == pytest.approx(products + attention, rel=0.01)
    assert forward_operations(config, layout.tokens("visual"), 512) == pytest.approx(forward, rel=0.01)
    without = count(functools.partial(loss, attend_without_products), parameters, tokens, table, text)
    assert forward - without == 4 * config.layers * layout.tokens("visual") ** 2 * config.dim
    # What is computed: both sides' gradients of every product, scores made again by attention, its fifth product, and
    # up to 3 % of blocks that are filled up.
    gradient = count(jax.grad(functools.partial(loss, default_attend)), parameters, tokens, table, text)
    assert 0.99 < gradient / (3 * products + 3.5 * attention) < 1.03
