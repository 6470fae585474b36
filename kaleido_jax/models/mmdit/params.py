"""LCT's MMDiT has no public weights and so no names but our own, which are read and written with the sizes beside."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models import mapping as tables
from kaleido_jax.models.family import Family
from kaleido_jax.models.mapping import Entry, Shape
from kaleido_jax.models.mmdit.config import MMDiTConfig
from kaleido_jax.models.mmdit.modeling import VideoMMDiT


def _make(config: MMDiTConfig) -> VideoMMDiT:
    return VideoMMDiT(config, nnx.Rngs(0))


def mapping(config: MMDiTConfig, layout: str) -> dict[str, Entry]:
    """For every parameter, by dotted name, its place in a checkpoint: under the same name, as it is."""
    return {name: Entry((name,)) for name in tables.abstract_parameters(lambda: _make(config))}


def config_from(shapes: Mapping[str, Shape], layout: str, document: Mapping[str, Any] | None = None) -> MMDiTConfig:
    """Raises InputError: shapes do not tell the heads; a folder of ours has a config.json that says all sizes."""
    raise InputError("sizes of an LCT MMDiT are told by the config.json of our own folders alone")


def config_document(config: MMDiTConfig, layout: str) -> dict[str, Any]:
    """Nobody else has a config.json for it."""
    return {}


FAMILY = Family(
    name="lct-mmdit",
    config=MMDiTConfig,
    make=_make,
    sizes={"LCT-3B": MMDiTConfig.lct_3b},
    layout="kaleido",
    mapping=mapping,
    config_from=config_from,
    config_document=config_document,
)
