"""Errors that a user can do something about, and the exit code that each one ends the `kaleido` command with.

An error of these classes is one clear sentence: it names the field or the file, the value found, and what would be
right. Everything else that escapes is a defect of this library and ends with `ExitCode.INTERNAL`.
"""

import difflib
import enum
from collections.abc import Iterable


class ExitCode(enum.IntEnum):
    """What the `kaleido` command tells the shell."""

    DONE = 0
    USAGE = 2  # the command line is wrong
    BAD_INPUT = 65  # a file, a prompt or a record is wrong
    INTERNAL = 70  # a defect of this library
    STORAGE = 74  # a disk or a folder does not take what is written, or lost what was written
    PREEMPTED = 75  # stopped by a signal with everything saved: run the same command again
    DIVERGED = 76  # the loss is not finite any more
    PEER_LOST = 77  # another process of the run died or hangs
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM where there is nothing to save


class KaleidoError(Exception):
    """Base of every error with a sentence for the user."""

    exit_code: ExitCode = ExitCode.INTERNAL


class UsageError(KaleidoError, ValueError):
    """An option or an argument has a value that cannot work."""

    exit_code = ExitCode.USAGE


class InputError(KaleidoError, ValueError):
    """A file, a prompt or a record cannot be used as it is."""

    exit_code = ExitCode.BAD_INPUT


class StorageError(KaleidoError, OSError):
    """Something cannot be written, or what was written cannot be trusted."""

    exit_code = ExitCode.STORAGE


class PeerLost(KaleidoError, RuntimeError):
    """Another process of the run died or hangs, or one that feeds it."""

    exit_code = ExitCode.PEER_LOST


def printable(text: str, limit: int = 300) -> str:
    """`text` without control characters, line breaks or lone surrogates, and not longer than `limit` characters.

    What a user or a file gave is shown through this, so that it can neither move a terminal's cursor nor break a line.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The member of `known` that `name` most likely was meant to be, or None if none resembles it."""
    known = list(known)
    folded = {k.lower().replace("_", "-"): k for k in known}
    matches = difflib.get_close_matches(name.lower().replace("_", "-"), folded, n=1, cutoff=0.5)
    return folded[matches[0]] if matches else None


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist: says the nearest one and all that do."""
    known = sorted(known)
    nearest = nearest_name(name, known)
    hint = f"; did you mean {nearest!r}?" if nearest else "."
    return f"There is no {what} {printable(name)!r}{hint} Known: {', '.join(known) or 'none'}."
