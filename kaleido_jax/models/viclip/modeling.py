"""ViCLIP (InternVid, arXiv:2307.06942, section 5): CLIP's towers, the pictures' one among all frames at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kaleido_jax.models.layers import Linear, scan
from kaleido_jax.models.text.clip.modeling import CLIPTextEncoder
from kaleido_jax.models.viclip.config import ViCLIPConfig
from kaleido_jax.models.vision.config import VisionConfig
from kaleido_jax.models.vision.modeling import VisionEncoder


class VideoEncoder(VisionEncoder):
    """A vision transformer whose tokens are those of all frames, told apart by a table of `frames` times."""

    def __init__(self, config: VisionConfig, frames: int, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.times = nnx.Param(0.02 * jax.random.normal(rngs.params(), (frames, config.dim)))

    def embed(self, video: Float[Array, "b f h w 3"]) -> Float[Array, "b e"]:
        """One vector a video of normalised frames, as many as the table has, of the config's image_size."""
        batch, frames, *rest = video.shape
        if frames != self.times.shape[0]:
            raise ValueError(f"video has {frames} frames; ViCLIP was made for {self.times.shape[0]}.")
        x = self.patch_embedding(self._patches(video.reshape(batch * frames, *rest)))
        table, times = self._positions(*video.shape[2:4]), self.times[...]
        x = x.reshape(batch, frames, -1, x.shape[-1]) + table[1:][None, None] + times[None, :, None]
        first = jnp.broadcast_to((self.summary[...] + table[0])[None, None], (batch, 1, x.shape[-1]))
        x = jnp.concatenate([first, x.reshape(batch, -1, x.shape[-1])], axis=1)
        assert self.norm_in is not None and self.projection is not None
        x, _ = scan(self.blocks, lambda block, x, state: (block(x), state), self.norm_in(x))
        return self.projection(self.norm_out(x[:, 0]))


class ViCLIP(nnx.Module):
    """Videos and texts in one space."""

    def __init__(self, config: ViCLIPConfig, rngs: nnx.Rngs):
        self.video = VideoEncoder(config.vision, config.frames, rngs)
        self.text = CLIPTextEncoder(config.text, rngs)
        self.projection = Linear(config.text.dim, config.vision.projection or 0, rngs, bias=False)

    def embed_text(self, ids: Int[Array, "b m"]) -> Float[Array, "b e"]:
        """One vector a text: its end, projected."""
        return self.projection(self.text(ids)[1])
