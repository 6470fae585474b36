"""Names and shapes of the VAE's weights: diffusers' own, those of the released files, and the way back."""

import dataclasses
import re

import diffusers
import numpy as np
import pytest
import torch

from kaleido_jax.models.vae import VAEConfig
from kaleido_jax.models.vae import params as vae_params

RELEASES = {"wan2_1": VAEConfig.wan2_1(), "wan2_2": VAEConfig.wan2_2()}


def meta_peer(config: VAEConfig) -> diffusers.AutoencoderKLWan:
    pixels = 3 * config.patch_size**2
    with torch.device("meta"):
        return diffusers.AutoencoderKLWan(
            base_dim=config.base_dim, decoder_base_dim=config.decoder_base_dim, z_dim=config.z_dim,
            dim_mult=list(config.dim_mult), num_res_blocks=config.num_res_blocks,
            temperal_downsample=list(config.temporal_downsample), is_residual=config.residual,
            in_channels=pixels, out_channels=pixels, patch_size=None if config.patch_size == 1 else config.patch_size,
        )  # fmt: skip


@pytest.mark.parametrize("name", [*RELEASES, "miniature"])
def test_names_and_shapes_are_those_of_diffusers(name):
    config = RELEASES.get(name, VAEConfig.miniature())
    shapes = vae_params.FAMILY.abstract_parameters(config)
    table = vae_params.mapping(config, "diffusers")
    assert table.keys() == shapes.keys()
    ours = vae_params.FAMILY.torch_shapes(config, "diffusers")
    theirs = {key: tuple(value.shape) for key, value in meta_peer(config).state_dict().items()}
    assert ours == theirs


def test_defaults_of_diffusers_are_wan_2_1():
    """Its class comes with the statistics of the Wan 2.1 release, which it published independently of ours."""
    config, theirs = VAEConfig.wan2_1(), meta_peer(VAEConfig.wan2_1()).config
    assert (config.latents_mean, config.latents_std) == (tuple(theirs.latents_mean), tuple(theirs.latents_std))


def converted_residual_names(name: str) -> str:
    """diffusers' own renaming of an original residual block's tensors, written out from its conversion table."""
    for old, new in (
        (".residual.0.gamma", ".norm1.gamma"),
        (".residual.2.", ".conv1."),
        (".residual.3.gamma", ".norm2.gamma"),
        (".residual.6.", ".conv2."),
        (".shortcut.", ".conv_shortcut."),
    ):
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize("name", RELEASES)
def test_original_names_convert_to_those_of_diffusers(name):
    """The published renaming from the original files to diffusers, applied to our original names, gives our others."""
    config = RELEASES[name]
    original, converted = (vae_params.mapping(config, layout) for layout in ("original", "diffusers"))
    assert len({entry.names[0] for entry in original.values()}) == len(original)

    def published(key: str) -> str:
        key = converted_residual_names(key)
        key = re.sub(r"^conv1\.", "quant_conv.", re.sub(r"^conv2\.", "post_quant_conv.", key))
        for coder in ("encoder", "decoder"):
            for old, new in (
                ("conv1.", "conv_in."), ("head.0.gamma", "norm_out.gamma"), ("head.2.", "conv_out."),
                ("middle.0.", "mid_block.resnets.0."), ("middle.1.", "mid_block.attentions.0."),
                ("middle.2.", "mid_block.resnets.1."),
            ):  # fmt: skip
                if key.startswith(f"{coder}.{old}"):
                    key = f"{coder}.{new}" + key.removeprefix(f"{coder}.{old}")
        if config.residual:
            key = re.sub(
                r"\.(down|up)samples\.(\d)\.\1samples\.(\d)\.(resample|time_conv)", r".\1_blocks.\2.\1sampler.\4", key
            )
            return re.sub(r"\.(down|up)samples\.(\d)\.\1samples\.(\d)", r".\1_blocks.\2.resnets.\3", key)
        if found := re.match(r"decoder\.upsamples\.(\d+)\.(.*)", key):
            stage, block = divmod(int(found[1]), 4)
            return (
                f"decoder.up_blocks.{stage}." + ("upsamplers.0" if block == 3 else f"resnets.{block}") + "." + found[2]
            )
        return key.replace("encoder.downsamples.", "encoder.down_blocks.")

    assert {ours: published(entry.names[0]) for ours, entry in original.items()} == {
        ours: entry.names[0] for ours, entry in converted.items()
    }
    assert all(entry.transform == converted[ours].transform for ours, entry in original.items())


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_there_and_back_is_bitwise(layout):
    config = VAEConfig.miniature()
    rng = np.random.default_rng(0)
    ours = {
        name: rng.standard_normal(leaf.shape).astype(np.float32)
        for name, leaf in vae_params.FAMILY.abstract_parameters(config).items()
    }
    again = vae_params.FAMILY.from_torch(vae_params.FAMILY.to_torch(ours, config, layout), config, layout)
    assert again.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(again[name], ours[name])


def test_every_problem_is_named_at_once():
    config = VAEConfig.miniature()
    shapes = vae_params.FAMILY.abstract_parameters(config)
    tensors = vae_params.FAMILY.to_torch({name: np.zeros(leaf.shape) for name, leaf in shapes.items()}, config)
    del tensors["quant_conv.bias"]
    tensors["decoder.conv_in.weight"] = np.zeros((2, 2))
    tensors["loss.weight"] = np.zeros(3)
    with pytest.raises(
        ValueError, match=r"3 problems.*missing quant_conv.bias.*unexpected loss.weight.*decoder.conv_in.weight"
    ):
        vae_params.FAMILY.from_torch(tensors, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim_mult": (1, 2, 4)}, "encoder stage 2: 48 channels times 1 cannot be averaged into 96"),
        ({"temporal_downsample": (True,)}, "temporal_downsample has 1 entries"),
        ({"latents_std": (0.0,) * 16}, "every value must be positive"),
        ({"latents_mean": (0.0,) * 3}, "latents_mean has 3 values; z_dim is 16"),
        ({"num_res_blocks": 0}, "num_res_blocks is 0"),
    ],
)
def test_refuses_impossible_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VAEConfig.miniature(), **changes)


@pytest.mark.parametrize(
    ("config", "factors"),
    [(VAEConfig.wan2_1(), (4, 8)), (VAEConfig.wan2_2(), (4, 16)), (VAEConfig.miniature(), (2, 8))],
)
def test_factors(config, factors):
    assert (config.temporal_factor, config.spatial_factor) == factors
