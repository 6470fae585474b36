"""A model with its compiled programs: text and references are encoded, the flow is integrated, latents are decoded.

The method of the model says how tokens are laid out and how branches are guided; all branches go in one batch. Ragged
references share one program: absent ones are empty slots of the bucket that nothing reads.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from kaleido_jax.bundle import Bundle, BundleConfig, load_bundle, load_config, parameters
from kaleido_jax.diffusion import samplers
from kaleido_jax.errors import UsageError
from kaleido_jax.layout import Grid, TokenLayout
from kaleido_jax.media.references import to_model_range
from kaleido_jax.methods import lct, registry
from kaleido_jax.methods.differential import primary_first
from kaleido_jax.methods.method import EMPTY_BYTE, Condition
from kaleido_jax.parallel import MeshConfig, batch_shardings, place, shardings
from kaleido_jax.pipeline import models
from kaleido_jax.pipeline.compile_cache import use_compile_cache
from kaleido_jax.pipeline.loras import LoraFile
from kaleido_jax.pipeline.programs import (
    decode_latents,
    encode_pixels,
    encode_text,
    keep_references,
    reconstruct,
    sampler_step,
    shot_by_shot,
)
from kaleido_jax.pipeline.references import Picture, Reference, read_references
from kaleido_jax.pipeline.request import Settings, check_prompt, check_reference_count
from kaleido_jax.porting import lora
from kaleido_jax.typing import Array, Float, Params, UInt8

# progress(what, done, total): called before a stage begins (done = 0) and after each of its parts.
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """A video with everything that it was made from.

    video: uint8 frames. config, folder: the model's (folder is None for one that was never on disk). reconstructions:
    the references as the model paints them again, for a method that does (contextanyone).
    """

    video: UInt8[np.ndarray, "f h w 3"]
    prompt: str
    references: tuple[Reference, ...]
    settings: Settings
    config: BundleConfig
    folder: Path | None
    loras: tuple[LoraFile, ...] = ()
    reconstructions: tuple[UInt8[np.ndarray, "_ h w 3"], ...] = ()

    def save(self, path: str | Path, *, overwrite: bool = False) -> dict[str, Path]:
        """Writes the video (.mp4), a contact sheet (.sheet.png) and a record (.json) beside each other.

        Returns the three paths by name: "video", "sheet", "record".

        Raises:
          UsageError: the name does not end in .mp4, or something is there already and `overwrite` is False.
          StorageError: they cannot be written; nothing partial is left.
        """
        from kaleido_jax.pipeline.outputs import Outputs

        outputs = Outputs.of(path)
        outputs.check(self, overwrite=overwrite)
        outputs.write(self)
        return outputs.paths


class Pipeline:
    """A model ready to make videos. `Pipeline.load()` gives the one that comes with the package.

    Programs are compiled when a size, a length or a number of references is first asked for, and kept.
    """

    def __init__(self, bundle: Bundle, folder: Path | None = None):
        self.config, self.folder, self._tokenizer = bundle.config, folder, bundle.tokenizer
        self._method = registry.create(bundle.config.method, bundle.config.scheme, bundle.config.options)
        modules = {"transformer": bundle.transformer, "vae": bundle.vae, "text": bundle.text}
        self._graphs = {name: nnx.split(module)[0] for name, module in modules.items()}
        self._weights = {name: parameters(module) for name, module in modules.items()}
        self._loras: tuple[LoraFile, ...] = ()
        self._mesh, self._ulysses = None, None
        self._compiled: dict[Hashable, Any] = {}

    @classmethod
    def load(
        cls,
        model: str | Path = models.DEFAULT,
        *,
        loras: Sequence[str | Path | LoraFile] = (),
        compile_cache: bool = True,
    ) -> "Pipeline":
        """A model by name or by the path of its folder.

        Args:
          model: "miniature", which comes with the package, or a folder that `kaleido train --export` wrote.
          loras: LoRA files of the transformer, which are added to its weights: "FILE", "FILE:STRENGTH" or a `LoraFile`.
          compile_cache: keep compiled programs in the user's cache folder (JAX_COMPILATION_CACHE_DIR names another).

        Raises:
          UsageError: there is no such model (says the nearest name) or LoRA. InputError: its files are not whole, or a
            LoRA holds anything that cannot be added.
        """
        folder = models.find(model)
        if compile_cache:
            use_compile_cache()
        files = tuple(LoraFile.of(given) for given in loras)
        sizes = load_config(folder).transformer
        changes = [(lora.read(file.path, sizes), file.strength) for file in files]
        pipeline = cls(load_bundle(folder), folder)
        pipeline._loras = files
        pipeline._weights["transformer"] = lora.merge(pipeline._weights["transformer"], changes, donate=True)
        return pipeline

    def __call__(
        self,
        *,
        references: Sequence[Picture | Sequence[Picture]],
        prompt: str,
        settings: Settings | None = None,
        progress: Progress | None = None,
        primary: int = 1,
        **fields: Any,
    ) -> Generation:
        """Makes one video.

        Args:
          references: one entry a subject: a path, a Pillow picture or a uint8 array [h, w, 3], or a list of several
            pictures of that subject. A path may be a clip.
          prompt: what happens in the video; of a scene of shots (lct), "SCENE || SHOT || SHOT".
          settings: size, seed and so on; the fields of `Settings` may also be given by name (seed=3, steps=20).
          progress: called with the stage, and how much of it is done.
          primary: number, from 1, of the subject that comes first: AnyID's primary reference.

        Raises:
          InputError: a picture or the prompt cannot be used. UsageError: a setting cannot.
        """
        settings = dataclasses.replace(settings or Settings(), **fields).resolved(self.config)
        prompt = check_prompt(prompt)
        pictures = read_references(
            references if primary == 1 else primary_first(references, primary),
            height=settings.height,
            width=settings.width,
            frames=settings.frames,
            frames_per_second=self.config.defaults.frames_per_second,
        )
        return self.generate(pictures, prompt, settings, progress)

    def generate(
        self, references: Sequence[Reference], prompt: str, settings: Settings, progress: Progress | None = None
    ) -> Generation:
        """Like a call, from checked parts: prompt, resolved settings, and references that were read for them."""
        scene = self._method.data == "scene"
        if not scene:
            check_reference_count(len(references), self.config.defaults.references)
        self._method.check_references(len(references))
        report = progress or (lambda what, done, total: None)
        defaults = self.config.defaults
        prompts = lct.scene_prompts(prompt) if scene else (prompt,)
        shots = len(prompts) - 1 if scene else 1
        bucket = self._layout(settings, references, len(prompts))
        rule = self._method.guidance(settings.guidance)
        texts = [prompts if branch.text == "prompt" else ("",) * len(prompts) for branch in rule.branches]
        ids, lengths = self._tokenizer.encode([text for row in texts for text in row], defaults.text_tokens)

        run = functools.partial(self._run, report=report)
        words = run("text encoder", encode_text, {"text": self._weights["text"]}, (ids, lengths))
        vae = self.config.vae
        latents = [] if scene else self._encode(references, settings, run)
        rows = [latents] * len(texts)
        if any(branch.references != "kept" for branch in rule.branches):
            empty = [dataclasses.replace(r, pixels=np.full_like(r.pixels, EMPTY_BYTE)) for r in references]
            nothing = self._encode(empty, settings, run)
            rows = [latents if branch.references == "kept" else nothing for branch in rule.branches]
        absent = [0] * (len(latents) - len(references))
        subjects = [reference.subject for reference in references] + absent
        present = [vae.latent_frames(len(reference.pixels)) for reference in references] + absent
        condition = Condition(
            text=words.reshape(len(texts), -1, words.shape[2]),
            text_lengths=jnp.asarray(lengths).reshape(len(texts), -1),
            references=[jnp.concatenate(pieces) for pieces in zip(*rows)],
            reference_frames=jnp.asarray([present] * len(texts), jnp.int32).reshape(len(texts), -1),
            subjects=jnp.asarray([subjects] * len(texts), jnp.int32).reshape(len(texts), -1),
        )
        condition = self._on_mesh(condition)
        scales = jnp.asarray(rule.weights, jnp.float32)
        shape = (
            1,
            shots * vae.latent_frames(settings.frames),
            settings.height // vae.spatial_factor,
            settings.width // vae.spatial_factor,
            self.config.transformer.out_channels,
        )
        state = samplers.start(jax.random.normal(jax.random.key(settings.seed), shape, jnp.float32))
        if self._mesh is not None:
            state = jax.device_put(state, NamedSharding(self._mesh, PartitionSpec()))
        table = samplers.SAMPLERS[settings.sampler](settings.steps, settings.shift)
        steps = [samplers.Steps(*(np.float32(column[index]) for column in table)) for index in range(settings.steps)]
        fixed = {"method": self._method, "layout": bucket, "patch": self.config.transformer.patch}
        function = functools.partial(sampler_step, branches=rule.branches, ulysses=self._ulysses, **fixed)
        weights = {"transformer": self._weights["transformer"]}
        kept = None
        if self._method.pinned and self._mesh is None:  # a cache is kept by one device, and saves time, nothing else
            keep = functools.partial(keep_references, **fixed)
            key = ("keep_references", len(texts), bucket)
            kept = self._program("references", key, keep, weights, (condition,), report)(weights, condition)
        if isinstance(self._method, lct.LCT) and self._method.attention == "causal" and self._mesh is None:
            given = (state.x, samplers.Steps(*(np.float32(column) for column in table)), condition, scales)
            key = ("shot_by_shot", rule.branches, bucket, settings.steps)
            function = functools.partial(shot_by_shot, branches=rule.branches, **fixed)
            program = self._program("transformer", key, function, weights, given, report)
            report("sampling", 0, 1)
            x = jax.block_until_ready(program(weights, *given))
            report("sampling", 1, 1)
        else:
            key = ("sampler_step", rule.branches, bucket)
            program = self._program(
                "transformer", key, function, weights, (state, steps[0], condition, scales, kept), report
            )
            report("sampling", 0, settings.steps)
            for index, row in enumerate(steps):
                state = jax.block_until_ready(program(weights, state, row, condition, scales, kept))
                report("sampling", index + 1, settings.steps)
            x = state.x
        painted = []
        if self._method.reconstructs:
            key = ("reconstruct", len(texts), bucket)
            again = self._program(
                "reconstruction", key, functools.partial(reconstruct, **fixed), weights, (condition,), report
            )(weights, condition)
            row = next(i for i, branch in enumerate(rule.branches) if branch.text == "prompt")
            for latent in again[: len(references)]:
                painted.append(run("decoder", decode_latents, {"vae": self._weights["vae"]}, (latent[row : row + 1],)))
        pieces = jnp.split(x, shots, axis=1)
        pixels = [run("decoder", decode_latents, {"vae": self._weights["vae"]}, (piece,)) for piece in pieces]
        return Generation(
            video=np.concatenate([np.asarray(piece)[0] for piece in pixels]),
            prompt=prompt,
            references=tuple(references),
            settings=settings,
            config=self.config,
            folder=self.folder,
            loras=self._loras,
            reconstructions=tuple(np.asarray(pixels)[0] for pixels in painted),
        )

    def spread(self, mesh: MeshConfig) -> None:
        """Lays the transformer and the text encoder over devices; videos are made on all of them from here on.

        Branches of the guidance are divided by data and fsdp, tokens by sequence, weights by fsdp and tensor. The VAE
        stays on the first device.

        Raises:
          UsageError: the mesh does not divide the devices or the heads.
        """
        made, heads = mesh.make(), self.config.transformer.heads
        if heads % made.shape["tensor"]:
            raise UsageError(f"The mesh has tensor={made.shape['tensor']}; it must divide the {heads} heads.")
        for name in ("transformer", "text"):
            self._weights[name] = place(self._weights[name], shardings(self._weights[name], made))
        self._mesh, self._ulysses, self._compiled = made, mesh.ulysses, {}

    def _on_mesh(self, tree: Any) -> Any:
        """Arrays with a row for each branch, where the mesh wants them."""
        return tree if self._mesh is None else place(tree, batch_shardings(tree, self._mesh))

    @property
    def compiled(self) -> int:
        """How many programs were compiled so far."""
        return len(self._compiled)

    def _layout(self, settings: Settings, references: Sequence[Reference], prompts: int) -> TokenLayout:
        """The bucket: the references' own slots, then empty ones up to as many as the model was trained with."""
        pt, ph, pw = self.config.transformer.patch
        vae = self.config.vae
        height, width = settings.height // vae.spatial_factor // ph, settings.width // vae.spatial_factor // pw
        grid: Callable[[int], Grid] = lambda frames: (vae.latent_frames(frames) // pt, height, width)
        texts = (self.config.defaults.text_tokens,) * prompts
        frames, *size = grid(settings.frames)
        if self._method.data == "scene":
            return self._method.layout(((prompts - 1) * frames, *size), [], texts=texts)
        slots = [grid(len(reference.pixels)) for reference in references]
        slots += [grid(1)] * (self.config.defaults.references - len(slots))
        return self._method.layout((frames, *size), slots, texts=texts)

    def _encode(
        self, references: Sequence[Reference], settings: Settings, run: Callable[..., Any]
    ) -> list[Float[Array, "1 f h w z"]]:
        """Latents of each slot, every reference encoded alone; pictures go through the encoder as one batch."""
        slots = max(len(references), self.config.defaults.references)
        weights = {"vae": self._weights["vae"]}
        stills = np.full((slots, 1, settings.height, settings.width, 3), 255, np.uint8)
        for index, reference in enumerate(references):
            stills[index] = reference.pixels[:1]
        latents = jnp.split(run("picture encoder", encode_pixels, weights, (to_model_range(stills),)), slots)
        for index, reference in enumerate(references):
            if len(reference.pixels) > 1:
                clip = to_model_range(reference.pixels[None])
                latents[index] = run("clip encoder", encode_pixels, weights, (clip,))
        return latents

    def _run(
        self, what: str, function: Callable, weights: Mapping[str, Params], arguments: tuple, *, report: Progress
    ) -> Any:
        if self._mesh is not None and "vae" in weights:
            arguments = jax.device_get(arguments)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments))
        program = self._program(what, (function.__name__, shapes), function, weights, arguments, report)
        return jax.block_until_ready(program(weights, *arguments))

    def _program(
        self, what: str, key: Hashable, function: Callable, weights: Any, arguments: tuple, report: Progress
    ) -> Any:
        """The compiled function of (weights, *arguments), the networks' graphs bound."""
        if key not in self._compiled:
            report(f"compiling the {what}", 0, 1)
            bound = functools.partial(function, graphs=self._graphs)
            if self._mesh is None or "vae" in weights:
                self._compiled[key] = jax.jit(bound).lower(weights, *arguments).compile()
            else:
                everywhere = NamedSharding(self._mesh, PartitionSpec())
                with jax.set_mesh(self._mesh):
                    self._compiled[key] = jax.jit(bound, out_shardings=everywhere).lower(weights, *arguments).compile()
            report(f"compiling the {what}", 1, 1)
        return self._compiled[key]
