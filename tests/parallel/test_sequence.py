"""A transformer whose tokens are divided against the same on one device: velocities, and gradients of all parameters.

Relative L2 at most 1e-5 in float32; sums over tokens and heads are made in another order.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax.attention import attention
from kaleido_jax.bundle import abstract, merge
from kaleido_jax.masks import TokenMask
from kaleido_jax.methods import kaleido
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import MeshConfig, divided, shardings
from kaleido_jax.parallel.collectives import traffic
from kaleido_jax.parallel.partition import batch_shardings, place

CONFIG = WanConfig(dim=48, ffn_dim=64, heads=4, layers=1, in_channels=2, out_channels=2, text_dim=16, freq_dim=32)
LAYOUT = kaleido.layout((2, 3, 3), [(1, 3, 3)] * 2, text_tokens=5)  # 9, 9 and 18 tokens: 4 and 8 do not divide
BATCH = 8
GRAPH, SHAPES = abstract(lambda: WanTransformer(CONFIG, nnx.Rngs(0)))


def inputs():
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    # The head starts at zero; with noise on every leaf all of them show in the output.
    parameters = {name: (0.3 if "norm" in name else 0.15) * normal(*leaf.shape) for name, leaf in SHAPES.items()}
    table = kaleido.table(
        LAYOUT,
        times=np.linspace(0.2, 0.8, BATCH, dtype=np.float32),
        reference_counts=np.array([1, 2, 2, 0] * 2),
        text_lengths=np.array([5, 3, 1, 4] * 2),
    )
    return parameters, normal(BATCH, LAYOUT.tokens("visual"), 8), table, normal(BATCH, 5, 16)


def program(unmasked, ulysses, parameters, tokens, table, text):
    if unmasked:
        table = dataclasses.replace(table, self_mask=None)

    def velocity(parameters):
        network = divided(functools.partial(merge, GRAPH), parameters, ulysses=ulysses)
        return network(tokens, table, text, layout=LAYOUT)

    out, transpose = jax.vjp(velocity, parameters)
    return out, transpose(jnp.cos(out))[0]


@functools.cache
def on_one_device(unmasked):
    return jax.device_get(jax.jit(functools.partial(program, unmasked, None))(*inputs()))


def on_mesh(config, unmasked=False):
    parameters, tokens, table, text = inputs()
    mesh = config.make()
    parameters = place(parameters, shardings(parameters, mesh))
    data = place((tokens, text), batch_shardings((tokens, text), mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(functools.partial(program, unmasked, config.ulysses))
        return jax.device_get(compiled(parameters, data[0], table, data[1]))


def assert_equal(found, wanted):
    def compare(path, a, b):
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error:.2e}"

    jax.tree_util.tree_map_with_path(compare, found, wanted)


def test_without_a_mask_what_fills_up_is_still_not_read():
    assert_equal(on_mesh(MeshConfig(sequence=4, ulysses=2), unmasked=True), on_one_device(True))


def test_attention_on_a_divided_batch_gathers_nothing():
    """Its loops go over samples and heads: left to the compiler, every round would gather the whole batch."""
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).make()
    place_on = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor", None))
    random = np.random.default_rng(0)
    q, k, v = (jax.device_put(random.standard_normal((8, n, 2, 4), np.float32), place_on) for n in (64, 1040, 1040))
    text = TokenMask(np.ones((64,), np.uint32), (np.arange(1040) < 1000).astype(np.uint32), width=1)

    def both(q, k, v):
        out, transpose = jax.vjp(lambda q, k, v: attention(q, k, v, text), q, k, v)
        return out, *transpose(jnp.cos(out))

    with jax.set_mesh(mesh):
        compiled = jax.jit(both).lower(q, k, v).compile()
    assert traffic(compiled.as_text(), mesh).bytes == {}
    alone = jax.jit(both)(*(jnp.asarray(np.asarray(x)) for x in (q, k, v)))
    for found, wanted in zip(compiled(q, k, v), alone, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
