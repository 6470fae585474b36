"""Looking things up by name, with an error that helps."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry called `name`; a ValueError that gives the nearest name and all of them if there is none.

    `what` says in the message what kind of thing was asked for, e.g. "position scheme".
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" (nearest: {near[0]!r})" if near else ""
    raise ValueError(f"unknown {what} {name!r}{hint}; known: {', '.join(sorted(table))}")
