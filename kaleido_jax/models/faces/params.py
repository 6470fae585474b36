"""Names of face recognition networks' weights in the files that are released, as data.

Two layouts: "arcface", of InsightFace's arcface_torch (backbone.pth), and "curricularface", of Tencent's TFace, which
OpenS2V-Eval and ConsisID read. InsightFace's ONNX packs hold the same network with its norms folded into convolutions;
they are not read.
"""

from collections.abc import Mapping
from typing import Literal

from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models.faces.config import FaceConfig
from kaleido_jax.models.faces.modeling import FaceEncoder
from kaleido_jax.models.mapping import SAME, Entry, Shape, Transform, abstract_parameters, size_of

Layout = Literal["arcface", "curricularface"]

_NORM = ((".scale", ".weight"), (".bias", ".bias"), (".mean", ".running_mean"), (".variance", ".running_var"))
_KERNEL = Transform("o i y x -> y x i o")
# Of a block: our module, its name in either layout, kind.
_BLOCK = (
    ("norm1", "bn1", "res_layer.0", "norm"),
    ("conv1", "conv1", "res_layer.1", "conv"),
    ("norm2", "bn2", "res_layer.2", "norm"),
    ("act", "prelu", "res_layer.3", "prelu"),
    ("conv2", "conv2", "res_layer.4", "conv"),
    ("norm3", "bn3", "res_layer.5", "norm"),
    ("shortcut", "downsample.0", "shortcut_layer.0", "conv"),
    ("shortcut_norm", "downsample.1", "shortcut_layer.1", "norm"),
)
_ENDS = (
    ("conv_in", "conv1", "input_layer.0", "conv"),
    ("norm_in", "bn1", "input_layer.1", "norm"),
    ("act_in", "prelu", "input_layer.2", "prelu"),
    ("norm_out", "bn2", "output_layer.0", "norm"),
    ("out", "fc", "output_layer.3", "flat"),
    ("features_norm", "features", "output_layer.4", "norm"),
)


def ignored(name: str) -> bool:
    """Whether a tensor of a file is no weight: how many batches a norm has seen."""
    return name.endswith(".num_batches_tracked")


def layout_of(names: Mapping[str, Shape]) -> Layout:
    """Which layout a file has, by its names. Raises InputError if it has neither."""
    for layout, marker in (("arcface", "layer1.0.conv1.weight"), ("curricularface", "body.0.res_layer.1.weight")):
        if marker in names:
            return layout
    raise InputError(
        "the tensors are none of ArcFace's (layer1.0.conv1.weight) or CurricularFace's (body.0.res_layer.1.weight)."
    )


def config_from(shapes: Mapping[str, Shape], layout: Layout) -> FaceConfig:
    """The sizes of a network from its tensors' shapes. Raises InputError: a tensor that tells a size is missing."""
    block = "layer{}.{}.conv2.weight" if layout == "arcface" else "body.{}.res_layer.4.weight"
    entrance, end = ("conv1", "fc") if layout == "arcface" else ("input_layer.0", "output_layer.3")
    widths: list[int] = [size_of(shapes, f"{entrance}.weight", 0)]
    depths: list[int] = []
    if layout == "arcface":
        while block.format(len(depths) + 1, 0) in shapes:
            stage = len(depths) + 1
            widths.append(size_of(shapes, block.format(stage, 0), 0))
            depths.append(0)
            while block.format(stage, depths[-1]) in shapes:
                depths[-1] += 1
    else:
        # A stage begins where channels change, and the first one, which keeps them, with the first block.
        number = 0
        while block.format(number) in shapes:
            width = size_of(shapes, block.format(number), 0)
            if not depths or width != widths[-1]:
                widths.append(width)
                depths.append(0)
            depths[-1] += 1
            number += 1
    features, flat = (size_of(shapes, f"{end}.weight", axis) for axis in (0, 1))
    grid = round((flat / widths[-1]) ** 0.5)
    if not depths or grid**2 * widths[-1] != flat:
        raise InputError(f"{end}.weight reads {flat} values, which are no square of {widths[-1]} channels.")
    return FaceConfig(
        depths=tuple(depths), channels=tuple(widths), features=features, image_size=grid * 2 ** len(depths),
        subsampled=layout == "curricularface",
    )  # fmt: skip


def mapping(config: FaceConfig, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a file of this layout."""
    flat = Transform("o (c y x) -> (y x c) o", (("y", config.grid), ("x", config.grid)))
    kinds = {
        "norm": tuple((ours, theirs, SAME) for ours, theirs in _NORM),
        "conv": ((".kernel", ".weight", _KERNEL),),
        "prelu": ((".slope", ".weight", SAME),),
        "flat": ((".kernel", ".weight", flat), (".bias", ".bias", SAME)),
    }
    which = 0 if layout == "arcface" else 1
    table: dict[str, Entry] = {}

    def add(ours: str, theirs: list[str], kind: str, *, stacked: bool = False) -> None:
        for suffix, other, transform in kinds[kind]:
            table[ours + suffix] = Entry(tuple(name + other for name in theirs), transform, stacked)

    for ours, *names, kind in _ENDS:
        add(ours, [names[which]], kind)
    before = 0
    for stage, depth in enumerate(config.depths):
        places = [f"layer{stage + 1}.{i}." if layout == "arcface" else f"body.{before + i}." for i in range(depth)]
        before += depth
        for ours, *names, kind in _BLOCK:
            add(f"stages.{stage}.first.{ours}", [places[0] + names[which]], kind)
            add(f"stages.{stage}.rest.{ours}", [place + names[which] for place in places[1:]], kind, stacked=True)
    present = abstract_parameters(lambda: FaceEncoder(config, nnx.Rngs(0)))
    return {name: entry for name, entry in table.items() if name in present}
