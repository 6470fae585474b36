"""Methods by name, with their options written as `name=value`."""

import dataclasses
import typing
from collections.abc import Mapping, Sequence

from kaleido_jax.errors import UsageError, printable, unknown_name
from kaleido_jax.methods.anyid import AnyID
from kaleido_jax.methods.contextanyone import ContextAnyone
from kaleido_jax.methods.kaleido import Kaleido
from kaleido_jax.methods.lct import LCT
from kaleido_jax.methods.method import Method
from kaleido_jax.methods.wan import Wan
from kaleido_jax.names import lookup

METHODS: Mapping[str, type[Method]] = {method.name: method for method in (Kaleido, AnyID, ContextAnyone, LCT, Wan)}


def create(name: str, scheme: str = "", options: Sequence[str] = ()) -> Method:
    """The method called `name`.

    Args:
      scheme: a name of `rope.SCHEMES`; empty: the method's own.
      options: "name=value" for fields of the method's class, such as "rule=unidirectional".

    Raises:
      UsageError: for a method, a scheme, an option or a value that does not exist; says the nearest name.
    """
    method = lookup(METHODS, name, "method")
    kinds = typing.get_type_hints(method)
    known = [field.name for field in dataclasses.fields(method) if field.name != "scheme"]
    values = {"scheme": scheme} if scheme else {}
    for option in options:
        field, equals, value = option.partition("=")
        if not equals:
            raise UsageError(f"The option {printable(option)!r} of {name} has no value; write name=value.")
        if field not in known:
            raise UsageError(unknown_name(f"option of {name}", field, known))
        values[field] = _value(f"{name}'s option {field}", kinds[field], value)
    return method(**values)


def _value(what: str, kind: typing.Any, text: str) -> typing.Any:
    """`text` as a value of a field's type: one of several words, true or false, or a number."""
    if typing.get_origin(kind) is typing.Literal:
        if text not in typing.get_args(kind):
            raise UsageError(unknown_name(f"value for {what}:", text, typing.get_args(kind)))
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{what} is {printable(text)!r}; it must be True or False.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{what} is {printable(text)!r}; it must be of type {kind.__name__}.") from None
