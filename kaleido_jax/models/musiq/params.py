"""Names of MUSIQ's weights in pyiqa's files (musiq_spaq_ckpt, musiq_koniq_ckpt, musiq_paq2piq_ckpt), as data."""

from __future__ import annotations

from collections.abc import Mapping

from kaleido_jax.models import mapping as tables
from kaleido_jax.models.mapping import MATRIX, SAME, Entry, Kind, Shape, Transform, layers_of, size_of
from kaleido_jax.models.musiq.config import MusiqConfig

HEAD_DIM = 64
_ENCODER = "transformer_encoder."
_LAYER = _ENCODER + "transformer.encoderblock_{}."


def config_from(shapes: Mapping[str, Shape]) -> MusiqConfig:
    """The sizes of a file from its tensors' shapes.

    Raises:
      InputError: a tensor that tells a size is missing.
      ValueError: the sizes are none of a network that gives one rating of pictures at three sizes.
    """
    dim, flat = (size_of(shapes, "embedding.weight", axis) for axis in (0, 1))
    stem, ratings = size_of(shapes, "conv_root.weight", 0), shapes.get("head.weight", (0,))[0]
    scales = size_of(shapes, _ENCODER + "scaleembed_input.scale_emb", 0)
    patch, grid = (4 * round((flat / (4 * stem)) ** 0.5)), size_of(shapes, _ENCODER + "posembed_input.position_emb", 1)
    if ratings != 1 or scales != 3:
        raise ValueError(
            f"the network gives {ratings or 'a distribution of'} ratings of {scales} scales; expected one rating of 3, "
            "as the networks for SPAQ, KonIQ-10k and PaQ-2-PiQ."
        )
    return MusiqConfig(
        dim=dim, ffn_dim=size_of(shapes, _LAYER.format(0) + "mlp.fc1.weight", 0), heads=max(dim // HEAD_DIM, 1),
        layers=layers_of(shapes, _LAYER + "norm1.weight"), stem=stem, grid=round(grid**0.5), patch=patch,
    )  # fmt: skip


def mapping(config: MusiqConfig) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in the file."""
    kinds: dict[str, Kind] = {
        "linear": ((".kernel", ".weight", MATRIX), (".bias", ".bias", SAME)),
        "norm": ((".scale", ".weight", SAME), (".bias", ".bias", SAME)),
        "conv": ((".kernel", ".weight", Transform("o i y x -> y x i o")),),
        "tensor": (("", "", SAME),),
        "1 n d": (("", "", Transform("1 n d -> n d")),),
        "1 1 d": (("", "", Transform("1 1 d -> d")),),
    }
    convolutions = (
        ("stem", "conv_root", "gn_root"), ("block.shortcut", "block1.conv_proj", "block1.gn_proj"),
        *((f"block.conv{i}", f"block1.conv{i}", f"block1.gn{i}") for i in (1, 2, 3)),
    )  # fmt: skip
    rows = [(ours, theirs, "conv") for ours, theirs, _ in convolutions]
    rows += [(ours, theirs, "norm") for ours, _, theirs in convolutions]
    rows += [
        ("embedding", "embedding", "linear"),
        ("places", _ENCODER + "posembed_input.position_emb", "1 n d"),
        ("scales", _ENCODER + "scaleembed_input.scale_emb", "tensor"),
        ("summary", _ENCODER + "cls", "1 1 d"),
        *((f"blocks.norm{i}", f"{_LAYER}norm{i}", "norm") for i in (1, 2)),
        *((f"blocks.{part}", f"{_LAYER}attention.{part}", "linear") for part in ("query", "key", "value", "out")),
        ("blocks.mlp.first", _LAYER + "mlp.fc1", "linear"),
        ("blocks.mlp.second", _LAYER + "mlp.fc2", "linear"),
        ("norm_out", _ENCODER + "encoder_norm", "norm"),
        ("head", "head", "linear"),
    ]
    return tables.table_of(rows, kinds, config.layers)
