"""Readers: what others publish, as sources. A reader is a function from a folder to sources, with stable ids."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from kaleido_jax.curation.readers import folders, tables
from kaleido_jax.curation.records import Source
from kaleido_jax.curation.settings import Curation
from kaleido_jax.errors import InputError, UsageError, unknown_name

READERS: dict[str, Callable[[Path], Iterator[Source]]] = {
    "folder": folders.plain,
    "kaleido": folders.kaleido,
    "identities": folders.identities,
    "opens2v": tables.opens2v,
    "openvid": tables.openvid,
    "webdataset": tables.webdataset,
}


def read(config: Curation, folder: Path) -> Iterator[Source]:
    """The sources that the configuration's reader finds; a source without a licence gets the configuration's."""
    if config.reader not in READERS:
        raise UsageError(unknown_name("reader", config.reader, READERS))
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; give the folder that holds the videos.")
    for source in READERS[config.reader](folder):
        yield source if source.license else replace(source, license=config.license)
