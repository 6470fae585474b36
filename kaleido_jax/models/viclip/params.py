"""Names of ViCLIP's weights in its release (ViClip-InternVid-10M-FLT.pth), as data: those of OpenAI's CLIP."""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx

from kaleido_jax.models import mapping as tables
from kaleido_jax.models.mapping import MATRIX, SAME, Entry, Kind, Shape, Transform, layers_of, size_of
from kaleido_jax.models.text.clip.config import CLIPTextConfig
from kaleido_jax.models.viclip.config import ViCLIPConfig
from kaleido_jax.models.viclip.modeling import ViCLIP
from kaleido_jax.models.vision.config import VisionConfig

HEAD_DIM = 64  # of both towers
_VIDEO, _TEXT = "vision_encoder.", "text_encoder."


def ignored(name: str) -> bool:
    """Whether a tensor of the file is none of the towers': the temperature of the training's loss."""
    return name == "temp"


def config_from(shapes: Mapping[str, Shape]) -> ViCLIPConfig:
    """The sizes of a file from its tensors' shapes. Raises InputError: a tensor that tells a size is missing."""
    dim, patch = (size_of(shapes, _VIDEO + "conv1.weight", axis) for axis in (0, 3))
    layer = "transformer.resblocks.{}.ln_1.weight"
    hidden = "transformer.resblocks.0.mlp.c_fc.weight"
    grid = round((size_of(shapes, _VIDEO + "positional_embedding", 0) - 1) ** 0.5)
    vision = VisionConfig(
        family="clip", dim=dim, ffn_dim=size_of(shapes, _VIDEO + hidden, 0), heads=max(dim // HEAD_DIM, 1),
        layers=layers_of(shapes, _VIDEO + layer), patch=patch, image_size=grid * patch, activation="quick_gelu",
        projection=size_of(shapes, _VIDEO + "proj", 1), eps=1e-5,
    )  # fmt: skip
    vocab_size, width = (size_of(shapes, _TEXT + "token_embedding.weight", axis) for axis in (0, 1))
    text = CLIPTextConfig(
        vocab_size=vocab_size, positions=size_of(shapes, _TEXT + "positional_embedding", 0), dim=width,
        ffn_dim=size_of(shapes, _TEXT + hidden, 0), heads=max(width // HEAD_DIM, 1),
        layers=layers_of(shapes, _TEXT + layer), end_id=vocab_size - 1,
    )  # fmt: skip
    return ViCLIPConfig(
        vision=vision, text=text, frames=size_of(shapes, _VIDEO + "temporal_positional_embedding", 1)
    )  # fmt: skip


def mapping(config: ViCLIPConfig) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in the file."""
    patch = config.vision.patch
    patches = Transform("d c 1 y x -> (y x c) d", (("y", patch), ("x", patch)))
    kinds: dict[str, Kind] = {
        "linear": ((".kernel", ".weight", MATRIX), (".bias", ".bias", SAME)),
        "linear, one tensor each": ((".kernel", "_weight", MATRIX), (".bias", "_bias", SAME)),
        "norm": ((".scale", ".weight", SAME), (".bias", ".bias", SAME)),
        "patches": ((".kernel", ".weight", patches),),
        "head": ((".kernel", "", SAME),),
        "tensor": (("", "", SAME),),
        "table": (("", ".weight", SAME),),
        "1 f d": (("", "", Transform("1 f d -> f d")),),
    }
    video = [
        ("video.summary", _VIDEO + "class_embedding", "tensor"),
        ("video.patch_embedding", _VIDEO + "conv1", "patches"),
        ("video.positions", _VIDEO + "positional_embedding", "tensor"),
        ("video.times", _VIDEO + "temporal_positional_embedding", "1 f d"),
        ("video.norm_in", _VIDEO + "ln_pre", "norm"),
        *_blocks("video.", _VIDEO, config.vision.dim),
        ("video.norm_out", _VIDEO + "ln_post", "norm"),
        ("video.projection", _VIDEO + "proj", "head"),
    ]
    text = [
        ("text.token_embedding", _TEXT + "token_embedding", "table"),
        ("text.position_embedding", _TEXT + "positional_embedding", "tensor"),
        *_blocks("text.", _TEXT, config.text.dim),
        ("text.final_norm", _TEXT + "ln_final", "norm"),
        ("projection", _TEXT + "text_projection", "head"),
    ]
    return tables.table_of(video, kinds, config.vision.layers) | tables.table_of(text, kinds, config.text.layers)


def _blocks(ours: str, theirs: str, dim: int) -> list[tuple]:
    layer = theirs + "transformer.resblocks.{}."
    thirds = [
        (f"{ours}blocks.attention.{part}", layer + "attn.in_proj", "linear, one tensor each", (i * dim, (i + 1) * dim))
        for i, part in enumerate(("query", "key", "value"))
    ]
    return [
        (ours + "blocks.norm1", layer + "ln_1", "norm"),
        *thirds,
        (ours + "blocks.attention.out", layer + "attn.out_proj", "linear"),
        (ours + "blocks.norm2", layer + "ln_2", "norm"),
        (ours + "blocks.mlp.first", layer + "mlp.c_fc", "linear"),
        (ours + "blocks.mlp.second", layer + "mlp.c_proj", "linear"),
    ]


def torch_shapes(config: ViCLIPConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of the file, without allocating any."""
    ours = tables.abstract_parameters(lambda: ViCLIP(config, nnx.Rngs(0)))
    return tables.torch_shapes(mapping(config), ours)
