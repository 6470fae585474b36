"""Looking things up by name, with an error that helps."""

from collections.abc import Mapping
from typing import TypeVar

from kaleido_jax.errors import UsageError, unknown_name

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry called `name`. Raises UsageError with the nearest name and all of them if there is none.

    `what` says in the message what kind of thing was asked for, e.g. "position scheme".
    """
    if name not in table:
        raise UsageError(unknown_name(what, name, table))
    return table[name]
