"""Readers of plain folders, of Kaleido's training layout, and of folders of identities."""

from collections.abc import Iterator
from pathlib import Path

from kaleido_jax.curation.records import Source, stable_id
from kaleido_jax.errors import InputError

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


def videos(folder: Path) -> list[Path]:
    """Files below the folder whose names end like videos, in an order that no file system decides."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in VIDEOS and not path.name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def text_of(path: Path) -> str:
    """The text of a caption file, or "" where there is none."""
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the caption cannot be read ({type(error).__name__}); write UTF-8 text.") from None


def plain(folder: Path) -> Iterator[Source]:
    """Every video of a folder; a text file of the same name beside it is its caption."""
    for path in videos(folder):
        name = path.relative_to(folder).as_posix()
        caption = text_of(path.with_suffix(".txt"))
        yield Source(id=stable_id("folder", name), path=str(path), caption=caption, dataset=folder.name)


def kaleido(folder: Path) -> Iterator[Source]:
    """The layout that Kaleido trains on: videos/ID.mp4, labels/ID.txt (its first line), references/ID/ref1.png ..."""
    for path in videos(folder / "videos"):
        name = path.relative_to(folder / "videos").with_suffix("").as_posix()
        lines = text_of(folder / "labels" / f"{name}.txt").splitlines()
        pictures = sorted((folder / "references" / name).glob("ref*.png"))
        yield Source(
            id=stable_id("kaleido", name),
            path=str(path),
            caption=lines[0].strip() if lines else "",
            dataset=folder.name,
            references=tuple(map(str, pictures)),
        )


def identities(folder: Path) -> Iterator[Source]:
    """A folder an identity (the form of PortraitGala): every video below it shows the same person or thing."""
    for path in videos(folder):
        name = path.relative_to(folder)
        if len(name.parts) < 2:
            raise InputError(f"{path}: belongs to no identity; put videos into one folder an identity.")
        yield Source(
            id=stable_id("identities", name.as_posix()),
            path=str(path),
            caption=text_of(path.with_suffix(".txt")),
            dataset=folder.name,
            identity=name.parts[0],
        )
