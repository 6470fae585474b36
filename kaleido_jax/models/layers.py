"""What every network shares: linear maps, norms with explicit float32, per-segment modulation, stacked layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Remat = bool | Callable[..., bool]


def linear(
    x: Float[Array, "*rows i"], kernel: Float[Array, "i o"], bias: Float[Array, " o"] | None = None
) -> Float[Array, "*rows o"]:
    """x kernel + bias in x's dtype; float32 keeps its full precision on every device."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    y = jnp.matmul(x, kernel.astype(x.dtype), precision=precision)
    return y if bias is None else y + jnp.expand_dims(bias.astype(x.dtype), range(y.ndim - 1))


def layer_norm(
    x: Float[Array, "*rows d"],
    scale: Float[Array, " d"] | None = None,
    bias: Float[Array, " d"] | None = None,
    *,
    eps: float,
) -> Float[Array, "*rows d"]:
    """Layer normalisation (Ba et al. 2016) in float32. Returns float32: the caller casts back once it is done."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    if scale is not None:
        y = y * jnp.expand_dims(scale.astype(jnp.float32), range(y.ndim - 1))
    if bias is not None:
        y = y + jnp.expand_dims(bias.astype(jnp.float32), range(y.ndim - 1))
    return y


def rms_norm(x: Float[Array, "*rows d"], scale: Float[Array, " d"], *, eps: float) -> Float[Array, "*rows d"]:
    """Root-mean-square normalisation (Zhang and Sennrich 2019), computed in float32, in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + eps)
    return (y * jnp.expand_dims(scale.astype(jnp.float32), range(y.ndim - 1))).astype(x.dtype)


class Linear(nnx.Module):
    """kernel [inputs, outputs] and bias [outputs]."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, *, init: Any = None, bias: bool = True):
        init = nnx.initializers.xavier_uniform() if init is None else init
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        return linear(x, self.kernel[...], None if self.bias is None else self.bias[...])


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias, in x's dtype."""

    def __init__(self, size: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        return layer_norm(x, self.scale[...], self.bias[...], eps=self.eps).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with scale, in x's dtype."""

    def __init__(self, size: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        return rms_norm(x, self.scale[...], eps=self.eps)


class MLP(nnx.Module):
    """Two linear maps with an activation between them."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, rngs: nnx.Rngs, *, activation: Callable[[Array], Array], init=None
    ):
        self.first = Linear(inputs, hidden, rngs, init=init)
        self.second = Linear(hidden, outputs, rngs, init=init)
        self.activation = activation

    def __call__(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        return self.second(self.activation(self.first(x)))


def per_segment(
    function: Callable[..., Array],
    sizes: Sequence[int],
    tokens: Sequence[Float[Array, "b n _"]],
    rows: Float[Array, "b s ..."],
) -> Float[Array, "b n d"]:
    """Applies function(*tokens of a segment [b, n_s, _], its row [b, ...]) to each segment and joins the results.

    The boundaries are static, so that a row is read by the elementwise operations of its own segment and is never
    spread over the tokens in memory.
    """
    out, start = [], 0
    for index, size in enumerate(sizes):
        out.append(function(*(jax.lax.slice_in_dim(x, start, start + size, axis=1) for x in tokens), rows[:, index]))
        start += size
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """`depth` layers as one module whose parameters have a leading layer axis."""
    return nnx.vmap(make)(rngs.split(depth))


def scan(
    layers: nnx.Module, body: Callable[..., tuple[Any, Any]], carry: Any, state: Any = None, *, remat: Remat = False
) -> tuple[Any, Any]:
    """Runs stacked layers one after the other: body(layer, carry, state of the layer) -> (carry, its new state).

    Args:
      layers: as made by `stack`.
      carry: what one layer hands to the next.
      state: a pytree with a leading layer axis, or None.
      remat: True recomputes each layer in the backward pass; a policy of jax.checkpoint_policies says what is kept.

    Returns:
      The last carry and the layers' new state, stacked.
    """
    graphdef, params = nnx.split(layers)

    def step(carry, layer):
        params, state = layer
        return body(nnx.merge(graphdef, params), carry, state)

    if remat:
        step = jax.checkpoint(step, policy=None if remat is True else remat, prevent_cse=False)
    return jax.lax.scan(step, carry, (params, state))
