"""Names and shapes of the VAE's weights in the releases that hold them, as data.

Two layouts: "original" (Wan2.1_VAE.pth, Wan2.2_VAE.pth) and "diffusers" (AutoencoderKLWan). A table of modules is
written for a config; each kind of module knows the names of its tensors in either layout and how a tensor is turned.
"""

import itertools
from collections.abc import Mapping
from typing import Any, Literal

from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models import mapping as tables
from kaleido_jax.models.family import Family
from kaleido_jax.models.mapping import SAME, Entry, Kind, Shape, Transform, size_of
from kaleido_jax.models.vae.config import VAEConfig
from kaleido_jax.models.vae.modeling import WanVAE

Layout = Literal["original", "diffusers"]

_CONVOLUTION_3D = Transform("o i t y x -> t y x i o")
_CONVOLUTION_2D = Transform("o i y x -> 1 y x i o")

_KINDS: dict[str, Kind] = {
    "convolution 3d": ((".kernel", ".weight", _CONVOLUTION_3D), (".bias", ".bias", SAME)),
    "convolution 2d": ((".kernel", ".weight", _CONVOLUTION_2D), (".bias", ".bias", SAME)),
    "norm video": ((".scale", ".gamma", Transform("c 1 1 1 -> c")),),
    "norm image": ((".scale", ".gamma", Transform("c 1 1 -> c")),),
}

# kind of block -> (our module, its name in the original, in diffusers, kind)
_BLOCKS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "residual": (
        ("norm1", "residual.0", "norm1", "norm video"),
        ("conv1", "residual.2", "conv1", "convolution 3d"),
        ("norm2", "residual.3", "norm2", "norm video"),
        ("conv2", "residual.6", "conv2", "convolution 3d"),
        ("shortcut", "shortcut", "conv_shortcut", "convolution 3d"),
    ),
    "attention": (
        ("norm", "norm", "norm", "norm image"),
        ("qkv", "to_qkv", "to_qkv", "convolution 2d"),
        ("out", "proj", "proj", "convolution 2d"),
    ),
    "resample": (
        ("spatial", "resample.1", "resample.1", "convolution 2d"),
        ("temporal", "time_conv", "time_conv", "convolution 3d"),
    ),
}

# Blocks and modules outside the stages: (ours, original, diffusers, kind)
_FIXED: tuple[tuple[str, str, str, str], ...] = (
    ("quant_conv", "conv1", "quant_conv", "convolution 3d"),
    ("post_quant_conv", "conv2", "post_quant_conv", "convolution 3d"),
    *(
        (f"{coder}.{ours}", f"{coder}.{original}", f"{coder}.{diffusers}", kind)
        for coder in ("encoder", "decoder")
        for ours, original, diffusers, kind in (
            ("conv_in", "conv1", "conv_in", "convolution 3d"),
            ("middle.before", "middle.0", "mid_block.resnets.0", "residual"),
            ("middle.attention", "middle.1", "mid_block.attentions.0", "attention"),
            ("middle.after", "middle.2", "mid_block.resnets.1", "residual"),
            ("norm_out", "head.0", "norm_out", "norm video"),
            ("conv_out", "head.2", "conv_out", "convolution 3d"),
        )
    ),
)


def _stages(config: VAEConfig) -> list[tuple[str, str, str, str]]:
    """The blocks of all stages: (ours, original, diffusers, kind). Wan 2.1 numbers them in one flat list."""
    rows = []
    last = len(config.dim_mult) - 1
    for coder, word, resample, count in (
        ("encoder", "down", "downsample", config.num_res_blocks),
        ("decoder", "up", "upsample", config.num_res_blocks + 1),
    ):
        flat = 0
        for stage in range(last + 1):
            for block in range(count + (stage < last)):
                is_resample = block == count
                ours = f"{coder}.stages.{stage}." + (resample if is_resample else f"blocks.{block}")
                if config.residual:
                    original = f"{coder}.{word}samples.{stage}.{word}samples.{block}"
                    diffusers = f"{word}_blocks.{stage}." + (f"{word}sampler" if is_resample else f"resnets.{block}")
                else:
                    original = f"{coder}.{word}samples.{flat}"
                    diffusers = f"{word}_blocks.{flat}"
                    if coder == "decoder":
                        diffusers = f"up_blocks.{stage}." + ("upsamplers.0" if is_resample else f"resnets.{block}")
                rows.append((ours, original, f"{coder}.{diffusers}", "resample" if is_resample else "residual"))
                flat += 1
    return rows


def _make(config: VAEConfig) -> WanVAE:
    return WanVAE(config, nnx.Rngs(0))


