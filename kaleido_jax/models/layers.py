"""What every network shares: linear maps, norms in float32, the embedding of time, modulation, stacked layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kaleido_jax.attention.reference import ATTENTION_NAME
from kaleido_jax.typing import AnyArray

Remat = bool | Callable[..., bool]

# Keeps what took a matrix product or attention to make and makes norms and activations again in the backward pass. They
# cost less than keeping them: on CPUs, where memory is slow, this is faster than keeping everything.
KEEP_PRODUCTS: Remat = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(ATTENTION_NAME),
)
# The name of what each layer is handed, for policies of jax.checkpoint.
LAYER_NAME = "layer"
# Keeps what a layer is handed and what attention made, in the host's memory: on their way there and back while other
# layers are computed, they take none of the device's.
OFFLOADED: Remat = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[LAYER_NAME, ATTENTION_NAME],
    offload_src="device",
    offload_dst="pinned_host",
)
# Layers up to which a loop over them is written out: slicing and saving cost the miniature's step a quarter on CPUs.
# Never where layers are made again for the backward pass: in straight-line code the compiler finds the first making of
# the same values and keeps them, and with them the memory.
UNROLLED = 8


def linear(
    x: Float[Array, "*rows i"], kernel: Float[Array, "i o"], bias: Float[Array, " o"] | None = None
) -> Float[Array, "*rows o"]:
    """x kernel + bias in x's dtype; float32 keeps its full precision on every device."""
    y = _product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[1])
    return y if bias is None else y + jnp.expand_dims(bias.astype(x.dtype), range(y.ndim - 1))


def _matmul(x: Float[Array, "n i"], kernel: Float[Array, "i o"]) -> Float[Array, "n o"]:
    return jnp.matmul(x, kernel.astype(x.dtype), precision=_precision(x.dtype))


_product = jax.custom_vjp(_matmul)


def _product_forward(x, kernel):
    return _matmul(x, kernel), (x, kernel)  # not _product: policies of jax.checkpoint do not see into it


def _product_backward(saved, dy):
    x, kernel = saved
    precision = _precision(x.dtype)
    dx = jnp.einsum("no,io->ni", dy, kernel.astype(x.dtype), precision=precision)
    # Written out because jax's own rule asks for the transpose of this, which XLA's CPU compiler makes at two thirds of
    # the speed after copying dy; and because the sum over all tokens is then rounded to the kernel's dtype, not to x's.
    d_kernel = jnp.einsum("ni,no->io", x, dy, precision=precision, preferred_element_type=kernel.dtype)
    return dx, d_kernel


_product.defvjp(_product_forward, _product_backward)


def _precision(dtype: Any) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


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


def time_frequencies(time: Float[Array, "*rows"], size: int) -> Float[Array, "*rows size"]:
    """Cosines, then sines, of time at `size` / 2 frequencies from 1 down to almost 1/10000 (Vaswani et al. 2017)."""
    half = size // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angles = time[..., None] * jnp.expand_dims(jnp.asarray(frequencies), range(time.ndim))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rounded(x: AnyArray, axis: int) -> tuple[AnyArray, AnyArray]:
    """float32 numbers as int8 up to 127, and the scale of each line along `axis` that makes them what they were.

    Takes and gives arrays of numpy's or of jax's.
    """
    scale = abs(x).max(axis=axis, keepdims=True).clip(1e-12) / 127.0
    return (x / scale).round().astype("int8"), scale


class LowRank(nnx.Module):
    """What a LoRA adds to a linear map beside it (arXiv:2106.09685): scale * x a b, the map itself untouched.

    a [inputs, rank], b [rank, outputs], in stacked layers with a leading axis of layers.
    """

    def __init__(self, a: Float[Array, "*layers i r"], b: Float[Array, "*layers r o"], scale: float):
        self.a, self.b = nnx.Param(a), nnx.Param(b)
        self.scale = scale

    def __call__(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        return linear(linear(x, self.a[...]), self.b[...]) * self.scale


class Linear(nnx.Module):
    """kernel [inputs, outputs] and bias [outputs], and where one is tuned a low-rank change beside them.

    A kernel that is not trained may lie there as int8; then each output is multiplied by its int8_scale [1, outputs].
    """

    low_rank: LowRank | None = None
    int8_scale: nnx.Param | None = None

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, *, init: Any = None, bias: bool = True):
        init = nnx.initializers.xavier_uniform() if init is None else init
        self.kernel = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "*rows i"]) -> Float[Array, "*rows o"]:
        bias = None if self.bias is None else self.bias[...]
        if self.int8_scale is None:
            y = linear(x, self.kernel[...], bias)
        else:  # whole numbers up to 127 lose nothing in bfloat16; scaled afterwards, no kernel is ever made of them
            y = linear(x, self.kernel[...].astype(x.dtype)).astype(jnp.float32)
            y = (y * jnp.expand_dims(self.int8_scale[...][0], range(y.ndim - 1))).astype(x.dtype)
            y = y if bias is None else y + jnp.expand_dims(bias.astype(x.dtype), range(y.ndim - 1))
        return y if self.low_rank is None else y + self.low_rank(x)


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


def modulate(
    x: Float[Array, "b n c"], rows: Float[Array, "b s 2 c"], sizes: tuple[int, ...], eps: float
) -> Float[Array, "b n c"]:
    """Layer norm, then the segment's shift (row 0) and scale (row 1), in float32; returns x's dtype."""
    function = lambda x, row: (layer_norm(x, eps=eps) * (1.0 + row[:, 1:2]) + row[:, 0:1]).astype(x.dtype)
    return per_segment(function, sizes, (x,), rows)


def gated(
    x: Float[Array, "b n c"], y: Float[Array, "b n c"], rows: Float[Array, "b s c"], sizes: tuple[int, ...]
) -> Float[Array, "b n c"]:
    """x plus y times the segment's gate, in float32; returns x's dtype."""
    function = lambda x, y, row: (x.astype(jnp.float32) + y.astype(jnp.float32) * row[:, None]).astype(x.dtype)
    return per_segment(function, sizes, (x, y), rows)


def stack(make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> Any:
    """`depth` layers as one module whose parameters have a leading layer axis."""
    return nnx.vmap(make)(rngs.split(depth))


def scan(
    layers: nnx.Module,
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    state: Any = None,
    *,
    remat: Remat = KEEP_PRODUCTS,
) -> tuple[Any, Any]:
    """Runs stacked layers one after the other: body(layer, carry, state of the layer) -> (carry, its new state).

    Args:
      layers: as made by `stack`.
      carry: what one layer hands to the next.
      state: a pytree with a leading layer axis, or None.
      remat: what each layer's backward pass makes again: True all of it, False nothing, a policy of
        jax.checkpoint_policies what it does not keep; the outcome of attention has the name attention.ATTENTION_NAME,
        what a layer is handed LAYER_NAME.

    Returns:
      The last carry and the layers' new state, stacked.
    """
    graphdef, params = nnx.split(layers)

    def step(carry, layer):
        params, state = layer
        if remat:
            carry = checkpoint_name(carry, LAYER_NAME)
        return body(nnx.merge(graphdef, params), carry, state)

    if remat:
        step = jax.checkpoint(step, policy=None if remat is True else remat, prevent_cse=False)
    depth = jax.tree.leaves(params)[0].shape[0]
    return jax.lax.scan(step, carry, (params, state), unroll=not remat and depth <= UNROLLED)
