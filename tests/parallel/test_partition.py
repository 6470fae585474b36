"""The table of parameters against every released network, and what it leaves on a device."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from kaleido_jax.bundle import abstract
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.models.image_vae import ImageVAE, ImageVAEConfig
from kaleido_jax.models.mmdit import MMDiTConfig, VideoMMDiT
from kaleido_jax.models.text import CLIPTextConfig, CLIPTextEncoder, UMT5Config, UMT5Encoder
from kaleido_jax.models.vae import VAEConfig, WanVAE
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import AXES, MeshConfig, partition_spec, shardings
from kaleido_jax.parallel.partition import TABLE, bytes_per_device, place, rows_of
from kaleido_jax.training.low_rank import LoraConfig, attach, base

LORA = LoraConfig(rank=8, base="int8")
NETWORKS = {
    "1.3B": lambda: WanTransformer(WanConfig.t2v_1_3b(), nnx.Rngs(0)),
    "1.3B with a LoRA": lambda: attach(base(WanTransformer(WanConfig.t2v_1_3b(), nnx.Rngs(0)), LORA), LORA),
    "14B": lambda: WanTransformer(WanConfig.t2v_14b(), nnx.Rngs(0)),
    "14B from images": lambda: WanTransformer(WanConfig.flf2v_14b(), nnx.Rngs(0)),
    "14B of ContextAnyone": lambda: WanTransformer(
        dataclasses.replace(WanConfig.t2v_14b(), image_dim=1280, emphasis=True), nnx.Rngs(0)
    ),
    "5B": lambda: WanTransformer(WanConfig.ti2v_5b(), nnx.Rngs(0)),
    "UMT5-XXL": lambda: UMT5Encoder(UMT5Config.xxl(), nnx.Rngs(0)),
    "VAE 2.1": lambda: WanVAE(VAEConfig.wan2_1(), nnx.Rngs(0)),
    "VAE 2.2": lambda: WanVAE(VAEConfig.wan2_2(), nnx.Rngs(0)),
    "FLUX.1": lambda: FluxTransformer(FluxConfig.dev(), nnx.Rngs(0)),
    "VAE of FLUX.1": lambda: ImageVAE(ImageVAEConfig.flux(), nnx.Rngs(0)),
    "T5-XXL": lambda: UMT5Encoder(UMT5Config.t5_xxl(), nnx.Rngs(0)),
    "CLIP-L": lambda: CLIPTextEncoder(CLIPTextConfig.large(), nnx.Rngs(0)),
    "LCT": lambda: VideoMMDiT(MMDiTConfig.lct_3b(), nnx.Rngs(0)),
}


@pytest.fixture(scope="module")
def networks():
    return {name: abstract(make)[1] for name, make in NETWORKS.items()}


def mesh_of(**sizes):
    return AbstractMesh(tuple(sizes.get(name, 1) for name in AXES), AXES)


def test_every_parameter_matches_exactly_one_row_of_its_rank_and_every_row_is_used(networks):
    names = set()
    for network, leaves in networks.items():
        for name, leaf in leaves.items():
            rows = rows_of(name, leaf.ndim)
            assert len(rows) == 1, f"{network}: {name} matches {len(rows)} rows"
            assert len(rows[0]) == leaf.ndim, f"{network}: {name} has shape {leaf.shape}, its row is {rows[0]}"
            names.add(name)
    assert not [pattern for pattern, _ in TABLE if not any(re.fullmatch(pattern, name) for name in names)]


@pytest.mark.parametrize("network", NETWORKS)
def test_bytes_per_device_fall_as_one_over_n(networks, network):
    """Within 0.1 % for weights and moments over fsdp; 4 % where tensor takes a part, which leaves embeddings whole."""
    weights = {network: networks[network]}
    state = {"weights": weights, "moments": jax.eval_shape(optax.scale_by_adam().init, weights)}
    bytes_of = lambda **sizes: bytes_per_device(state, shardings(state, mesh_of(**sizes)))
    vae = "VAE" in network  # no tensor parallelism, and channels in multiples of 32
    assert 1.0 <= bytes_of(fsdp=8) * 8 / bytes_of() < 1.001
    if not vae:
        assert 1.0 <= bytes_of(fsdp=64) * 64 / bytes_of() < 1.001
        # The rank of a LoRA is not divided, so each of its factors is whole over tensor on one side of the map.
        assert 1.0 <= bytes_of(fsdp=16, tensor=4) * 64 / bytes_of() < (1.06 if "LoRA" in network else 1.04)


def test_heads_and_hidden_units_are_divided_by_tensor_and_the_rest_by_fsdp():
    mesh = mesh_of(fsdp=4, tensor=2)
    spec = lambda name, *shape: partition_spec(name, shape, mesh)
    assert spec("blocks.self_attention.query.kernel", 40, 5120, 5120) == PartitionSpec(None, "fsdp", "tensor")
    assert spec("blocks.self_attention.out.kernel", 40, 5120, 5120) == PartitionSpec(None, "tensor", "fsdp")
    assert spec("blocks.mlp.first.bias", 40, 13824) == PartitionSpec(None, ("tensor", "fsdp"))
    assert spec("blocks.cross_norm.scale", 40, 5120) == PartitionSpec(None, "fsdp")
    assert spec("patch_embedding.kernel", 64, 5120) == PartitionSpec(None, "fsdp")  # the largest that divides
    assert spec("head.projection.bias", 3) == PartitionSpec(None)  # nothing divides 3


def test_the_stack_of_layers_is_never_divided(networks):
    for leaves in networks.values():
        for name, leaf in leaves.items():
            if name.split(".")[0].endswith("blocks"):
                assert partition_spec(name, leaf.shape, mesh_of(fsdp=2, tensor=2))[0] is None


def test_unknown_names_and_ranks_are_errors():
    with pytest.raises(ValueError, match=r"blocks.attention.qury.kernel matches 0 rows"):
        partition_spec("blocks.attention.qury.kernel", (2, 8, 8), mesh_of())
    with pytest.raises(ValueError, match=r"final_norm.scale has shape \(2, 8\)"):
        partition_spec("final_norm.scale", (2, 8), mesh_of())


def test_moments_lie_as_their_parameters_and_counters_everywhere():
    mesh = MeshConfig(fsdp=8).make()
    weights = {"text": {"token_embedding": jnp.zeros((32, 4)), "final_norm.scale": jnp.ones((16,))}}
    tree = {"weights": weights, "moments": optax.scale_by_adam().init(weights)}
    placed = place(tree, shardings(tree, mesh))
    assert placed["moments"].mu["text"]["token_embedding"].sharding.spec == PartitionSpec("fsdp", None)
    assert placed["moments"].count.sharding.spec == PartitionSpec()
    assert {shard.data.shape for shard in placed["weights"]["text"]["final_norm.scale"].addressable_shards} == {(2,)}
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), placed, tree))
