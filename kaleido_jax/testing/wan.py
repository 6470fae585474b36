"""diffusers' Wan transformer beside ours: equal weights, equal inputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import WanTransformer3DModel
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.layout import Segment, TokenLayout, patchify, unpatchify
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.models.wan.params import FAMILY
from kaleido_jax.rope import Continuing, positions
from kaleido_jax.table import TokenTable
from kaleido_jax.testing.weights import randomise, state
from kaleido_jax.typing import AnyArray

TINY = WanConfig(dim=48, ffn_dim=80, heads=3, layers=2, in_channels=5, out_channels=4, text_dim=20, freq_dim=32)
TEXT_TOKENS = 512  # diffusers splits image tokens from text at this number


def diffusers_model(config: WanConfig, **options) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=config.patch,
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.layers,
        eps=config.eps,
        image_dim=config.image_dim,
        added_kv_proj_dim=config.dim if config.image_dim else None,
        **options,
    )


@dataclasses.dataclass(frozen=True)
class Inputs:
    video: np.ndarray  # [b, f, h, w, c]
    text: np.ndarray
    time: np.ndarray  # [b], in [0, 1]; a multiple of 1/1024, so that 1000 t is exact
    image: np.ndarray | None

    @property
    def arrays(self):
        """Video, text and image for `run_ours`."""
        return jax.tree.map(jnp.asarray, (self.video, self.text, self.image))


def random_inputs(config: WanConfig, batch: int, frames: int, height: int, width: int, seed: int = 0) -> Inputs:
    r = np.random.default_rng(seed)
    normal = lambda *shape: r.standard_normal(shape).astype(np.float32)
    text = normal(batch, TEXT_TOKENS if config.image_dim else 17, config.text_dim)
    text[:, 11:] = 0.0  # as after the end of a prompt
    return Inputs(
        normal(batch, frames, height, width, config.in_channels),
        text,
        (r.integers(1, 1024, batch) / 1024).astype(np.float32),
        normal(batch, 7, config.image_dim) if config.image_dim else None,
    )


def run_peer(model, inputs: Inputs, time: np.ndarray | None = None, video: torch.Tensor | None = None) -> torch.Tensor:
    """[b, f, h, w, c]; `time` may hold one value for each token, `video` be a tensor that wants a gradient."""
    dtype = next(model.parameters()).dtype
    tensor = lambda x: None if x is None else torch.from_numpy(x).to(dtype)
    out = model(
        (tensor(inputs.video) if video is None else video).permute(0, 4, 1, 2, 3),
        tensor((inputs.time if time is None else time) * np.float32(1000)),
        tensor(inputs.text),
        tensor(inputs.image),
        return_dict=False,
    )[0]
    return out.permute(0, 2, 3, 4, 1)


def video_layout(config: WanConfig, video: AnyArray) -> TokenLayout:
    grid = tuple(int(size) // patch for size, patch in zip(video.shape[1:4], config.patch))
    return TokenLayout((Segment(kind="video", grid=grid),))


def plain_table(layout: TokenLayout, time, **masks) -> TokenTable:
    """Positions as in the base model, everything visible. time: [b] or [b, segments]."""
    time = jnp.asarray(time)
    time = time[:, None] if time.ndim == 1 else time
    batch, count = time.shape[0], len(layout.segments)
    return TokenTable(
        positions=positions(layout, Continuing()),
        lengths=jnp.broadcast_to(jnp.asarray([s.tokens for s in layout.segments], jnp.int32), (batch, count)),
        subjects=jnp.zeros((batch, count), jnp.int32),
        timesteps=time,
        loss_weights=jnp.ones(time.shape, jnp.float32),
        **masks,
    )


@functools.cache
def graph(config: WanConfig):
    return abstract(lambda: WanTransformer(config, nnx.Rngs(0)))[0]


@functools.partial(jax.jit, static_argnums=(3, 4))
def run_ours(parameters, inputs, times, config: WanConfig, layout: TokenLayout | None = None) -> jax.Array:
    """[b, f, h, w, c], as `run_peer`. inputs: `Inputs.arrays`; times: [b], or [b, segments] for a layout of several."""
    video, text, image = inputs
    layout = layout or video_layout(config, video)
    grid = tuple(size // patch for size, patch in zip(video.shape[1:4], config.patch))
    tokens = patchify(video, config.patch)
    model = merge(graph(config), parameters)
    out = model(tokens, plain_table(layout, times), text, layout=layout, image=image)
    return unpatchify(out, grid, config.patch)


def pair(config: WanConfig, seed: int = 0, **options):
    """diffusers' model with random weights, and the same weights as our parameters."""
    model = randomise(diffusers_model(config, **options), seed)
    return model, {name: jnp.asarray(x) for name, x in FAMILY.from_torch(state(model), config).items()}
