"""diffusers' FLUX transformer beside ours: equal weights, equal inputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.layout import TokenLayout, patchify
from kaleido_jax.methods import text_to_image
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.models.flux.params import FAMILY
from kaleido_jax.rope import Flat, positions
from kaleido_jax.table import TokenTable
from kaleido_jax.testing.weights import randomise, state
from kaleido_jax.typing import Array

TINY = FluxConfig(
    dim=48, ffn_dim=192, heads=3, double_layers=2, single_layers=3, guidance=True, channels=5, text_dim=20,
    pooled_dim=12, axes=(4, 6, 6),
)  # fmt: skip


def diffusers_model(config: FluxConfig) -> FluxTransformer2DModel:
    """Needs ffn_dim = 4 dim and freq_dim = 256, which that class has built in."""
    return FluxTransformer2DModel(
        in_channels=config.patch[1] * config.patch[2] * config.channels,
        num_layers=config.double_layers,
        num_single_layers=config.single_layers,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.heads,
        joint_attention_dim=config.text_dim,
        pooled_projection_dim=config.pooled_dim,
        guidance_embeds=config.guidance,
        axes_dims_rope=config.axes,
    )


@dataclasses.dataclass(frozen=True)
class Inputs:
    latents: np.ndarray  # [b, 1, height, width, channels]
    text: np.ndarray  # [b, m, text_dim]
    pooled: np.ndarray  # [b, pooled_dim]
    time: np.ndarray  # [b], in [0, 1]; a multiple of 1/1024, so that 1000 t is exact
    guidance: np.ndarray | None  # [b], up to 1: the sinusoids of 1000 times more are rounding noise at 1e-5 in float32

    @property
    def arrays(self):
        """All of them for `run_ours`."""
        return jax.tree.map(jnp.asarray, dataclasses.astuple(self))


def random_inputs(config: FluxConfig, batch: int, height: int, width: int, text: int = 7, seed: int = 0) -> Inputs:
    r = np.random.default_rng(seed)
    normal = lambda *shape: r.standard_normal(shape).astype(np.float32)
    return Inputs(
        normal(batch, 1, height, width, config.channels),
        normal(batch, text, config.text_dim),
        normal(batch, config.pooled_dim),
        (r.integers(1, 1024, batch) / 1024).astype(np.float32),
        (r.integers(1, 32, batch) / 32).astype(np.float32) if config.guidance else None,
    )


def run_peer(model, inputs: Inputs, latents: torch.Tensor | None = None) -> torch.Tensor:
    """[b, height, width, channels]; `latents` [b, height, width, channels] may be a tensor that wants a gradient."""
    dtype = next(model.parameters()).dtype
    tensor = lambda x: None if x is None else torch.from_numpy(x).to(dtype)
    latents = tensor(inputs.latents)[:, 0] if latents is None else latents
    batch, height, width, channels = latents.shape
    packed = FluxPipeline._pack_latents(latents.permute(0, 3, 1, 2), batch, channels, height, width)
    out = model(
        hidden_states=packed,
        encoder_hidden_states=tensor(inputs.text),
        pooled_projections=tensor(inputs.pooled),
        timestep=tensor(inputs.time),
        guidance=tensor(inputs.guidance),
        img_ids=FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", dtype),
        txt_ids=torch.zeros(inputs.text.shape[1], 3, dtype=dtype),
        return_dict=False,
    )[0]
    return FluxPipeline._unpack_latents(out, height, width, 1).permute(0, 2, 3, 1)


def plain_table(layout: TokenLayout, time, **masks) -> TokenTable:
    """Positions as in the released models, everything visible. time: [b] or [b, visual segments]."""
    time = jnp.asarray(time)
    time = time[:, None] if time.ndim == 1 else time
    batch, count = time.shape[0], len(layout.segments)
    return TokenTable(
        positions=positions(layout, Flat(), stream=None),
        lengths=jnp.broadcast_to(jnp.asarray([s.tokens for s in layout.segments], jnp.int32), (batch, count)),
        subjects=jnp.zeros((batch, count), jnp.int32),
        timesteps=time,
        loss_weights=jnp.ones(time.shape, jnp.float32),
        **masks,
    )


@functools.cache
def graph(config: FluxConfig):
    return abstract(lambda: FluxTransformer(config, nnx.Rngs(0)))[0]


@functools.partial(jax.jit, static_argnums=(2,))
def run_ours(parameters, inputs, config: FluxConfig) -> Array:
    """Tokens of velocity. inputs: `Inputs.arrays`."""
    latents, text, pooled, time, guidance = inputs
    grid = tuple(size // patch for size, patch in zip(latents.shape[1:4], config.patch))
    layout = text_to_image.layout(grid, text_tokens=text.shape[1])
    model = merge(graph(config), parameters)
    tokens, table = patchify(latents, config.patch), plain_table(layout, time)
    return model(tokens, table, text, pooled, layout=layout, guidance=guidance)


def pair(config: FluxConfig, seed: int = 0):
    """diffusers' model with random weights, and the same weights as our parameters."""
    model = randomise(diffusers_model(config), seed)
    return model, {name: jnp.asarray(x) for name, x in FAMILY.from_torch(state(model), config).items()}
