"""Groups of pictures of the same characters: CharaConsist's file of prompts.

A line is a picture, `background#characters#what they do`; the first of a group is the identity picture, an empty line
stands between groups (github.com/Murray-Wang/CharaConsist). Ours beside that: several characters, divided by `||`.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from kaleido_jax.errors import InputError, printable
from kaleido_jax.media.images import read_bytes
from kaleido_jax.pipeline.request import check_prompt, shown

MAX_BYTES = 2_000_000
MAX_PICTURES = 1000
MAX_CHARACTERS = 8  # of a group; a mask has 32 bits, and attention would have little left to tell them apart by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """What one picture shows. characters: each in words of its own."""

    background: str
    characters: tuple[str, ...]
    action: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The prompt in pieces: the background, then for each character but the first "and", it, and what they do."""
        first, *others = self.characters
        return (f"{self.background} ", f"{first} ", *(p for o in others for p in ("and ", f"{o} ")), self.action)

    @property
    def prompt(self) -> str:
        return "".join(self.parts)

    @property
    def line(self) -> str:
        """As it stands in a file."""
        return "#".join((self.background, " || ".join(self.characters), self.action))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The identity picture and the frames. where: how errors name it."""

    identity: Picture
    frames: tuple[Picture, ...]
    where: str = ""

    def __post_init__(self) -> None:
        said = f"{self.where}: " if self.where else ""
        if not self.frames:
            raise InputError(f"{said}The group has one picture; give it a second one that shows the same character.")
        if len(self.identity.characters) > 1:
            for number, frame in enumerate(self.frames, 2):
                for character in frame.characters:
                    if character not in self.identity.characters:
                        raise InputError(
                            f"{said}Picture {number} shows {shown(character)}, and the identity picture does not; "
                            "with several characters, each is written as in the group's first line."
                        )
        elif any(len(frame.characters) > 1 for frame in self.frames):
            raise InputError(f"{said}A picture shows several characters, and the identity picture only one; show all.")

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return (self.identity, *self.frames)

    def numbers(self, picture: Picture) -> tuple[int, ...]:
        """The numbers, from 1, of a picture's characters among the identity picture's."""
        names = self.identity.characters
        return (1,) if len(names) == 1 else tuple(1 + names.index(character) for character in picture.characters)

    def words(self, picture: Picture, tokens: Callable[[str], int], length: int) -> list[int]:
        """What each text token says: 0 the background, 1, 2, ... a character, above all they do, -1 nothing.

        tokens: how many a text has, without the end. length: how many are read, with the end and padding.

        Raises:
          InputError: the text has no room for what the characters do.
        """
        shared = 1 + len(self.identity.characters)
        first, *others = self.numbers(picture)
        says = [0, first, *(kind for other in others for kind in (shared, other)), shared]
        found, text = [], ""
        for part, kind in zip(picture.parts, says):
            text += part
            found += [kind] * max(0, tokens(text) - len(found))
        if len(found) > length - 1 and shared not in found[: length - 1]:
            raise InputError(
                f"{self.where + ': ' if self.where else ''}A prompt has {len(found)} tokens and {length - 1} are read, "
                f"which leaves out what the characters do; shorten {shown(picture.background)}."
            )
        found = found[: length - 1]
        return found + [-1] * (length - len(found))


def read_groups(path: Path) -> list[Group]:
    """All groups of a file.

    Raises:
      InputError: for the first wrong line or group, by its number.
    """
    name = printable(str(path))
    try:
        text = read_bytes(path, MAX_BYTES, "a text file of groups").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from None
    groups: list[Group] = []
    lines: list[tuple[int, Picture]] = []

    def close() -> None:
        if lines:
            identity, *frames = (picture for _, picture in lines)
            where = f"{name}, the group of line {lines[0][0]}"
            groups.append(Group(identity=identity, frames=tuple(frames), where=where))
            lines.clear()

    count = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            close()
            continue
        count += 1
        if count > MAX_PICTURES:
            raise InputError(f"{name}: has more than {MAX_PICTURES} pictures; split the file.")
        lines.append((number, _picture(line.strip(), f"{name}, line {number}")))
    close()
    if not groups:
        raise InputError(f"{name}: holds no picture; write one a line, as background#character#what it does.")
    return groups


def _picture(line: str, where: str) -> Picture:
    parts = line.split("#")
    if len(parts) != 3:
        raise InputError(
            f"{where}: has {len(parts) - 1} signs #; write background#character#what it does, with exactly two."
        )
    try:
        for what, part in zip(("background", "character", "part that says what it does"), parts):
            if not part.strip():
                raise InputError(f"The {what} is empty; masks come from the words of every part.")
        background, characters, action = (check_prompt(part) for part in parts)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    names = tuple(re.split(r"\s*\|\|\s*", characters))
    if not all(names) or len(set(names)) < len(names):
        raise InputError(f"{where}: the characters are {shown(characters)}; write each once, divided by ||.")
    if len(names) > MAX_CHARACTERS:
        raise InputError(f"{where}: has {len(names)} characters; at most {MAX_CHARACTERS} are told apart.")
    return Picture(background=background, characters=names, action=action)
