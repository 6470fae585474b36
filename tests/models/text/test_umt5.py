"""The UMT5 and T5 encoders against transformers' UMT5EncoderModel and T5EncoderModel, which nobody here wrote."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from kaleido_jax.errors import InputError
from kaleido_jax.models.text import UMT5Config, UMT5Encoder
from kaleido_jax.models.text.umt5.modeling import distance_buckets
from kaleido_jax.models.text.umt5.params import FAMILY, config_document, config_from

# Odd sizes: heads * head_dim differs from dim, few buckets, distances that reach max_distance.
CONFIGS = {
    "narrow heads": UMT5Config(vocab_size=37, dim=24, heads=3, head_dim=6, ffn_dim=20, layers=3),
    "wide heads": UMT5Config(
        vocab_size=50, dim=16, heads=5, head_dim=8, ffn_dim=56, layers=1, buckets=12, max_distance=9
    ),
    "one head": UMT5Config(
        vocab_size=19, dim=7, heads=1, head_dim=9, ffn_dim=11, layers=2, buckets=8, max_distance=40, eps=1e-5
    ),
    "T5": UMT5Config(vocab_size=23, dim=12, heads=2, head_dim=5, ffn_dim=18, layers=3, shared_positions=True),
}
# Padded length and the lengths of the texts in it; 150 tokens lie beyond max_distance.
BATCHES = {"short": (7, (7, 3, 1)), "one token": (1, (1,)), "long": (150, (150, 141))}


def peer(config: UMT5Config) -> transformers.UMT5EncoderModel | transformers.T5EncoderModel:
    t5 = config.shared_positions
    model = transformers.T5EncoderModel if t5 else transformers.UMT5EncoderModel
    return model(
        (transformers.T5Config if t5 else transformers.UMT5Config)(
            vocab_size=config.vocab_size, d_model=config.dim, d_kv=config.head_dim, d_ff=config.ffn_dim,
            num_layers=config.layers, num_heads=config.heads, relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance, layer_norm_epsilon=config.eps, dropout_rate=0.0,
            feed_forward_proj="gated-gelu", attn_implementation="eager",
        )
    ).eval()  # fmt: skip


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every weight drawn anew, so that no table, norm or gate is at its trivial initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if name.endswith("norm.weight"):
                noise = 1 + 0.3 * noise
            elif weight.ndim == 2 and "bias" not in name and "shared" not in name:
                noise = noise / math.sqrt(weight.shape[1])
            weight.copy_(noise)
    return model


def encoder(config: UMT5Config, parameters: dict[str, np.ndarray]) -> UMT5Encoder:
    model = nnx.eval_shape(lambda: UMT5Encoder(config, nnx.Rngs(0)))
    graph, state = nnx.split(model)
    flat = [(path, leaf.replace(jnp.asarray(parameters[".".join(path)]))) for path, leaf in nnx.to_flat_state(state)]
    assert len(flat) == len(parameters)
    return nnx.merge(graph, nnx.from_flat_state(flat))


def batch(config: UMT5Config, padded: int, lengths: tuple[int, ...], seed: int) -> tuple[jax.Array, jax.Array]:
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (len(lengths), padded)).astype(np.int32)
    return jnp.asarray(ids), jnp.asarray(lengths, jnp.int32)


def peer_output(model, ids: jax.Array, lengths: jax.Array) -> torch.Tensor:
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths.tolist())[:, None]
    return model(torch.tensor(ids.tolist()), attention_mask=mask.long()).last_hidden_state * mask[:, :, None]


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def state_dict(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("shape", BATCHES)
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_equals_transformers(name, shape):
    config = CONFIGS[name]
    model = randomised(peer(config), seed=1)
    ids, lengths = batch(config, *BATCHES[shape], seed=2)
    ours = jax.jit(encoder(config, FAMILY.from_torch(state_dict(model), config)))(ids, lengths)
    with torch.no_grad():
        theirs = peer_output(model, ids, lengths)
        exact = peer_output(model.double(), ids, lengths)
    error, own = relative_error(ours, exact), relative_error(theirs, exact)
    print(f"relative error {error:.1e}, of transformers itself {own:.1e}")
    # The fixed limit of float32; and within 4 times the error that the peer's float32 makes against its float64 (whose
    # norms still average in float32, hence the addend).
    assert relative_error(ours, theirs) <= 1e-5
    assert error <= 4 * own + 1e-7, (error, own)


def test_padding_is_zero_and_read_by_nobody():
    config = CONFIGS["narrow heads"]
    model = UMT5Encoder(config, nnx.Rngs(0))
    ids, lengths = batch(config, 9, (5, 0), seed=3)
    other = jnp.where(jnp.arange(9)[None] < lengths[:, None], ids, (ids + 1) % config.vocab_size)
    run = jax.jit(model)
    first, second = np.asarray(run(ids, lengths)), np.asarray(run(other, lengths))
    np.testing.assert_array_equal(first, second)
    assert np.all(first[0, 5:] == 0) and np.all(first[1] == 0) and np.all(first[0, :5] != 0)


@pytest.mark.parametrize("name", ["narrow heads", "T5"])
def test_gradients_equal_transformers(name):
    config = CONFIGS[name]
    model = randomised(peer(config), seed=4)
    ids, lengths = batch(config, 11, (11, 4), seed=5)
    weights = np.random.default_rng(6).normal(size=(2, 11, config.dim)).astype(np.float32)
    loss = (peer_output(model, ids, lengths) * torch.from_numpy(weights)).sum()
    loss.backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    theirs = FAMILY.from_torch(theirs, config)

    graph, state = nnx.split(encoder(config, FAMILY.from_torch(state_dict(model), config)))
    gradient = jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(ids, lengths) * weights)))(state)
    ours = {".".join(path): leaf.get_value() for path, leaf in nnx.to_flat_state(gradient)}
    assert ours.keys() == theirs.keys()
    for name in ours:
        # Ten times the forward limit: sums over tokens and layers of values that themselves carry its error.
        assert relative_error(ours[name], theirs[name]) <= 1e-4, name


def test_bfloat16_stays_near_float32():
    config = CONFIGS["narrow heads"]
    parameters = FAMILY.from_torch(state_dict(randomised(peer(config), seed=7)), config)
    ids, lengths = batch(config, 11, (11, 4), seed=8)
    graph, state = nnx.split(encoder(config, parameters))
    half_graph, _ = nnx.split(encoder(dataclasses.replace(config, dtype="bfloat16"), parameters))

    @jax.jit
    def both(state):
        def scalar(graph, state):
            out = nnx.merge(graph, state)(ids, lengths)
            return jnp.mean(jnp.square(out.astype(jnp.float32))), out

        outputs, gradients = [], []
        for graph_ in (graph, half_graph):
            (_, out), gradient = jax.value_and_grad(lambda s, g=graph_: scalar(g, s), has_aux=True)(state)
            outputs.append(out)
            gradients.append(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(gradient)]))
        return outputs, gradients

    (wide, half), (wide_gradient, half_gradient) = both(state)
    assert half.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits (4e-3 a rounding), some ten roundings deep in three layers.
    assert relative_error(half.astype(jnp.float32), wide) <= 0.04
    assert relative_error(half_gradient, wide_gradient) <= 0.12


@pytest.mark.parametrize("layout", ["huggingface", "wan"])
@pytest.mark.parametrize("name", ["wide heads", "T5"])
def test_weights_round_trip(layout, name):
    config = CONFIGS[name]
    state = nnx.to_flat_state(nnx.state(UMT5Encoder(config, nnx.Rngs(9)), nnx.Param))
    ours = {".".join(path): np.asarray(leaf.get_value()) for path, leaf in state}
    tensors = FAMILY.to_torch(ours, config, layout)
    assert {name: tensor.shape for name, tensor in tensors.items()} == FAMILY.torch_shapes(config, layout)
    back = FAMILY.from_torch(tensors, config, layout)
    assert back.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(back[name], ours[name])


@pytest.mark.parametrize("config", [UMT5Config.xxl(), UMT5Config.t5_xxl()], ids=["UMT5", "T5"])
def test_full_size_names_and_shapes_equal_transformers(config):
    with torch.device("meta"):
        model = peer(config)
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert theirs.pop("encoder.embed_tokens.weight") == theirs["shared.weight"]
    assert FAMILY.torch_shapes(config, "huggingface") == theirs


@pytest.mark.parametrize("name", ["one head", "T5", "one layer of T5"])
def test_sizes_are_told_by_shapes_and_document(name):
    config = dataclasses.replace(CONFIGS["T5"], layers=1) if name.startswith("one layer") else CONFIGS[name]
    document = config_document(config, "huggingface")
    assert config_from(FAMILY.torch_shapes(config, "huggingface"), "huggingface", document) == config


def test_full_size_names_of_the_original_release():
    # Written from the release's description: 24 blocks, each with its own table of 32 buckets for 64 heads.
    block = {
        "norm1.weight": (4096,), "norm2.weight": (4096,), "pos_embedding.embedding.weight": (32, 64),
        **{f"attn.{name}.weight": (4096, 4096) for name in "qkvo"},
        "ffn.gate.0.weight": (10240, 4096), "ffn.fc1.weight": (10240, 4096), "ffn.fc2.weight": (4096, 10240),
    }  # fmt: skip
    expected = {f"blocks.{i}.{name}": shape for i in range(24) for name, shape in block.items()}
    expected |= {"token_embedding.weight": (256384, 4096), "norm.weight": (4096,)}
    assert FAMILY.torch_shapes(UMT5Config.xxl(), "wan") == expected


def test_wrong_weights_are_all_named_at_once():
    config = CONFIGS["one head"]
    tensors = {name: np.zeros(shape, np.float32) for name, shape in FAMILY.torch_shapes(config, "wan").items()}
    del tensors["norm.weight"]
    tensors["blocks.7.norm1.weight"] = np.zeros(7, np.float32)
    tensors["blocks.1.attn.q.weight"] = np.zeros((7, 9), np.float32)
    with pytest.raises(InputError) as error:
        FAMILY.from_torch(tensors, config, "wan")
    for part in (
        "missing norm.weight",
        "unexpected blocks.7.norm1.weight",
        "blocks.1.attn.q.weight has shape (7, 9), expected (9, 7)",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (12, 9), (8, 40), (20, 1000)])
def test_distance_buckets_equal_transformers(buckets, max_distance):
    attention = peer(dataclasses.replace(CONFIGS["one head"], buckets=buckets, max_distance=max_distance))
    attention = attention.encoder.block[0].layer[0].SelfAttention
    distance = torch.arange(600)[None] - torch.arange(600)[:, None]
    theirs = attention._relative_position_bucket(distance).numpy()
    np.testing.assert_array_equal(distance_buckets(600, buckets, max_distance), theirs)


@pytest.mark.parametrize(
    ("field", "value"), [("dim", 0), ("layers", -1), ("buckets", 6), ("max_distance", 8), ("dtype", "int8")]
)
def test_impossible_sizes_are_named(field, value):
    with pytest.raises(ValueError, match=rf"UMT5Config\.{field} .*{value}"):
        dataclasses.replace(UMT5Config.miniature(), **{field: value})
