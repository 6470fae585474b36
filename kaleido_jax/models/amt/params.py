"""Names of AMT-S's weights in its release (amt-s.pth), as data."""

from __future__ import annotations

from kaleido_jax.models import mapping as tables
from kaleido_jax.models.amt.config import AMTConfig
from kaleido_jax.models.mapping import SAME, Entry, Kind, Transform

_CONV: Kind = ((".kernel", ".weight", Transform("o i y x -> y x i o")), (".bias", ".bias", SAME))
_DOUBLING: Kind = ((".kernel", ".weight", Transform("i o y x -> y x i o")), (".bias", ".bias", SAME))
_ACTIVATED: Kind = (
    *((".conv" + ours, ".0" + theirs, how) for ours, theirs, how in _CONV),
    (".act.slope", ".1.weight", SAME),
)
_KINDS = {"conv": _CONV, "doubling": _DOUBLING, "activated": _ACTIVATED, "prelu": ((".slope", ".weight", SAME),)}
# Of an update: our convolution and its name there.
_UPDATE = (
    ("correlation", "convc1"), ("flow1", "convf1"), ("flow2", "convf2"), ("joined", "conv"),
    *((f"{ours}.{place}", f"{theirs}.{number}")
      for ours, theirs in (("trunk", "gru"), ("features", "feat_head"), ("flows", "flow_head"))
      for place, number in (("first", 0), ("second", 2))),
)  # fmt: skip


def mapping(config: AMTConfig) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in the file."""
    rows = [("matching.conv_in", "feat_encoder.conv1", "conv"), ("matching.conv_out", "feat_encoder.conv2", "conv")]
    for stage in range(len(config.matching)):
        for half in (0, 1):
            ours, theirs = f"matching.blocks.{2 * stage + half}.", f"feat_encoder.layer{stage + 1}.{half}."
            rows += [(f"{ours}conv{i}", f"{theirs}conv{i}", "conv") for i in (1, 2, 3)]
            if stage and not half:
                rows.append((ours + "shortcut", theirs + "downsample.0", "conv"))
    for level in range(len(config.channels)):
        rows += [(f"pyramid.{level}.{i}", f"encoder.pyramid{level + 1}.{i}", "activated") for i in (0, 1)]
        ours, theirs = f"decoders.{level}.", f"decoder{len(config.channels) - level}.convblock."
        rows += [(ours + "first", theirs + "0", "activated"), (ours + "up", theirs + "2", "doubling")]
        rows += [(f"{ours}block.convs.{i}", f"{theirs}1.conv{i + 1}", "activated") for i in range(4)]
        rows += [
            (ours + "block.conv_out", theirs + "1.conv5", "conv"),
            (ours + "block.act", theirs + "1.prelu", "prelu"),
        ]
    for number in range(len(config.channels) - 1):
        theirs = f"update{len(config.channels) - number}."
        rows += [(f"updates.{number}.{name}", theirs + official, "conv") for name, official in _UPDATE]
    rows += [("correct", "comb_block", "activated"), ("correct_out", "comb_block.2", "conv")]
    return tables.table_of(rows, _KINDS)
