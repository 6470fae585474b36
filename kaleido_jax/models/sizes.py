"""Checks that the sizes of several families share: a ValueError names the field, its value and what is right."""

import dataclasses
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def check_dtype(config: Any) -> None:
    """`config.dtype` names one that activations may have."""
    if config.dtype not in DTYPES:
        raise ValueError(f"{type(config).__name__}.dtype is {config.dtype!r}; expected float32, bfloat16 or float16.")


def check_transformer(config: Any) -> None:
    """Of a transformer of patches: every field of type int is positive; `freq_dim`, `patch` and `dtype` can be used."""
    kind = type(config).__name__
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type is int and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{kind}.{field.name} is {value!r}; expected a positive integer.")
    if config.freq_dim % 2:
        raise ValueError(f"{kind}.freq_dim is {config.freq_dim}; expected an even number.")
    if len(config.patch) != 3 or min(config.patch) < 1:
        raise ValueError(f"{kind}.patch is {config.patch}; expected three positive integers.")
    check_dtype(config)