def mapping(config: VAEConfig, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout."""
    column = {"original": 1, "diffusers": 2}[layout]
    rows = []
    for row in (*_FIXED, *_stages(config)):
        for part in _BLOCKS.get(row[3], (("", "", "", row[3]),)):
            ours, theirs = (".".join(filter(None, (row[i], part[i]))) for i in (0, column))
            rows.append((ours, theirs, part[3]))
    present = tables.abstract_parameters(lambda: _make(config))  # a block may lack its shortcut or temporal convolution
    return {name: entry for name, entry in tables.table_of(rows, _KINDS).items() if name in present}


# Our field -> its key in diffusers' config.json. Original releases have none.
_DOCUMENT_KEYS = {
    "z_dim": "z_dim",
    "base_dim": "base_dim",
    "decoder_base_dim": "decoder_base_dim",
    "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks",
    "temporal_downsample": "temperal_downsample",
    "residual": "is_residual",
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
}


def config_from(shapes: Mapping[str, Shape], layout: Layout, document: Mapping[str, Any] | None = None) -> VAEConfig:
    """The sizes of a checkpoint with tensors of these shapes; its config.json wins where it says something.

    The statistics of the latents stand in no tensor: without a config.json they are those of the release with as many
    latent channels.

    Raises:
      InputError: naming what cannot be told.
    """
    conv_in, conv1 = {"original": ("conv1", "residual.2"), "diffusers": ("conv_in", "conv1")}[layout]
    base_dim, pixels = (size_of(shapes, f"encoder.{conv_in}.weight", axis) for axis in (0, 1))
    top, z_dim = (size_of(shapes, f"decoder.{conv_in}.weight", axis) for axis in (0, 1))
    residual = any(
        name.startswith(("encoder.downsamples.0.downsamples.", "encoder.down_blocks.0.resnets.")) for name in shapes
    )
    widths, blocks, temporal = [], [0], []
    for prefix in _encoder_blocks(shapes, layout, residual):
        if f"{prefix}.resample.1.weight" in shapes:
            temporal.append(f"{prefix}.time_conv.weight" in shapes)
            blocks.append(0)
        else:
            blocks[-1] += 1
            if blocks[-1] == 1:
                widths.append(size_of(shapes, f"{prefix}.{conv1}.weight", 0))
    multiples = tuple(width // max(base_dim, 1) for width in widths)
    release = next((r for r in (VAEConfig.wan2_1(), VAEConfig.wan2_2()) if r.z_dim == z_dim), None)
    values: dict[str, Any] = {
        "z_dim": z_dim,
        "base_dim": base_dim,
        "decoder_base_dim": top // multiples[-1] if multiples and multiples[-1] else 0,
        "dim_mult": multiples,
        "num_res_blocks": blocks[0],
        "temporal_downsample": tuple(temporal),
        "residual": residual,
        "patch_size": 1 if pixels == 3 else 2,
        "latents_mean": release.latents_mean if release else (),
        "latents_std": release.latents_std if release else (),
    }
    for field, key in _DOCUMENT_KEYS.items():
        value = (document or {}).get(key)
        if value is not None:
            values[field] = tuple(value) if isinstance(value, list) else value
    try:
        return VAEConfig(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"these are not the sizes of a Wan VAE: {error}") from error


def config_document(config: VAEConfig, layout: Layout) -> dict[str, Any]:
    """The config.json that stands beside weights of this layout; releases of the original have none."""
    if layout == "original":
        return {}
    values = {key: getattr(config, field) for field, key in _DOCUMENT_KEYS.items()}
    return (
        {"_class_name": "AutoencoderKLWan"}
        | values
        | {
            "in_channels": 3 * config.patch_size**2,
            "out_channels": 3 * config.patch_size**2,
            "patch_size": None if config.patch_size == 1 else config.patch_size,
            "scale_factor_spatial": config.spatial_factor,
            "scale_factor_temporal": config.temporal_factor,
        }
    )


def _encoder_blocks(shapes: Mapping[str, Shape], layout: Layout, residual: bool) -> list[str]:
    """The prefixes of the encoder's residual blocks and of those that change its resolution, in order."""
    found = {name.rpartition(".")[0] for name in shapes}
    present = lambda prefix: any(name.startswith(f"{prefix}.") for name in found)
    outer = {"original": "encoder.downsamples.{}", "diffusers": "encoder.down_blocks.{}"}[layout]
    stages = itertools.takewhile(present, (outer.format(i) for i in range(len(shapes))))
    if not residual:
        return list(stages)
    inner = {"original": "{}.downsamples.{}", "diffusers": "{}.resnets.{}"}[layout]
    blocks = []
    for stage in stages:
        blocks += itertools.takewhile(present, (inner.format(stage, i) for i in range(len(shapes))))
        if present(f"{stage}.downsampler"):
            blocks.append(f"{stage}.downsampler")
    return blocks


FAMILY = Family(
    name="wan-vae",
    config=VAEConfig,
    make=_make,
    sizes={"Wan2.1_VAE": VAEConfig.wan2_1, "Wan2.2_VAE": VAEConfig.wan2_2, "miniature": VAEConfig.miniature},
    layout="diffusers",
    mapping=mapping,
    config_from=config_from,
    config_document=config_document,
)
