"""Shared layers against torch, and what they promise about types and memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from flax import nnx
from torch.nn import functional

from kaleido_jax.models.layers import (
    KEEP_PRODUCTS,
    MLP,
    OFFLOADED,
    LayerNorm,
    Linear,
    RMSNorm,
    gated,
    layer_norm,
    linear,
    modulate,
    per_segment,
    rms_norm,
    scan,
    stack,
    time_frequencies,
)
from kaleido_jax.testing import relative_error

CLOSE = 1e-6  # a few roundings of float32


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_linear_and_its_gradients():
    """The gradients are written by hand: those of torch, for any number of leading axes."""
    x, kernel, bias, weights = normal(2, 3, 5, 7), normal(7, 4, seed=1), normal(4, seed=2), normal(2, 3, 5, 4, seed=3)
    ours = lambda x, kernel, bias: (linear(x, kernel, bias) * weights).sum()
    gradients = jax.grad(ours, argnums=(0, 1, 2))(*map(jnp.asarray, (x, kernel, bias)))
    theirs = [torch.from_numpy(a).requires_grad_() for a in (x, kernel, bias)]
    out = functional.linear(theirs[0], theirs[1].T, theirs[2])
    (out * torch.from_numpy(weights)).sum().backward()
    assert relative_error(linear(jnp.asarray(x), jnp.asarray(kernel), jnp.asarray(bias)), out.detach()) <= CLOSE
    for gradient, tensor in zip(gradients, theirs):
        assert relative_error(gradient, tensor.grad) <= CLOSE


def test_a_bfloat16_product_has_a_float32_gradient_for_its_float32_kernel():
    """The sum over tokens is not rounded to bfloat16: with 512 equal terms, which bfloat16 would lose, it is exact."""
    x, kernel = jnp.full((512, 1), 1.0 + 2**-7, jnp.bfloat16), jnp.ones((1, 1))
    gradient = jax.grad(lambda kernel: linear(x, kernel).astype(jnp.float32).sum())(kernel)
    assert linear(x, kernel).dtype == jnp.bfloat16 and gradient.dtype == jnp.float32
    assert float(gradient[0, 0]) == 512 * (1 + 2**-7)


def test_norms():
    x, scale, bias = 3 + 2 * normal(2, 5, 16), normal(16, seed=1), normal(16, seed=2)
    t, j = [torch.from_numpy(a) for a in (x, scale, bias)], [jnp.asarray(a) for a in (x, scale, bias)]
    for eps in (1e-6, 1e-2):
        assert relative_error(layer_norm(*j, eps=eps), functional.layer_norm(t[0], (16,), t[1], t[2], eps)) <= CLOSE
        assert relative_error(layer_norm(j[0], eps=eps), functional.layer_norm(t[0], (16,), eps=eps)) <= CLOSE
        assert relative_error(rms_norm(j[0], j[1], eps=eps), functional.rms_norm(t[0], (16,), t[1], eps)) <= CLOSE


def test_norms_of_bfloat16_are_computed_in_float32():
    """A mean of 256 beside a spread of 1 leaves bfloat16, and its square, no digits."""
    x = jnp.asarray(256 + np.arange(-8.0, 8.0)[None], jnp.bfloat16)
    expected = functional.layer_norm(torch.from_numpy(np.array(x, np.float32)), (16,), eps=1e-6)
    assert layer_norm(x, eps=1e-6).dtype == jnp.float32
    assert relative_error(layer_norm(x, eps=1e-6), expected) <= CLOSE
    modules = LayerNorm(16, eps=1e-6), RMSNorm(16, eps=1e-6)
    assert all(module(x).dtype == jnp.bfloat16 for module in modules)
    assert relative_error(modules[0](x).astype(jnp.float32), expected) <= 4e-3  # one rounding to bfloat16


def test_frequencies_of_time():
    times = np.array([[0.0, 0.5], [333.25, 1000.0]], np.float32)
    theirs = get_timestep_embedding(
        torch.from_numpy(times.ravel()), 32, flip_sin_to_cos=True, downscale_freq_shift=0
    ).reshape(2, 2, 32)
    # An angle of up to 1000 is rounded to 6e-5 by float32.
    np.testing.assert_allclose(time_frequencies(jnp.asarray(times), 32), theirs, atol=1e-4)


def test_rows_of_segments_reach_their_own_tokens():
    sizes, x, y = (3, 1, 4), normal(2, 8, 6), normal(2, 8, 6, seed=1)
    rows = normal(2, 3, 2, 6, seed=2)
    spread = np.repeat(rows, sizes, axis=1)  # [b, n, 2, c]
    normed = functional.layer_norm(torch.from_numpy(x), (6,), eps=1e-6).numpy()
    expected = normed * (1 + spread[:, :, 1]) + spread[:, :, 0]
    assert relative_error(modulate(jnp.asarray(x), jnp.asarray(rows), sizes, 1e-6), expected) <= CLOSE
    out = gated(jnp.asarray(x), jnp.asarray(y), jnp.asarray(rows[:, :, 0]), sizes)
    assert relative_error(out, x + y * spread[:, :, 0]) <= CLOSE
    half = gated(jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16), jnp.asarray(rows[:, :, 0]), sizes)
    assert half.dtype == jnp.bfloat16
    function = lambda x, y, row: x * row[:, None] + y
    assert per_segment(function, (8,), (jnp.asarray(x), jnp.asarray(y)), jnp.asarray(rows[:, :1, 0])).shape == (2, 8, 6)


@pytest.fixture(scope="module")
def layers():
    return stack(lambda rngs: MLP(4, 8, 4, rngs, activation=jnp.tanh), 3, nnx.Rngs(0))


def test_stacked_layers_are_each_their_own(layers):
    kernels = np.asarray(layers.first.kernel[...])
    assert kernels.shape == (3, 4, 8)
    assert not any(np.array_equal(kernels[0], kernels[i]) for i in (1, 2))


def test_scan_is_a_loop_over_the_layers(layers):
    x = jnp.asarray(normal(2, 4))
    carry, state = scan(layers, lambda layer, x, state: (x + layer(x), state + x.sum()), x, jnp.arange(3.0))
    expected, sums = np.asarray(x, np.float64), []
    kernels = [np.asarray(leaf, np.float64) for leaf in (layers.first.kernel[...], layers.second.kernel[...])]
    for layer in range(3):
        sums.append(layer + expected.sum())
        expected = expected + np.tanh(expected @ kernels[0][layer]) @ kernels[1][layer]  # the biases are zero
    assert relative_error(carry, expected) <= CLOSE
    np.testing.assert_allclose(state, sums, rtol=1e-5)


def test_what_the_backward_pass_makes_again(layers):
    """Equal gradients; keeping everything has no tanh in its backward pass, making things again has one."""
    graph, parameters = nnx.split(layers)
    x = jnp.asarray(normal(2, 4))

    def function(remat):
        body = lambda layer, x, state: (x + layer(x), state)
        return jax.grad(lambda p: jnp.square(scan(nnx.merge(graph, p), body, x, remat=remat)[0]).sum())

    def count(jaxpr, name):
        inner = [j for e in jaxpr.eqns for j in jax.tree.leaves(list(e.params.values()), is_leaf=is_jaxpr)]
        own = sum(e.primitive.name == name for e in jaxpr.eqns)
        return own + sum(count(getattr(j, "jaxpr", j), name) for j in inner if is_jaxpr(j))

    is_jaxpr = lambda x: hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")
    products, activations, gradients = {}, {}, {}
    for remat in (False, True, KEEP_PRODUCTS):
        jaxpr = jax.make_jaxpr(function(remat))(parameters).jaxpr
        products[remat], activations[remat] = count(jaxpr, "dot_general"), count(jaxpr, "tanh")
        gradients[remat] = jax.tree.leaves(function(remat)(parameters))
    assert activations == {False: 1, True: 2, KEEP_PRODUCTS: 2}
    assert products[KEEP_PRODUCTS] == products[False] < products[True]
    for remat in (True, KEEP_PRODUCTS):
        for ours, plain in zip(gradients[remat], gradients[False], strict=True):
            assert relative_error(ours, plain) <= CLOSE


def test_what_the_backward_pass_reads_is_kept_in_the_hosts_memory(layers):
    """Each layer's input, and nothing of it on the device; the gradients are equal."""
    graph, parameters = nnx.split(layers)
    x = jnp.asarray(normal(2, 4))

    def gradient(remat, parameters):
        body = lambda layer, x, state: (x + layer(x), state)
        return jax.grad(lambda p: jnp.square(scan(nnx.merge(graph, p), body, x, remat=remat)[0]).sum())(parameters)

    loops = [e for e in jax.make_jaxpr(functools.partial(gradient, OFFLOADED))(parameters).eqns if "scan" in str(e)]
    kept = [str(variable.aval) for variable in loops[0].outvars[loops[0].params["num_carry"] :]]
    assert kept == ["float32<host>[3,2,4]"]
    ours, plain = (jax.tree.leaves(jax.jit(functools.partial(gradient, r))(parameters)) for r in (OFFLOADED, True))
    for one, other in zip(ours, plain, strict=True):
        assert relative_error(one, other) <= CLOSE


def test_linear_without_bias_and_with_its_own_start():
    module = Linear(3, 2, nnx.Rngs(0), init=nnx.initializers.ones, bias=False)
    assert module.bias is None
    np.testing.assert_array_equal(module(jnp.ones((2, 3))), np.full((2, 2), 3.0))
