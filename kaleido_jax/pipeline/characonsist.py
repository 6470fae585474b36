"""Pictures of the same characters with FLUX.1: CharaConsist from prompts to pixels, `methods.characonsist` compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.diffusion import samplers
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import TokenLayout
from kaleido_jax.methods import characonsist, text_to_image
from kaleido_jax.methods.characonsist import CharaConsist, Switches, Texts, denoise, passes, switches
from kaleido_jax.methods.characonsist_attention import Tracking, nothing_tracked
from kaleido_jax.models.flux import FluxConfig, FluxTransformer
from kaleido_jax.pipeline.group_file import Group
from kaleido_jax.pipeline.text_to_image import Progress, TextToImage
from kaleido_jax.typing import Array, Int32, Params, UInt8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The sizes of a run, for configuration files: what its compiled pass depends on."""

    name: str
    transformer: FluxConfig
    text_tokens: int = 512
    height: int = 1024
    width: int = 1024
    steps: int = 50
    at_once: int = 4
    characters: int = 1
    method: CharaConsist

    def abstract_pass(self) -> tuple[Callable[..., tuple[Array, Tracking]], tuple[Any, ...]]:
        """The function that `ConsistentCharacters` compiles, and the shapes of its arguments, without any weights."""
        graph, shapes = abstract(lambda: FluxTransformer(self.transformer, nnx.Rngs(0)))
        dtype, patch = jnp.dtype(self.transformer.dtype), self.transformer.patch
        weights = {name: jax.ShapeDtypeStruct(leaf.shape, dtype) for name, leaf in shapes.items()}
        grid = (1, self.height // 8 // patch[1], self.width // 8 // patch[2])
        layout, rows = text_to_image.layout(grid, text_tokens=self.text_tokens), 1 + self.at_once
        array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
        words = (rows, self.text_tokens)
        texts = jax.eval_shape(
            lambda: Texts(
                text=jnp.zeros((*words, self.transformer.text_dim), dtype),
                pooled=jnp.zeros((rows, self.transformer.pooled_dim), dtype),
                words=jnp.zeros(words, jnp.int32),
            )
        )
        x = array(jnp.float32, rows, 1, grid[1] * patch[1], grid[2] * patch[2], self.transformer.channels)
        row = samplers.Steps(*(array(jnp.float32) for _ in samplers.Steps._fields))
        tracking = jax.eval_shape(lambda: nothing_tracked(self.at_once, layout.tokens("visual")))
        at = switches(self.method, next(iter(passes(self.method, self.steps))), self.transformer)
        at = jax.tree.map(lambda leaf: array(leaf.dtype, *leaf.shape), at)

        def run(
            weights: Params, x: Array, row: samplers.Steps, texts: Texts, scale: Array, tracking: Tracking, at: Switches
        ) -> tuple[Array, Tracking]:
            transformer = merge(graph, weights)
            fixed = {"layout": layout, "characters": self.characters}
            return denoise(self.method, transformer, x, row, texts, scale, tracking, at, **fixed)

        return run, (weights, x, row, texts, array(jnp.float32), tracking, at)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
    """What was made of a group, the identity picture first.

    characters: the number of the character that each token shows, 0 for the background, by the masks that were used
    last; tokens are squares of equally many pixels.
    """

    pixels: UInt8[np.ndarray, "b h w 3"]
    characters: Int32[np.ndarray, "b rows columns"]


class ConsistentCharacters:
    """Makes groups of pictures: `ConsistentCharacters(TextToImage(load_flux(folder)))(group)`.

    Programs are compiled for each size, number of frames at once and number of characters, and kept.
    """

    def __init__(self, model: TextToImage, method: CharaConsist | None = None):
        self.model, self.method = model, CharaConsist.released() if method is None else method
        self.compiled = 0  # programs of a pass
        graph, _ = model.transformer

        def step(
            weights: Params,
            x: Array,
            row: samplers.Steps,
            texts: Texts,
            guidance: Array,
            tracking: Tracking,
            at: Switches,
            layout: TokenLayout,
            characters: int,
        ) -> tuple[Array, Tracking]:
            self.compiled += 1  # runs while a program is made, not when it is used
            transformer = merge(graph, weights)
            return denoise(
                self.method, transformer, x, row, texts, guidance, tracking, at, layout=layout, characters=characters
            )

        def invert(weights: Params, x: Array, rows: samplers.Steps, texts: Texts, layout: TokenLayout) -> Array:
            return characonsist.invert(self.method, merge(graph, weights), x, rows, texts, layout=layout)

        self._step = jax.jit(step, static_argnames=("layout", "characters"))
        self._invert = jax.jit(invert, static_argnames=("layout",))

    def __call__(
        self,
        group: Group,
        *,
        height: int = 1024,
        width: int = 1024,
        steps: int | None = None,
        guidance: float = 3.5,
        seed: int = 0,
        at_once: int = 4,
        identity: UInt8[np.ndarray, "h w 3"] | None = None,
        progress: Progress | None = None,
    ) -> Pictures:
        """The pictures of a group, all from the noise of one seed, as the released code has it.

        Args:
          at_once: how many frames are denoised beside the identity picture; it is made again for every so many.
          identity: a picture of the characters to take instead of making one, of the size that is asked for; the
            group's first line describes it. It comes back as the VAE paints it.
          progress: called with how many passes are done, and how many there are.

        Raises:
          UsageError: a size or a number does not fit. InputError: a prompt is too long.
        """
        if at_once < 1:
            raise UsageError(f"The number of frames at once is {at_once}; it must be at least 1.")
        if steps is not None and steps < 1:
            raise UsageError(f"steps is {steps}; it must be at least 1.")
        if identity is not None and identity.shape != (height, width, 3):
            raise UsageError(
                f"The identity picture has shape {identity.shape}; it must be {height} x {width} pixels of 3 bytes."
            )
        model, method = self.model, self.method
        noise = model.noise([seed], height, width)
        patch = model.config.patch
        grid = tuple(int(size) // step for size, step in zip(noise.shape[1:4], patch))
        layout = text_to_image.layout(grid, text_tokens=model.text_tokens)
        table = model.schedule(layout.tokens("visual"), steps)
        texts = self._texts(group)
        count = len(table.time)
        parts = characonsist.chunks(len(group.frames), at_once)
        total, done = len(parts) * len(list(passes(method, count))), 0
        weights = model.transformer[1]
        device = next(iter(weights.values())).sharding
        path = None
        if identity is not None:
            rows = samplers.Steps(*(np.float32(column) for column in table))
            path = self._invert(weights, model.latents(identity[None]), rows, _rows(texts, [0]), layout=layout)

        latents, shown = [], []
        for part in parts:
            frames = [1 + min(index, len(group.frames) - 1) for index in part]
            own = {rows: _rows(texts, [0, *frames][:rows]) for rows in (1, 1 + len(frames))}

            def program(x: Array, row: samplers.Steps, tracking: Tracking, at: Switches) -> tuple[Array, Tracking]:
                # Where the results come from: else a first pass and a later one are two programs.
                x, tracking = jax.device_put((x, tracking), device)
                scale = np.float32(guidance)
                characters = len(group.identity.characters)
                return self._step(
                    weights, x, row, own[x.shape[0]], scale, tracking, at, layout=layout, characters=characters
                )

            report = None if progress is None else lambda at, _, done=done: progress(done + at, total)
            x, tracking = characonsist.draw(
                method, program, noise, table, model.config, frames=len(frames), path=path, progress=report
            )
            done += total // len(parts)
            masks = np.concatenate([np.asarray(tracking.identity)[None], np.asarray(tracking.shown)])
            fresh = slice(1 if latents else 0, 1 + len(set(frames)))  # the identity picture once, no frame twice
            latents.append(x[fresh])
            shown.append(masks[fresh])
        pixels = [model.decode(picture[None]) for part in latents for picture in part]  # one by one: memory
        return Pictures(
            pixels=np.concatenate(pixels),
            characters=np.concatenate(shown).reshape(-1, *grid[1:]).astype(np.int32),
        )

    def _texts(self, group: Group) -> Texts:
        length, pictures = self.model.text_tokens, group.pictures
        words = [group.words(picture, self.model.count_tokens, length) for picture in pictures]
        encoded = self.model.encode([picture.prompt for picture in pictures])
        return Texts(text=encoded.text, pooled=encoded.pooled, words=np.array(words, np.int32))


def _rows(texts: Texts, rows: list[int]) -> Texts:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[np.array(rows)], texts)
