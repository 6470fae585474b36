"""Floating-point operations of a program, counted in its jaxpr.

The compiler's own count takes a scan's body once, kernels as nothing, and is missing on GPUs, so it is of no use here.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval


def count(function: Callable, *arguments: Any) -> int:
    """Operations in the products (matrix products and convolutions) of function(*arguments); 2 for a multiply-add.

    arguments: arrays or their shapes. A scan's body counts as often as it runs, and of a conditional the branch that
    has most. What is elementwise is not counted, nor what no result needs. Trace without a mesh: kernels hide their
    products.

    Raises:
      ValueError: for a loop without a known number of rounds that has products in it.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return count_jaxpr(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def forward_operations(wan: Any, tokens: int, text: int) -> float:
    """Of one forward pass of one sequence through a WanTransformer, by a closed formula.

    2 n i o for a linear map, 4 n m d for attention; what is left out (time, modulation) does not grow with the tokens.

    Args:
      wan: its WanConfig. tokens, text: visual tokens and those of the prompts.
    """
    maps = 2 * (6 * tokens * wan.dim**2 + 2 * text * wan.dim**2 + 2 * tokens * wan.dim * wan.ffn_dim)
    attention = 4 * (tokens**2 + tokens * text) * wan.dim
    ends = 2 * tokens * math.prod(wan.patch) * (wan.in_channels + wan.out_channels) * wan.dim
    return float(wan.layers * (maps + attention) + ends + 2 * text * (wan.text_dim + wan.dim) * wan.dim)


def dense_attend(q: Any, k: Any, v: Any, table: Any, rope: Any, state: Any) -> tuple[Any, Any]:
    """A transformer's hook `attend` that has the products of attention and no others. To be counted, never to be run.

    Attention proper fills up its blocks and makes scores again for the gradient: work, but not the model's.
    """
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k)
    return jnp.einsum("bhnm,bmhd->bnhd", scores, v), state


def attend_without_products(q: Any, k: Any, v: Any, table: Any, rope: Any, state: Any) -> tuple[Any, Any]:
    """Such a hook without products, for the difference. It reads all three, so that what makes them is still needed."""
    return q + jnp.mean(k + v, axis=1, keepdims=True), state


def count_jaxpr(jaxpr: Any) -> int:
    """`count` of a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += params["length"] * count_jaxpr(params["jaxpr"].jaxpr)
        elif name == "cond":
            total += max(count_jaxpr(branch.jaxpr) for branch in params["branches"])
        elif name == "while":
            if count_jaxpr(params["body_jaxpr"].jaxpr) or count_jaxpr(params["cond_jaxpr"].jaxpr):
                raise ValueError("a while loop has products, and how often it runs is not known")
        elif name == "shard_map":
            copies = math.prod(params["mesh"].shape[axis] for axis in params["manual_axes"])
            total += copies * count_jaxpr(params["jaxpr"])
        else:
            total += sum(count_jaxpr(inner) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of a call."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    numbers, kernel = equation.params["dimension_numbers"], equation.invars[1].aval.shape
    taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])  # input channels of a group, and space
    return 2 * math.prod(equation.outvars[0].aval.shape) * taps
