"""Dataclasses as JAX pytrees."""

import dataclasses
from typing import TypeVar

import jax

T = TypeVar("T")


def pytree(cls: type[T]) -> type[T]:
    """Registers a frozen dataclass as a pytree; fields made with `static()` belong to its structure, not its leaves.

    Rebuilding it does not run `__init__`: JAX puts shapes, shardings and placeholders where arrays were, which neither
    `__post_init__` nor run-time type checks would accept.
    """
    fields = dataclasses.fields(cls)
    leaves = tuple(field.name for field in fields if not field.metadata.get("static"))
    statics = tuple(field.name for field in fields if field.metadata.get("static"))

    def flatten_with_keys(value):
        children = tuple((jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in leaves)
        return children, tuple(getattr(value, name) for name in statics)

    def flatten(value):
        return tuple(getattr(value, name) for name in leaves), tuple(getattr(value, name) for name in statics)

    def unflatten(structure, children):
        value = object.__new__(cls)
        for name, child in zip(leaves + statics, tuple(children) + tuple(structure)):
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def static(**kwargs):
    """A dataclass field that belongs to the structure of a `pytree`: hashable, a new value means a new program."""
    return dataclasses.field(metadata={"static": True}, **kwargs)
