"""Names and shapes of the VAE's weights in the releases that hold them, as data.

Two layouts: "original" (Wan2.1_VAE.pth, Wan2.2_VAE.pth) and "diffusers" (AutoencoderKLWan). A table of modules is
written for a config; each kind of module knows the names of its tensors in either layout and how a tensor is turned.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from kaleido_jax.models.vae.config import VAEConfig
from kaleido_jax.models.vae.modeling import WanVAE

Layout = Literal["original", "diffusers"]

# How a tensor of ours becomes one of PyTorch's: axes to permute after dropping leading ones, axes of 1 to append.
_TRANSFORMS: dict[str, tuple[int, tuple[int, ...], int]] = {
    "same": (0, (0,), 0),
    "convolution 3d": (0, (4, 3, 0, 1, 2), 0),  # t y x in out -> out in t y x
    "convolution 2d": (1, (3, 2, 0, 1), 0),  # 1 y x in out -> out in y x
    "norm video": (0, (0,), 3),  # c -> c 1 1 1
    "norm image": (0, (0,), 2),  # c -> c 1 1
}

# kind of module -> (our tensor, PyTorch's tensor, transform)
_LEAVES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "convolution 3d": (("kernel", "weight", "convolution 3d"), ("bias", "bias", "same")),
    "convolution 2d": (("kernel", "weight", "convolution 2d"), ("bias", "bias", "same")),
    "norm video": (("scale", "gamma", "norm video"),),
    "norm image": (("scale", "gamma", "norm image"),),
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


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where one of our tensors lies in a PyTorch checkpoint: its `name` there and the `transform` between them."""

    name: str
    transform: str

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """PyTorch's shape of a tensor that has the shape `ours` here."""
        drop, axes, ones = _TRANSFORMS[self.transform]
        return tuple(ours[drop:][axis] for axis in axes) + (1,) * ones

    def to_torch(self, ours: np.ndarray) -> np.ndarray:
        """A tensor of ours in PyTorch's layout."""
        drop, axes, _ = _TRANSFORMS[self.transform]
        return ours.reshape(ours.shape[drop:]).transpose(axes).reshape(self.shape(ours.shape))

    def from_torch(self, theirs: np.ndarray) -> np.ndarray:
        """The inverse of `to_torch`."""
        drop, axes, ones = _TRANSFORMS[self.transform]
        tensor = theirs.reshape(theirs.shape[: theirs.ndim - ones]).transpose(np.argsort(axes))
        return tensor.reshape((1,) * drop + tensor.shape)


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


def abstract_parameters(config: VAEConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every parameter by dotted name, without allocating any."""
    state = nnx.eval_shape(lambda: nnx.state(WanVAE(config, nnx.Rngs(0)), nnx.Param))
    return {_dotted(path): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def mapping(config: VAEConfig, layout: Layout) -> dict[str, Entry]:
    """For every parameter of ours, by dotted name, its place in a checkpoint of this layout."""
    column = {"original": 1, "diffusers": 2}[layout]
    present = abstract_parameters(config)
    table: dict[str, Entry] = {}
    for row in (*_FIXED, *_stages(config)):
        for part in _BLOCKS.get(row[3], (("", "", "", row[3]),)):
            ours, theirs = (".".join(filter(None, (row[i], part[i]))) for i in (0, column))
            for leaf, name, transform in _LEAVES[part[3]]:
                if f"{ours}.{leaf}" in present:  # a block may lack its shortcut or temporal convolution
                    table[f"{ours}.{leaf}"] = Entry(f"{theirs}.{name}", transform)
    return table


def from_torch(tensors: Mapping[str, Any], config: VAEConfig, layout: Layout = "diffusers") -> dict[str, np.ndarray]:
    """Parameters by dotted name from a PyTorch state dict (arrays, or tensors that numpy can read).

    Raises:
      ValueError: naming every tensor that is missing, unexpected or of another shape.
    """
    table, shapes = mapping(config, layout), abstract_parameters(config)
    names = {entry.name for entry in table.values()}
    problems = [f"missing {name}" for name in sorted(names - set(tensors))]
    problems += [f"unexpected {name}" for name in sorted(set(tensors) - names)]
    result = {}
    for ours, entry in table.items():
        if entry.name in tensors:
            tensor = np.asarray(tensors[entry.name])
            expected = entry.shape(shapes[ours].shape)
            if tensor.shape != expected:
                problems.append(f"{entry.name} has shape {tensor.shape}, expected {expected}")
            else:
                result[ours] = entry.from_torch(tensor)
    if problems:
        raise ValueError(f"{len(problems)} problems in VAE weights of layout {layout}: " + "; ".join(problems))
    return result


def to_torch(parameters: Mapping[str, Any], config: VAEConfig, layout: Layout = "diffusers") -> dict[str, np.ndarray]:
    """The inverse of `from_torch`."""
    return {entry.name: entry.to_torch(np.asarray(parameters[ours])) for ours, entry in mapping(config, layout).items()}


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
