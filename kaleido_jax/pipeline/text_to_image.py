"""From a prompt to a picture with FLUX.1."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax import porting
from kaleido_jax.bundle import abstract, merge, parameters
from kaleido_jax.diffusion import samplers
from kaleido_jax.diffusion.flow import resolution_shift
from kaleido_jax.errors import InputError, UsageError, printable
from kaleido_jax.layout import TokenLayout, patchify, unpatchify
from kaleido_jax.media.references import to_model_range
from kaleido_jax.methods import text_to_image as sequence
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.models.image_vae import ImageVAE, ImageVAEConfig, decode_tiled
from kaleido_jax.models.text import CLIPTextConfig, CLIPTextEncoder, Tokenizer, UMT5Config, UMT5Encoder
from kaleido_jax.models.text.clip.tokenizer import CLIPTokenizer
from kaleido_jax.models.text.tokenizer import UnknownWords
from kaleido_jax.tree import pytree
from kaleido_jax.typing import Array, Float, Int, Params, UInt8

# progress(done, total): called before the first step and after each.
Progress = Callable[[int, int], None]

WHOLE_PIXELS = 2**21  # of a picture: twice those of 1024 x 1024 are decoded whole, more in tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class FluxModel:
    """The networks and tokenizers of a FLUX.1 release.

    text_tokens: how many T5 reads of a prompt, padding included; 512 in dev, 256 in schnell.
    """

    transformer: FluxTransformer
    vae: ImageVAE
    t5: UMT5Encoder
    clip: CLIPTextEncoder
    t5_tokenizer: Tokenizer
    clip_tokenizer: CLIPTokenizer
    text_tokens: int = 512


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """What the transformer reads of prompts: T5's tokens and CLIP's pooled vector."""

    text: Float[Array, "b m d"]
    pooled: Float[Array, "b e"]


def load_flux(folder: str | Path, *, dtype: str = "bfloat16") -> FluxModel:
    """A FLUX.1 release from a folder as diffusers lays it out (transformer/, vae/, text_encoder/, tokenizer/, ...).

    dtype: of the transformer's and the encoders' weights and activations; the VAE stays in float32.

    Raises:
      UsageError: a part of the release is not there. InputError: a part is damaged, or is not FLUX's.
    """
    folder = Path(folder)
    transformer = _network(folder / "transformer", FluxConfig, FluxTransformer, dtype)
    return FluxModel(
        transformer=transformer,
        vae=_network(folder / "vae", ImageVAEConfig, ImageVAE, "float32"),
        t5=_network(folder / "text_encoder_2", UMT5Config, UMT5Encoder, dtype),
        clip=_network(folder / "text_encoder", CLIPTextConfig, CLIPTextEncoder, dtype),
        t5_tokenizer=Tokenizer.load(folder / "tokenizer_2"),
        clip_tokenizer=CLIPTokenizer.load(folder / "tokenizer"),
        text_tokens=512 if transformer.config.guidance else 256,
    )


def _network(folder: Path, kind: type, network: Callable[..., Any], dtype: str) -> Any:
    config, arrays = porting.load(folder, dtype=dtype)
    if not isinstance(config, kind):
        raise InputError(
            f"{printable(str(folder))} holds weights with a {type(config).__name__}; "
            f"FLUX.1 has a {kind.__name__} there."
        )
    if any(field.name == "dtype" for field in dataclasses.fields(config)):
        config = dataclasses.replace(config, dtype=dtype)
    return merge(abstract(lambda: network(config, nnx.Rngs(0)))[0], arrays)


class TextToImage:
    """A FLUX.1 model ready to draw: `TextToImage(load_flux(folder))`.

    Programs are compiled when a size is first asked for, and kept.
    """

    def __init__(self, model: FluxModel):
        self.config, self.vae_config = model.transformer.config, model.vae.config
        self.text_tokens = model.text_tokens
        self._clip_tokens = model.clip.config.positions
        self._tokenizers = model.t5_tokenizer, model.clip_tokenizer
        networks = {"transformer": model.transformer, "vae": model.vae, "t5": model.t5, "clip": model.clip}
        graphs = {name: nnx.split(network)[0] for name, network in networks.items()}
        self._transformer_graph = graphs["transformer"]
        self._weights: dict[str, Params] = {name: parameters(network) for name, network in networks.items()}

        def encode(weights: Params, ids: Int[Array, "b m"], clip_ids: Int[Array, "b k"]) -> EncodedPrompt:
            # The released transformers were trained on texts whose padding was encoded, and read, like words.
            everything = jnp.full((ids.shape[0],), ids.shape[1], jnp.int32)
            return EncodedPrompt(
                text=merge(graphs["t5"], weights["t5"])(ids, everything),
                pooled=merge(graphs["clip"], weights["clip"])(clip_ids)[1],
            )

        def step(
            weights: Params, x: Array, row: samplers.Steps, prompt: EncodedPrompt, guidance: Array, layout: TokenLayout
        ) -> Array:
            transformer = merge(graphs["transformer"], weights)
            patch, batch = self.config.patch, x.shape[0]
            grid = next(segment.grid for segment in layout.segments if segment.target)
            velocity = transformer(
                patchify(x, patch),
                sequence.table(layout, jnp.broadcast_to(row.time, (batch,))),
                prompt.text,
                prompt.pooled,
                layout=layout,
                guidance=jnp.broadcast_to(guidance, (batch,)) if self.config.guidance else None,
            )
            return samplers.advance(samplers.start(x), unpatchify(velocity, grid, patch), row).x

        def encode_pictures(weights: Params, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b 1 _ _ z"]:
            return merge(graphs["vae"], weights).encode(pixels)[:, None]

        def decode(weights: Params, latents: Float[Array, "b 1 h w z"]) -> UInt8[Array, "b _ _ 3"]:
            vae = merge(graphs["vae"], weights)
            whole = latents.shape[2] * latents.shape[3] * vae.config.spatial_factor**2 <= WHOLE_PIXELS
            pixels = vae.decode(latents[:, 0]) if whole else decode_tiled(vae, latents[:, 0])
            return jnp.round((pixels + 1.0) * 127.5).astype(jnp.uint8)

        self._encode, self._decode = jax.jit(encode), jax.jit(decode)
        self._encode_pictures = jax.jit(encode_pictures)
        self._step = jax.jit(step, static_argnames=("layout",))

    @property
    def transformer(self) -> tuple[nnx.GraphDef[FluxTransformer], Params]:
        """The transformer's graph and weights, for `bundle.merge`."""
        return self._transformer_graph, self._weights["transformer"]

    def count_tokens(self, text: str) -> int:
        """How many of T5's tokens a text has, without the one that ends it and as if there were room for all."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnknownWords)
            _, lengths = self._tokenizers[0].encode([text], 8 * len(text) + 2, cleaned=False)
        return int(lengths[0]) - 1

    def latents(self, pictures: UInt8[np.ndarray, "b h w 3"]) -> Float[Array, "b 1 _ _ z"]:
        """Latents of given pictures."""
        return self._encode_pictures(self._weights["vae"], to_model_range(pictures))

    def encode(self, prompts: Sequence[str]) -> EncodedPrompt:
        """Reads prompts. Keep the result where many pictures are made of few prompts.

        Raises:
          UsageError: the encoders were released.
        """
        if "t5" not in self._weights:
            raise UsageError("The text encoders were released; encode all prompts before, or load the model again.")
        t5_tokenizer, clip_tokenizer = self._tokenizers
        ids, _ = t5_tokenizer.encode(prompts, self.text_tokens, cleaned=False)
        weights = {name: self._weights[name] for name in ("t5", "clip")}
        return self._encode(weights, ids, clip_tokenizer.encode(prompts, self._clip_tokens))

    def release_encoders(self) -> None:
        """Frees the memory of both text encoders (T5 is 4.8 billion parameters); `encode` is refused from then on."""
        for name in ("t5", "clip"):
            self._weights.pop(name, None)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Float[Array, "b 1 h w z"]:
        """Where sampling starts, of each seed its own, for pictures of height x width pixels.

        Raises:
          UsageError: a size is not divisible by the pixels of a patch.
        """
        latents = []
        for name, size, step in zip(("height", "width"), (height, width), self.config.patch[1:]):
            pixels = step * self.vae_config.spatial_factor
            if size < pixels or size % pixels:
                raise UsageError(f"The {name} is {size}; it must be a positive multiple of {pixels}.")
            latents.append(size // self.vae_config.spatial_factor)
        shape = (1, *latents, self.config.channels)
        return jnp.stack([jax.random.normal(jax.random.key(seed), shape, jnp.float32) for seed in seeds])

    def schedule(self, tokens: int, steps: int | None = None) -> samplers.Steps:
        """Euler's steps for a picture of so many tokens, in dev shifted towards noise by their number.

        steps: 50 in dev and 4 in schnell if not given.
        """
        steps = (50 if self.config.guidance else 4) if steps is None else steps
        return samplers.euler(steps, resolution_shift(tokens) if self.config.guidance else 1.0)

    def denoise(
        self,
        prompt: EncodedPrompt,
        noise: Float[Array, "b 1 h w z"],
        *,
        steps: int | None = None,
        guidance: float = 3.5,
        progress: Progress | None = None,
    ) -> Float[Array, "b 1 h w z"]:
        """Latents of pictures from noise. guidance: the scale that dev reads; schnell reads none.

        Raises:
          UsageError: there are not as many prompts as noises, or `steps` is less than 1.
        """
        if prompt.text.shape[0] != noise.shape[0]:
            raise UsageError(f"There are {prompt.text.shape[0]} prompts for {noise.shape[0]} pictures; give one each.")
        if steps is not None and steps < 1:
            raise UsageError(f"steps is {steps}; it must be at least 1.")
        grid = tuple(int(size) // patch for size, patch in zip(noise.shape[1:4], self.config.patch))
        layout = sequence.layout(grid, text_tokens=prompt.text.shape[1])
        table = self.schedule(layout.tokens("visual"), steps)
        total, report = len(table.time), progress or (lambda done, total: None)
        report(0, total)
        x: Any = noise
        for index in range(total):
            row = samplers.Steps(*(np.float32(column[index]) for column in table))
            x = self._step(self._weights["transformer"], x, row, prompt, np.float32(guidance), layout=layout)
            if progress is not None:
                jax.block_until_ready(x)
            report(index + 1, total)
        return x

    def decode(self, latents: Float[Array, "b 1 h w z"]) -> UInt8[np.ndarray, "b _ _ 3"]:
        """Pictures of latents; those of more than `WHOLE_PIXELS` are decoded in overlapping tiles, for less memory."""
        return np.asarray(self._decode(self._weights["vae"], latents))

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        height: int = 1024,
        width: int = 1024,
        steps: int | None = None,
        guidance: float = 3.5,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "b _ _ 3"]:
        """One picture of each prompt; the noise of picture i is that of seed + i.

        Raises:
          UsageError: a size or a number does not fit, or the encoders were released.
        """
        noise = self.noise([seed + index for index in range(len(prompts))], height, width)
        latents = self.denoise(self.encode(prompts), noise, steps=steps, guidance=guidance, progress=progress)
        return self.decode(latents)
