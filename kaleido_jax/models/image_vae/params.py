"""Names and shapes of the weights of the VAE of pictures in the releases that hold them, as data.

Two layouts: "original" (Black Forest Labs' ae.safetensors, named as in latent diffusion; its attention is made of 1 x 1
convolutions) and "diffusers" (AutoencoderKL without quant_conv, whose decoder numbers its stages as they run).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from flax import nnx

from kaleido_jax.models import mapping as tables
from kaleido_jax.models.family import Family
from kaleido_jax.models.image_vae.config import ImageVAEConfig
from kaleido_jax.models.image_vae.modeling import ImageVAE
from kaleido_jax.models.mapping import (
    MATRIX,
    SAME,
    Entry,
    Kind,
    Shape,
    Transform,
    layers_of,
    size_of,
    told,
    told_number,
)

Layout = Literal["original", "diffusers"]

_KINDS: dict[str, Kind] = {
    "convolution": ((".kernel", ".weight", Transform("o i y x -> y x i o")), (".bias", ".bias", SAME)),
    "norm": ((".scale", ".weight", SAME), (".bias", ".bias", SAME)),
    "linear": ((".kernel", ".weight", MATRIX), (".bias", ".bias", SAME)),
    "1 x 1": ((".kernel", ".weight", Transform("o i 1 1 -> i o")), (".bias", ".bias", SAME)),
}


def _block(ours: str, theirs: str, layout: Layout, shortcut: bool) -> Iterator[tuple[str, str, str]]:
    for part, kind in (("norm1", "norm"), ("conv1", "convolution"), ("norm2", "norm"), ("conv2", "convolution")):
        yield f"{ours}.{part}", f"{theirs}.{part}", kind
    if shortcut:
        name = "nin_shortcut" if layout == "original" else "conv_shortcut"
        yield f"{ours}.shortcut", f"{theirs}.{name}", "convolution"


def _middle(coder: str, layout: Layout) -> Iterator[tuple[str, str, str]]:
    original = layout == "original"
    ours, theirs = f"{coder}.middle", f"{coder}.mid" if original else f"{coder}.mid_block"
    yield from _block(f"{ours}.before", theirs + (".block_1" if original else ".resnets.0"), layout, False)
    yield from _block(f"{ours}.after", theirs + (".block_2" if original else ".resnets.1"), layout, False)
    attention = theirs + (".attn_1" if original else ".attentions.0")
    yield f"{ours}.attention.norm", f"{attention}.{'norm' if original else 'group_norm'}", "norm"
    names = ("q", "k", "v", "proj_out") if original else ("to_q", "to_k", "to_v", "to_out.0")
    for part, name in zip(("query", "key", "value", "out"), names):
        yield f"{ours}.attention.{part}", f"{attention}.{name}", "1 x 1" if original else "linear"


def _stages(config: ImageVAEConfig, layout: Layout) -> Iterator[tuple[str, str, str]]:
    original, last = layout == "original", len(config.channels) - 1
    for index in range(last + 1):
        for coder, direction, beside, blocks in (
            ("encoder", "down", max(index - 1, 0), config.num_res_blocks),
            ("decoder", "up", min(index + 1, last), config.num_res_blocks + 1),
        ):
            ours = f"{coder}.stages.{index}"
            number = last - index if direction == "up" and not original else index
            theirs = f"{coder}.{direction}.{number}" if original else f"{coder}.{direction}_blocks.{number}"
            for block in range(blocks):
                name = f"{theirs}.{'block' if original else 'resnets'}.{block}"
                changes = block == 0 and config.channels[beside] != config.channels[index]
                yield from _block(f"{ours}.blocks.{block}", name, layout, changes)
            if index < last if direction == "down" else index:
                name = f"{direction}sample" if original else f"{direction}samplers.0"
                yield f"{ours}.{direction}sample", f"{theirs}.{name}.conv", "convolution"


def _rows(config: ImageVAEConfig, layout: Layout) -> Iterator[tuple[str, str, str]]:
    """Rows of the table: (our module, its name there, kind)."""
    for coder in ("encoder", "decoder"):
        for part in ("conv_in", "conv_out"):
            yield f"{coder}.{part}", f"{coder}.{part}", "convolution"
        yield f"{coder}.norm_out", f"{coder}.{'norm_out' if layout == 'original' else 'conv_norm_out'}", "norm"
        yield from _middle(coder, layout)
    yield from _stages(config, layout)


def mapping(config: ImageVAEConfig, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout."""
    return tables.table_of(_rows(config, layout), _KINDS)


def config_from(
    shapes: Mapping[str, Shape], layout: Layout, document: Mapping[str, Any] | None = None
) -> ImageVAEConfig:
    """The sizes of a checkpoint from its tensors' shapes; groups, shift and scale from the document, else FLUX's.

    Raises:
      InputError: a tensor that tells a size is missing.
    """
    flux = ImageVAEConfig.flux()
    stage, block = ("down", "block") if layout == "original" else ("down_blocks", "resnets")
    last = f"encoder.{stage}.{{}}.{block}.0.conv2.weight"
    return ImageVAEConfig(
        z_dim=size_of(shapes, "decoder.conv_in.weight", 1),
        channels=tuple(size_of(shapes, last.format(index), 0) for index in range(layers_of(shapes, last))),
        num_res_blocks=layers_of(shapes, f"encoder.{stage}.0.{block}.{{}}.conv2.weight"),
        shift=told_number(document, "shift_factor", flux.shift),
        scale=told_number(document, "scaling_factor", flux.scale),
        groups=told(document, "norm_num_groups", flux.groups),
    )


def config_document(config: ImageVAEConfig, layout: Layout) -> dict[str, Any]:
    """The config.json beside an export: that of diffusers' AutoencoderKL; the original has none."""
    if layout == "original":
        return {}
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * len(config.channels),
        "up_block_types": ["UpDecoderBlock2D"] * len(config.channels),
        "block_out_channels": list(config.channels),
        "layers_per_block": config.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": config.z_dim,
        "norm_num_groups": config.groups,
        "scaling_factor": config.scale,
        "shift_factor": config.shift,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
    }


FAMILY = Family(
    name="image-vae",
    config=ImageVAEConfig,
    make=lambda config: ImageVAE(config, nnx.Rngs(0)),
    sizes={"FLUX.1": ImageVAEConfig.flux},
    layout="diffusers",
    mapping=mapping,
    config_from=config_from,
    config_document=config_document,
)
