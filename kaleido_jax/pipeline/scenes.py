"""Scenes of shots, made context by context as `methods.scene` lays out."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kaleido_jax.diffusion import samplers
from kaleido_jax.media.references import to_model_range
from kaleido_jax.methods import lct
from kaleido_jax.methods.method import Condition
from kaleido_jax.methods.scene import Part, Scene, parts
from kaleido_jax.pipeline.programs import encode_pixels, encode_text, scene_step, shot_by_shot
from kaleido_jax.pipeline.references import Reference
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.typing import Array, Float, UInt8

if TYPE_CHECKING:
    from kaleido_jax.pipeline.pipeline import Pipeline


class SceneMaker:
    """Makes one scene with a pipeline. Shots are numbered from 1, as in the scene."""

    def __init__(
        self,
        pipeline: "Pipeline",
        scene: Scene,
        references: Sequence[Reference],
        settings: Settings,
        report: Callable[[str, int, int], None],
    ) -> None:
        self.pipeline, self.scene, self.settings, self.report = pipeline, scene, settings, report
        assert isinstance(pipeline.method, lct.LCT)
        self.method = pipeline.method
        assert settings.frames and settings.height and settings.width and settings.guidance is not None
        vae = pipeline.config.vae
        self.shape = (
            vae.latent_frames(settings.frames),
            settings.height // vae.spatial_factor,
            settings.width // vae.spatial_factor,
            pipeline.config.transformer.out_channels,
        )
        self.rule = self.method.guidance(settings.guidance)
        self.run = functools.partial(pipeline.run_program, report=report)
        self.pixels: dict[int, UInt8[np.ndarray, "f h w 3"]] = {}  # of each shot that there is
        self.latents: dict[int, Float[Array, "1 f h w z"]] = {}
        self.pieces: dict[tuple[int, int], Float[Array, "1 f h w z"]] = {}  # references of shots
        given = iter(references)
        for number, shot in enumerate(scene.shots, 1):
            if shot.clip:
                self.pixels[number] = next(given).pixels
                self.latents[number] = self._encoded(self.pixels[number])
            for index in range(len(shot.references)):
                self.pieces[number, index] = self._encoded(next(given).pixels)

    def make(self) -> UInt8[np.ndarray, "f h w 3"]:
        """The frames of all shots, one after another; one that goes on from another begins with the next frame."""
        sampling = self.scene.sampled(causal=self.method.attention == "causal")
        every = tuple(range(1, 1 + len(self.scene.shots)))
        if sampling == "autoregressive" and self._keeps_all():
            self._finish(every, self._sample_with_cache(Part(every)))
        else:
            for part in parts(self.scene, sampling):
                self._finish(part.made, self._sample(part))
        return np.concatenate(
            [self.pixels[number][1 if self.scene.shots[number - 1].extends else 0 :] for number in every]
        )

    def _keeps_all(self) -> bool:
        """Whether each shot sees all before it and nothing else: then their keys and values can be kept."""
        plain = all(not (s.clip or s.references or s.extends or s.condition_on is not None) for s in self.scene.shots)
        fits = len(self.scene.shots) <= lct.MOST_SHOTS
        return plain and fits and self.method.attention == "causal" and self.pipeline.mesh is None

    def _encoded(self, pixels: UInt8[np.ndarray, "f h w 3"]) -> Float[Array, "1 _ _ _ z"]:
        weights = {"vae": self.pipeline.weights["vae"]}
        return self.run("clip encoder", encode_pixels, weights, (to_model_range(pixels[None]),))

    def _finish(self, made: Sequence[int], latents: Float[Array, "one f h w z"]) -> None:
        for number, piece in zip(made, jnp.split(latents, len(made), axis=1)):
            self.latents[number] = piece
            self.pixels[number] = self.pipeline.decode(piece, self.settings, self.report)[0]

    def _noise(self, key: int) -> Float[Array, "1 f h w z"]:
        """Where a shot starts, which is also mixed into it when others see it: of the seed and its number."""
        keys = jax.random.fold_in(jax.random.key(self.settings.seed), key)
        return jax.random.normal(keys, (1, *self.shape), jnp.float32)

    def _condition(self, prompts: Sequence[str], frames: Sequence[int]) -> Condition:
        """One row for each branch of the guidance."""
        branches = self.rule.branches
        texts = [prompts if branch.text == "prompt" else ("",) * len(prompts) for branch in branches]
        tokens = self.pipeline.config.defaults.text_tokens
        ids, lengths = self.pipeline.tokenizer.encode([text for row in texts for text in row], tokens)
        words = self.run("text encoder", encode_text, {"text": self.pipeline.weights["text"]}, (ids, lengths))
        return self.pipeline.on_mesh(
            Condition(
                text=words.reshape(len(branches), -1, words.shape[2]),
                text_lengths=jnp.asarray(lengths).reshape(len(branches), -1),
                references=[],
                reference_frames=jnp.asarray([list(frames)] * len(branches), jnp.int32),
                subjects=jnp.zeros((len(branches), len(frames)), jnp.int32),
            )
        )

    def _bound(self, function: Callable, shots: int) -> tuple[Any, tuple]:
        """The function with what is static for a context of so many shots, and a key for the program."""
        pt, ph, pw = self.pipeline.config.transformer.patch
        frames, height, width, _ = self.shape
        texts = (self.pipeline.config.defaults.text_tokens,) * (1 + shots)
        layout = self.method.layout((shots * frames // pt, height // ph, width // pw), [], texts=texts)
        fixed = {"method": self.method, "layout": layout, "patch": self.pipeline.config.transformer.patch}
        branches = self.rule.branches
        return functools.partial(function, branches=branches, **fixed), (function.__name__, branches, layout)

    def _sample(self, part: Part) -> Float[Array, "one f h w z"]:
        """Latents of the shots that are made in a context."""
        scene, frames = self.scene, self.shape[0]
        numbers = sorted((*part.made, *part.seen))
        known = [*(self.pieces[key] for key in part.references)]
        known += [None if number in part.made else self.latents[number] for number in numbers]
        prompts = (scene.prompt, *("" for _ in part.references), *(scene.prompt_of(number) for number in numbers))
        condition = self._condition(prompts, [frames if x is None else x.shape[1] for x in known])
        given, on_path = np.zeros((1, len(known) * frames, *self.shape[1:]), np.float32), np.zeros(len(known) * frames)
        for index, piece in enumerate(known):
            if piece is not None:
                given[:, index * frames : index * frames + piece.shape[1]] = np.asarray(piece)
        for index, number in enumerate(numbers, len(part.references)):
            extended = scene.shots[number - 1].extends
            if number in part.made and extended:
                given[:, index * frames] = np.asarray(self._encoded(self.pixels[extended][-1:]))[:, 0]
                on_path[index * frames] = 1
        offset = 1 + len(scene.shots)  # references are numbered after the shots
        seeds = [offset + i for i in range(len(part.references))] + numbers
        noise = jnp.concatenate([self._noise(seed) for seed in seeds], axis=1)
        held = lct.Held(
            given=jnp.asarray(given),
            noise=noise,
            is_given=jnp.asarray([x is not None for x in known]),
            on_path=jnp.asarray(on_path > 0),
        )
        scales = jnp.asarray(self.rule.weights, jnp.float32)
        steps = samplers.SAMPLERS[self.settings.sampler](self.settings.steps, self.settings.shift)
        rows = [samplers.Steps(*(np.float32(column[i]) for column in steps)) for i in range(len(steps.time))]
        function, key = self._bound(scene_step, len(known))
        function = functools.partial(function, ulysses=self.pipeline.ulysses)
        weights = {"transformer": self.pipeline.weights["transformer"]}
        state, held = self.pipeline.everywhere((samplers.start(noise), held))
        program = self.pipeline.program(
            "transformer", key, function, weights, (state, rows[0], condition, scales, held), self.report
        )
        what = f"sampling shot {', '.join(map(str, part.made))}" if len(part.made) < len(scene.shots) else "sampling"
        self.report(what, 0, len(rows))
        for index, row in enumerate(rows):
            state = jax.block_until_ready(program(weights, state, row, condition, scales, held))
            self.report(what, index + 1, len(rows))
        pieces = jnp.split(state.x, len(known), axis=1)
        return jnp.concatenate(
            [pieces[i] for i, number in enumerate(numbers, len(part.references)) if number in part.made], axis=1
        )

    def _sample_with_cache(self, part: Part) -> Float[Array, "one f h w z"]:
        """Latents of a whole scene made shot by shot; keys and values of finished shots are computed once."""
        condition = self._condition(self.scene.prompts, ())
        noise = jnp.concatenate([self._noise(number) for number in part.made], axis=1)
        scales = jnp.asarray(self.rule.weights, jnp.float32)
        steps = samplers.SAMPLERS[self.settings.sampler](self.settings.steps, self.settings.shift)
        given = (noise, samplers.Steps(*(np.float32(column) for column in steps)), condition, scales)
        function, key = self._bound(shot_by_shot, len(part.made))
        weights = {"transformer": self.pipeline.weights["transformer"]}
        key = (*key, self.settings.steps)
        program = self.pipeline.program("transformer", key, function, weights, given, self.report)
        self.report("sampling", 0, 1)
        x = jax.block_until_ready(program(weights, *given))
        self.report("sampling", 1, 1)
        return x
