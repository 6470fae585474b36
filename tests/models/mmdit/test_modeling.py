"""The MMDiT of videos against diffusers' SD3Transformer2DModel, which nobody here wrote, on random weights.

That network is ours for one picture and one text, but for its table of positions and its pooled text, which are set
to zero, and for rotary positions, which are zero here (FLUX's tests and those of `rope` hold them). Tolerances, as
relative errors in the 2-norm: 1e-5 forward, 1e-4 for gradients, which sum over tokens and layers; see FLUX's tests.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from flax import nnx

from kaleido_jax import masks
from kaleido_jax.attention import attention
from kaleido_jax.bundle import abstract, merge
from kaleido_jax.layout import Segment, TokenLayout, patchify, unpatchify
from kaleido_jax.models.hook import default_attend
from kaleido_jax.models.mapping import MATRIX, SAME, Transform, abstract_parameters, from_torch, table_of
from kaleido_jax.models.mmdit import MMDiTConfig, VideoMMDiT
from kaleido_jax.models.mmdit.blocks import text_partners
from kaleido_jax.rope import Interleaved, apply_rotary, positions
from kaleido_jax.table import TokenTable
from kaleido_jax.testing import randomise, relative_error, relative_errors, state

FORWARD, GRADIENT = 1e-5, 1e-4
TINY = MMDiTConfig(dim=24, ffn_dim=96, heads=2, layers=3, channels=5, text_dim=14)


def peer(config: MMDiTConfig) -> SD3Transformer2DModel:
    model = randomise(
        SD3Transformer2DModel(
            sample_size=8, pos_embed_max_size=8, patch_size=2, in_channels=config.channels, num_layers=config.layers,
            attention_head_dim=config.head_dim, num_attention_heads=config.heads, joint_attention_dim=config.text_dim,
            caption_projection_dim=config.dim, pooled_projection_dim=3, out_channels=config.channels,
            qk_norm="rms_norm",
        )
    )  # fmt: skip
    with torch.no_grad():
        model.pos_embed.pos_embed.zero_()
        model.time_text_embed.text_embedder.linear_2.weight.zero_()
        model.time_text_embed.text_embedder.linear_2.bias.zero_()
    return model


def parameters_of(tensors, config: MMDiTConfig):
    linear = ((".kernel", ".weight", MATRIX), (".bias", ".bias", SAME))
    patches = Transform("dim c ph pw -> (ph pw c) dim", (("ph", 2), ("pw", 2)))
    kinds = {
        "linear": linear,
        "norm": ((".scale", ".weight", SAME),),
        "patches": ((".kernel", ".weight", patches), linear[1]),
    }
    dim, last = config.dim, f"transformer_blocks.{config.layers - 1}."

    def visual(ours, theirs):
        yield f"{ours}.modulation", f"{theirs}norm1.linear", "linear"
        for part, name in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
            yield f"{ours}.qkv.{part}", f"{theirs}attn.{name}", "linear"
        yield f"{ours}.qkv.query_norm", f"{theirs}attn.norm_q", "norm"
        yield f"{ours}.qkv.key_norm", f"{theirs}attn.norm_k", "norm"
        yield f"{ours}.out", f"{theirs}attn.to_out.0", "linear"
        yield f"{ours}.mlp.first", f"{theirs}ff.net.0.proj", "linear"
        yield f"{ours}.mlp.second", f"{theirs}ff.net.2", "linear"

    def text(ours, theirs):
        for part, name in (("query", "add_q_proj"), ("key", "add_k_proj"), ("value", "add_v_proj")):
            yield f"{ours}.{part}", f"{theirs}attn.{name}", "linear"
        yield f"{ours}.query_norm", f"{theirs}attn.norm_added_q", "norm"
        yield f"{ours}.key_norm", f"{theirs}attn.norm_added_k", "norm"

    blocks = "transformer_blocks.{}."
    rows = [
        ("patch_embedding", "pos_embed.proj", "patches"),
        ("text_embedding", "context_embedder", "linear"),
        ("time_embedding.first", "time_text_embed.timestep_embedder.linear_1", "linear"),
        ("time_embedding.second", "time_text_embed.timestep_embedder.linear_2", "linear"),
        *visual("blocks.visual", blocks),
        *text("blocks.text.qkv", blocks),
        ("blocks.text.modulation", blocks + "norm1_context.linear", "linear"),
        ("blocks.text.out", blocks + "attn.to_add_out", "linear"),
        ("blocks.text.mlp.first", blocks + "ff_context.net.0.proj", "linear"),
        ("blocks.text.mlp.second", blocks + "ff_context.net.2", "linear"),
        *visual("last_block.visual", last),
        *text("last_block.text_qkv", last),
        ("last_block.text_scale", last + "norm1_context.linear", "linear", (0, dim)),
        ("last_block.text_shift", last + "norm1_context.linear", "linear", (dim, 2 * dim)),
        ("scale", "norm_out.linear", "linear", (0, dim)),
        ("shift", "norm_out.linear", "linear", (dim, 2 * dim)),
        ("projection", "proj_out", "linear"),
    ]
    left_out = ("time_text_embed.text_embedder", "pos_embed.pos_embed")
    tensors = {name: x for name, x in tensors.items() if not name.startswith(left_out)}
    ours = abstract_parameters(lambda: VideoMMDiT(config, nnx.Rngs(0)))
    table = table_of(rows, kinds, config.layers - 1)
    return {name: jnp.asarray(x) for name, x in from_torch(tensors, table, ours, "SD3 weights").items()}


@functools.cache
def graph(config: MMDiTConfig):
    return abstract(lambda: VideoMMDiT(config, nnx.Rngs(0)))[0]


def table(layout: TokenLayout, times, mask=None) -> TokenTable:
    times = jnp.asarray(times, jnp.float32)
    batch, count = times.shape[0], len(layout.segments)
    return TokenTable(
        positions=positions(layout, Interleaved(), stream=None),
        lengths=jnp.ones((batch, count), jnp.int32),
        subjects=jnp.zeros((batch, count), jnp.int32),
        timesteps=times,
        loss_weights=jnp.ones_like(times),
        self_mask=mask,
    )


@pytest.fixture(scope="module")
def pair():
    model = peer(TINY)
    return model, parameters_of(state(model), TINY)


def test_one_picture_equals_diffusers_forward_and_gradient(pair, record_property):
    model, parameters = pair
    r = np.random.default_rng(0)
    normal = lambda *shape: r.standard_normal(shape).astype(np.float32)
    latents, text, weights = normal(2, 6, 4, 5), normal(2, 7, 14), normal(2, 6, 4, 5)
    time = np.array([123, 900], np.float32) / 1024

    first = lambda x: torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    model.zero_grad()
    thousandths = torch.from_numpy(time * np.float32(1000))
    out = model(first(latents), torch.from_numpy(text), torch.zeros(2, 3), thousandths, return_dict=False)[0]
    (out * first(weights)).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}

    layout = TokenLayout((Segment(kind="video", grid=(1, 3, 2)), Segment(kind="text", grid=(7, 1, 1))))
    here = table(layout, time[:, None])
    here = dataclasses.replace(here, positions=jnp.zeros_like(here.positions))

    @jax.jit
    def run(parameters, latents):
        def loss(parameters):
            tokens = patchify(latents[:, None], TINY.patch)
            velocity = merge(graph(TINY), parameters)(tokens, here, jnp.asarray(text), layout=layout)
            velocity = unpatchify(velocity, (1, 3, 2), TINY.patch)[:, 0]
            return (velocity * weights).sum(), velocity

        (_, velocity), gradient = jax.value_and_grad(loss, has_aux=True)(parameters)
        return velocity, gradient

    velocity, gradient = run(parameters, jnp.asarray(latents))
    error = relative_error(velocity, out.detach().numpy().transpose(0, 2, 3, 1))
    errors = relative_errors(gradient, parameters_of(gradients, TINY))
    record_property("relative_error", error)
    record_property("largest_relative_error_of_gradients", max(errors.values()))
    assert error <= FORWARD
    assert max(errors.values()) <= GRADIENT, errors


def text(shot):
    return Segment(kind="text", grid=(3, 1, 1), shot=shot)


SCENE = TokenLayout(
    (
        text(0),
        Segment(kind="dummy", grid=(1, 1, 1)),
        text(1),
        Segment(kind="video", grid=(2, 2, 1), shot=1),
        text(2),
        Segment(kind="video", grid=(1, 2, 2), shot=2),
    )
)


@functools.partial(jax.jit, static_argnames=("layout", "causal", "attend"))
def run_scene(
    parameters, tokens, words, times, places, state=None, *, layout=SCENE, causal=False, attend=default_attend
):
    mask = masks.visibility(layout, masks.shot_causal, queries=None, keys=None) if causal else None
    here = dataclasses.replace(table(layout, times, mask), positions=places)
    return merge(graph(TINY), parameters)(tokens, here, words, layout=layout, attend=attend, state=state)


@pytest.fixture(scope="module")
def scene():
    r = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(r.standard_normal(shape).astype(np.float32))
    return (
        normal(1, 9, 20),
        normal(1, 9, 14),
        jnp.asarray([[0.5, 0.25, 0.75]]),
        positions(SCENE, Interleaved(), stream=None),
    )


def test_a_text_has_the_time_of_its_shot():
    assert text_partners(SCENE) == (0, 0, 1, 1, 2, 2)
    video, reference = SCENE.segments[3], Segment(kind="reference", grid=(1, 1, 1), shot=1)
    assert text_partners(TokenLayout((text(1), reference, video))) == (1, 0, 1)
    assert text_partners(TokenLayout((reference, text(4)))) == (0, 0)


def test_shots_have_their_own_times_and_earlier_ones_do_not_read_later_ones(pair, scene):
    _, parameters = pair
    tokens, words, times, places = scene
    both = run_scene(parameters, *scene, causal=True)
    assert both.shape == (1, 8, 20)  # of the dummy nothing is predicted
    # Another time, another picture and other words in shot 2: shot 1 is the same, to the bit of a sum's order.
    changed = run_scene(
        parameters, tokens.at[:, 5:].add(1.0), words.at[:, 6:].add(1.0), times.at[0, 2].set(0.1), places, causal=True
    )
    np.testing.assert_allclose(changed[:, :4], both[:, :4], atol=1e-5)
    assert relative_error(changed[:, 4:], both[:, 4:]) > 1e-2
    # The time of shot 1 reaches what it predicts, and through attention shot 2.
    other = run_scene(parameters, tokens, words, times.at[0, 1].set(0.9), places, causal=True)
    assert relative_error(other[:, :4], both[:, :4]) > 1e-2 and relative_error(other[:, 4:], both[:, 4:]) > 1e-4
    assert relative_error(run_scene(parameters, *scene), both) > 1e-3  # without the mask shot 1 reads shot 2


def test_a_shot_after_cached_ones_equals_the_whole_scene(pair, scene):
    """What a KV cache needs of the hook: keys and values of every layer out of one run, and read by another."""
    _, parameters = pair
    tokens, words, times, places = scene

    def keep(q, k, v, table, rope, state):
        out, _ = default_attend(q, k, v, table, rope, None)
        return out, {"k": k, "v": v, "rope": jnp.broadcast_to(rope, state["rope"].shape)}

    def read(q, k, v, table, rope, state):
        k = jnp.concatenate([apply_rotary(state["k"], state["rope"]), apply_rotary(k, rope)], axis=1)
        return attention(apply_rotary(q, rope), k, jnp.concatenate([state["v"], v], axis=1)), state

    before, after = TokenLayout(SCENE.segments[:4]), TokenLayout(SCENE.segments[4:])
    kept = before.tokens()
    empty = {
        "k": jnp.zeros((TINY.layers, 1, kept, 2, 12)),
        "v": jnp.zeros((TINY.layers, 1, kept, 2, 12)),
        "rope": jnp.zeros((TINY.layers, 1, kept, 6)),
    }
    first, cache = run_scene(
        parameters, tokens[:, :5], words[:, :6], times[:, :2], places[:, :kept], empty, layout=before, causal=True,
        attend=keep,
    )  # fmt: skip
    second, _ = run_scene(
        parameters, tokens[:, 5:], words[:, 6:], times[:, 2:], places[:, kept:], cache, layout=after, attend=read
    )
    whole = run_scene(parameters, *scene, causal=True)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=2e-5)


def test_time_and_text_are_not_lost_at_a_small_width():
    """Freshly drawn, embeddings of unit inputs are of about unit size, whatever the width."""
    model = VideoMMDiT(dataclasses.replace(TINY, freq_dim=32), nnx.Rngs(0))
    for linear in (model.time_embedding.first, model.time_embedding.second, model.text_embedding):
        kernel = np.asarray(linear.kernel[...])
        np.testing.assert_allclose(kernel.std() * kernel.shape[0] ** 0.5, 1.0, atol=0.15)


def test_the_size_that_lct_tunes():
    config = MMDiTConfig.lct_3b()
    shapes = abstract_parameters(lambda: VideoMMDiT(config, nnx.Rngs(0)))
    assert sum(int(np.prod(x.shape)) for x in shapes.values()) == 2_983_062_592
    assert config.head_dim == 128 and config.axes == (44, 42, 42)


def test_bad_input_is_an_error_that_names_it(scene):
    model = nnx.eval_shape(lambda: VideoMMDiT(TINY, nnx.Rngs(0)))
    tokens, words, times, _ = scene
    here = table(SCENE, times)
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 8, 20\); expected \[batch, 9, 20\]"):
        model(tokens[:, 1:], here, words, layout=SCENE)
    with pytest.raises(ValueError, match=r"text has shape \(1, 8, 14\); expected \[batch, 9, 14\]"):
        model(tokens, here, words[:, 1:], layout=SCENE)
    with pytest.raises(ValueError, match="positions has 10 tokens; expected the 18"):
        model(tokens, dataclasses.replace(here, positions=here.positions[:, :10]), words, layout=SCENE)
    for change, message in (
        ({"layers": 1}, "layers is 1; expected at least 2"),
        ({"heads": 5}, "expected an even multiple of the 5 heads"),
        ({"ffn_dim": 0}, "ffn_dim is 0; expected a positive integer"),
        ({"dtype": "int8"}, "expected float32, bfloat16 or float16"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(TINY, **change)
