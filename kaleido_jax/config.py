"""Configuration: frozen keyword-only dataclasses, read from a Python file, overridden by dotted name, kept as JSON.

A config file is an experiment record: a Python file whose docstring says what it is for and whose function `config()`
returns a frozen dataclass. `load` reads it, `override` applies `section.field=value` strings from a command line, and
`to_json` / `from_json` keep it beside checkpoints and weights.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kaleido_jax.errors import InputError, UsageError

T = TypeVar("T")


def load(path: str | Path) -> Any:
    """What `config()` of the Python file at `path` returns; UsageError when there is no such file or function."""
    path = Path(path)
    if not path.is_file():
        siblings = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise UsageError(f"there is no config file {path}{nearest(str(path), siblings)}")
    spec = importlib.util.spec_from_file_location(f"kaleido_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"the config file {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "config", None)):
        raise UsageError(f"the config file {path} defines no function config() that returns the configuration")
    return module.config()


def override(config: T, assignments: Sequence[str]) -> T:
    """`config` with `section.field=value` strings applied; the values are parsed by tyro to each field's type.

    A tuple's values are separated by commas. Raises UsageError for a misspelled field (naming the nearest one) and for
    a value that does not fit the field's type.
    """
    fields = dict(dotted_fields(config))
    arguments = [_argument(assignment, fields) for assignment in assignments]
    result, reason = _parse(config, [word for words in arguments for word in words])
    if result is not None:
        return result
    # Some values go only together, such as a width and a number of heads: wrong is the one without which the rest fits.
    without = lambda index: [word for place, words in enumerate(arguments) if place != index for word in words]
    wrong = [index for index in range(len(arguments)) if _parse(config, without(index))[0] is not None]
    for index in wrong or range(len(arguments)):
        alone, because = _parse(config, arguments[index])
        if alone is None or wrong:
            name, _, value = assignments[index].partition("=")
            raise UsageError(f"{name}={value} is refused: {because or reason} (it is now {fields[name]!r})")
    raise UsageError(f"the overrides {' '.join(assignments)} cannot be applied together: {reason}")


def dotted_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of a dataclass that is not itself a dataclass, depth first."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from dotted_fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def nearest(name: str, known: Sequence[str]) -> str:
    """ "; did you mean ...?" with the nearest of the known names, or nothing if none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _argument(assignment: str, fields: Mapping[str, Any]) -> list[str]:
    name, equals, value = assignment.partition("=")
    if not equals:
        raise UsageError(f"{assignment!r} is not an override; write section.field=value")
    if name not in fields:
        raise UsageError(f"the configuration has no field {name}{nearest(name, list(fields))}")
    return [f"--{name}", *value.split(",")] if isinstance(fields[name], tuple) else [f"--{name}={value}"]


def _parse(config: T, arguments: Sequence[str]) -> tuple[T | None, str]:
    """The configuration with the arguments applied, or None and why not."""
    import tyro  # costs 0.2 s, and only commands that override fields need it

    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            flags = (tyro.conf.FlagConversionOff,)  # name=True and name=False, like all other values
            return tyro.cli(type(config), args=arguments, default=config, use_underscores=True, config=flags), ""
        except SystemExit as error:
            reasons = getattr(error.__context__, "args", ())
            return None, str(reasons[0]) if reasons else "it does not fit the field's type"


def to_json(config: Any) -> dict[str, Any]:
    """The dataclass as nested dictionaries of what JSON can hold."""
    return dataclasses.asdict(config)


def from_json(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """The inverse of `to_json`. Raises InputError for a field that `cls` does not have or that is missing."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where} should be a table of {cls.__name__}'s fields, but is {values!r}")
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    for name in values:
        if name not in known:
            raise InputError(f"{where} has no field {name}{nearest(name, known)}")
    try:
        return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in values.items()})
    except TypeError as error:
        raise InputError(f"{where} cannot be read as {cls.__name__}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` out of JSON as the type `hint`: nested dataclasses and tuples, everything else as it is."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    options = typing.get_args(hint) if is_union else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_json(typing.cast(type, option), value, where)
        if (option is tuple or typing.get_origin(option) is tuple) and isinstance(value, list):
            return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return value
