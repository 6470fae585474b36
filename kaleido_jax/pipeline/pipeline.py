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

from kaleido_jax.bundle import Bundle, load_bundle, load_config, parameters
from kaleido_jax.diffusion import guidance, samplers
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.layout import Grid, TokenLayout
from kaleido_jax.media.references import to_model_range
from kaleido_jax.methods import cache, registry
from kaleido_jax.methods.differential import primary_first
from kaleido_jax.methods.method import EMPTY_BYTE, Condition
from kaleido_jax.methods.scene import Scene
from kaleido_jax.parallel import MeshConfig, batch_shardings, place, shardings
from kaleido_jax.pipeline import models
from kaleido_jax.pipeline.compile_cache import use_compile_cache
from kaleido_jax.pipeline.generation import Generation
from kaleido_jax.pipeline.loras import LoraFile
from kaleido_jax.pipeline.programs import (
    decode_divided,
    decode_in_tiles,
    decode_latents,
    encode_image,
    encode_pixels,
    encode_text,
    keep_references,
    reconstruct,
    sampler_step,
)
from kaleido_jax.pipeline.references import Picture, Reference, read_references
from kaleido_jax.pipeline.request import Settings, check_prompt, check_reference_count
from kaleido_jax.pipeline.scene_file import read_scene
from kaleido_jax.pipeline.scenes import SceneMaker
from kaleido_jax.porting import lora
from kaleido_jax.typing import Array, Float, Params, UInt8

ONE_DEVICE = ("vae", "vision")  # networks that stay on the first device of a mesh

# progress(what, done, total): called before a stage begins (done = 0) and after each of its parts.
Progress = Callable[[str, int, int], None]


class Pipeline:
    """A model ready to make videos. `Pipeline.load()` gives the one that comes with the package.

    Programs are compiled when a size, a length or a number of references is first asked for, and kept.
    """

    def __init__(self, bundle: Bundle, folder: Path | None = None):
        self.config, self.folder, self.tokenizer = bundle.config, folder, bundle.tokenizer
        self.method = registry.create(bundle.config.method, bundle.config.scheme, bundle.config.options)
        if bundle.config.experts is not None and (self.method.data == "scene" or self.method.reconstructs):
            raise InputError(f"{bundle.config.name} has two transformers, which {self.method.name} does not know.")
        if self.method.needs_mmdit:
            raise InputError(f"{bundle.config.name} is a Wan, which reads no prompts in its sequence (prompts_in).")
        modules = bundle.networks
        self._graphs = {name: nnx.split(module)[0] for name, module in modules.items()}
        self.weights = {name: parameters(module) for name, module in modules.items()}
        self._loras: tuple[LoraFile, ...] = ()
        self._words: dict[tuple[str, ...], Float[np.ndarray, "b m d"]] = {}  # encoded before their encoder was let go
        self.mesh, self.ulysses = None, None
        self._compiled: dict[Hashable, Any] = {}

    @classmethod
    def load(
        cls,
        model: str | Path = models.DEFAULT,
        *,
        loras: Sequence[str | Path | LoraFile] = (),
        low_noise_loras: Sequence[str | Path | LoraFile] = (),
        mesh: MeshConfig | None = None,
        compile_cache: bool = True,
    ) -> "Pipeline":
        """A model by name or by the path of its folder.

        Args:
          model: "miniature", which comes with the package, or a folder that `kaleido train --export` wrote.
          loras: LoRA files of the transformer, which are added to its weights: "FILE", "FILE:STRENGTH" or a `LoraFile`.
          low_noise_loras: the same of the second transformer, of a model that has one for low noise.
          mesh: the devices that it is laid over, as by `spread`; of the weights a process then reads its own shards.
          compile_cache: keep compiled programs in the user's cache folder (JAX_COMPILATION_CACHE_DIR names another).

        Raises:
          UsageError: there is no such model (says the nearest name) or LoRA. InputError: its files are not whole, or a
            LoRA holds anything that cannot be added.
        """
        folder = models.find(model)
        if compile_cache:
            use_compile_cache()
        files = tuple(LoraFile.of(given) for given in loras)
        files += tuple(LoraFile.of(given, low_noise=True) for given in low_noise_loras)
        config = load_config(folder)
        if config.experts is None and any(file.low_noise for file in files):
            raise UsageError(f"{config.name} has one transformer; give its LoRAs as those of no special noise.")
        changes = [(file.network, lora.read(file.path, config.transformer), file.strength) for file in files]
        pipeline = cls(load_bundle(folder, None if mesh is None else mesh.make()), folder)
        pipeline._loras = files
        if mesh is not None:
            pipeline.spread(mesh)
        for network in {name for name, _, _ in changes}:
            own = [(change, strength) for name, change, strength in changes if name == network]
            pipeline.weights[network] = lora.merge(pipeline.weights[network], own, donate=True)
        return pipeline

    def __call__(
        self,
        *,
        references: Sequence[Picture | Sequence[Picture]] = (),
        prompt: str = "",
        settings: Settings | None = None,
        progress: Progress | None = None,
        primary: int = 1,
        scene: Scene | str | Path | None = None,
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
          scene: instead of references and a prompt: a scene of shots (lct), or the file that describes it.

        Raises:
          InputError: a picture or the prompt cannot be used. UsageError: a setting cannot.
        """
        settings = dataclasses.replace(settings or Settings(), **fields).resolved(self.config)
        if scene is not None:
            if references or prompt:
                raise UsageError("A scene brings its own prompts and references; leave out the others.")
            scene = scene if isinstance(scene, Scene) else read_scene(scene)
            references, prompt = scene.files, " || ".join(scene.prompts)
        prompt = prompt if scene else check_prompt(prompt)
        pictures = read_references(
            references if primary == 1 else primary_first(references, primary),
            height=settings.height,
            width=settings.width,
            frames=settings.frames,
            frames_per_second=self.config.defaults.frames_per_second,
            show=self.method.pictures,
        )
        return self.generate(pictures, prompt, settings, progress, scene)

    def generate(
        self,
        references: Sequence[Reference],
        prompt: str,
        settings: Settings,
        progress: Progress | None = None,
        scene: Scene | None = None,
    ) -> Generation:
        """Like a call, from checked parts: prompt, resolved settings, and references that were read for them."""
        report = progress or (lambda what, done, total: None)
        if scene is not None or self.method.data == "scene":
            return self._scene(references, prompt, settings, report, scene)
        if self.method.pictures == "subjects":
            check_reference_count(len(references), self.config.defaults.references)
        self.method.check_references(len(references))
        defaults = self.config.defaults
        rules = {name: self.method.guidance(scale) for name, scale in self._scales(settings).items()}
        rule = max(rules.values(), key=lambda rule: len(rule.branches))
        texts = self._texts(prompt, rule)
        bucket = self._layout(settings, references, len(texts[0]))
        spoken = tuple(text for row in texts for text in row)
        ids, lengths = self.tokenizer.encode(list(spoken), defaults.text_tokens)

        run = functools.partial(self.run_program, report=report)
        if spoken in self._words:
            words = jnp.asarray(self._words[spoken])
        elif "text" not in self.weights:
            raise UsageError("The text encoder was let go after encode_prompts, and this prompt was not among them.")
        else:
            words = run("text encoder", encode_text, {"text": self.weights["text"]}, (ids, lengths))
        vae = self.config.vae
        latents = self._encode(references, settings, run)
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
            reference_frames=jnp.asarray([present] * len(texts), jnp.int32).reshape(len(texts), len(present)),
            subjects=jnp.asarray([subjects] * len(texts), jnp.int32).reshape(len(texts), len(subjects)),
            image=self._image(references, max(len(latents), len(references)), len(texts), run),
        )
        condition = self.on_mesh(condition)
        # Of each transformer: its weights, and how its branches are weighed, 0 for one that only another has.
        networks = {}
        for name, own in rules.items():
            weighed = dict(zip(own.branches, own.weights))
            row = [weighed.get(branch, 0.0) for branch in rule.branches]
            networks[name] = {"transformer": self.weights[name]}, jnp.asarray(row, jnp.float32)
        weights, scales = networks["transformer"]
        shape = (
            1,
            vae.latent_frames(settings.frames),
            settings.height // vae.spatial_factor,
            settings.width // vae.spatial_factor,
            self.config.transformer.out_channels,
        )
        noise = jax.random.normal(jax.random.key(settings.seed), shape, jnp.float32)
        state = self.everywhere(samplers.start(noise))
        table = samplers.SAMPLERS[settings.sampler](settings.steps, settings.shift)
        steps = [samplers.Steps(*(np.float32(column[index]) for column in table)) for index in range(settings.steps)]
        fixed = {"method": self.method, "layout": bucket, "patch": self.config.transformer.patch}
        function = functools.partial(sampler_step, branches=rule.branches, ulysses=self.ulysses, **fixed)
        kept = None
        # A cache is of one network, and saves time, nothing else.
        how = settings.reference_cache
        if self.method.pinned and self.config.experts is None and how != "none":
            one = cache.shared(self.method, rule.branches)
            keep = functools.partial(keep_references, int8=how == "int8", shared=one, **fixed)
            key = ("keep_references", len(texts), bucket, how)
            over = None if self.mesh is None else cache.places(self.mesh, self.config.transformer.heads)
            program = self.program("references", key, keep, weights, (condition,), report, over)
            kept = program(weights, condition)
            size = f"{cache.size_of(kept) / 1e9:.3g} GB"
            report(f"keeping {size} of the references", 1, 1)
        key = ("sampler_step", rule.branches, bucket, None if kept is None else how)
        program = self.program(
            "transformer", key, function, weights, (state, steps[0], condition, scales, kept), report
        )
        report("sampling", 0, settings.steps)
        for index, row in enumerate(steps):
            weights, scales = networks[self._expert(row.time)]
            state = jax.block_until_ready(program(weights, state, row, condition, scales, kept))
            report("sampling", index + 1, settings.steps)
        painted = []
        if self.method.reconstructs:
            key = ("reconstruct", len(texts), bucket)
            again = self.program(
                "reconstruction", key, functools.partial(reconstruct, **fixed), weights, (condition,), report
            )(weights, condition)
            row = next(i for i, branch in enumerate(rule.branches) if branch.text == "prompt")
            for latent in again[: len(references)]:
                painted.append(self.decode(latent[row : row + 1], settings, report))
        pixels = self.decode(state.x, settings, report)
        return Generation(
            video=pixels[0],
            latents=np.asarray(state.x)[0],
            prompt=prompt,
            references=tuple(references),
            settings=settings,
            config=self.config,
            folder=self.folder,
            loras=self._loras,
            reconstructions=tuple(pixels[0] for pixels in painted),
        )

    def _scene(
        self,
        references: Sequence[Reference],
        prompt: str,
        settings: Settings,
        report: Progress,
        scene: Scene | None,
    ) -> Generation:
        """A scene of shots: as described, or its global prompt and those of its shots in one prompt."""
        if self.method.data != "scene":
            raise UsageError(f"{self.config.name} is a model of {self.method.name}; only lct makes scenes of shots.")
        if scene is None:
            self.method.check_references(len(references))
        asked = scene or Scene.of(self.method.prompts(prompt))
        video = SceneMaker(self, asked, references, settings, report).make()
        return Generation(
            video=video,
            prompt=prompt,
            references=tuple(references),
            settings=settings,
            config=self.config,
            folder=self.folder,
            loras=self._loras,
            scene=scene,
        )

    def _scales(self, settings: Settings) -> dict[str, float]:
        """The scale of the guidance of each transformer: what is asked for, or the two of the model."""
        assert settings.guidance is not None
        scales, experts = {"transformer": settings.guidance}, self.config.experts
        if experts is not None:
            own = settings.guidance == self.config.defaults.guidance
            scales["transformer_2"] = experts.guidance if own else settings.guidance
        return scales

    def _expert(self, time: np.float32) -> str:
        """The transformer that is asked at a time of the flow."""
        experts = self.config.experts
        return "transformer" if experts is None or time >= np.float32(experts.boundary) else "transformer_2"

    def decode(
        self, latents: Float[Array, "b f h w z"], settings: Settings, report: Progress
    ) -> UInt8[np.ndarray, "b _ _ _ 3"]:
        """Frames of latents, as `Settings.decode` says; whole ones are divided over the mesh where it divides them."""
        weights = {"vae": self.weights["vae"]}
        if settings.decode == "tiled":
            return np.asarray(self.run_program("decoder", decode_in_tiles, weights, (latents,), report=report))
        sizes = {} if self.mesh is None else self.mesh.shape
        divides = lambda parts: parts > 1 and any(side % parts == 0 for side in latents.shape[2:4])
        fitting = [name for name, parts in sizes.items() if divides(parts)]
        if not fitting:
            return np.asarray(self.run_program("decoder", decode_latents, weights, (latents,), report=report))
        axis = max(fitting, key=lambda name: sizes[name])
        function = functools.partial(decode_divided, mesh=self.mesh, axis=axis)
        weights, latents = self.everywhere((weights, latents))
        program = self.program("decoder", ("decode_divided", latents.shape), function, weights, (latents,), report)
        return np.asarray(jax.block_until_ready(program(weights, latents)))

    def encode_prompts(self, asked: Sequence[tuple[str, Settings]]) -> None:
        """Encodes the prompts of videos with resolved settings, and lets the text encoder go, which is large.

        From here on only these can be made.
        """
        for prompt, settings in asked:
            rules = [self.method.guidance(scale) for scale in self._scales(settings).values()]
            texts = self._texts(prompt, max(rules, key=lambda rule: len(rule.branches)))
            spoken = tuple(text for row in texts for text in row)
            encoded = self.tokenizer.encode(list(spoken), self.config.defaults.text_tokens)
            weights, silent = {"text": self.weights["text"]}, lambda what, done, total: None
            if spoken not in self._words:
                words = self.run_program("text encoder", encode_text, weights, encoded, report=silent)
                self._words[spoken] = np.asarray(words)
        del self.weights["text"]

    def _texts(self, prompt: str, rule: guidance.Guidance) -> list[tuple[str, ...]]:
        """What each branch of the guidance reads."""
        prompts = self.method.prompts(prompt)
        others = {"negative": self.config.defaults.negative_prompt, "empty": ""}
        return [prompts if b.text == "prompt" else (others[b.text],) * len(prompts) for b in rule.branches]

    def spread(self, mesh: MeshConfig) -> None:
        """Lays the transformer and the text encoder over devices; videos are made on all of them from here on.

        Branches of the guidance are divided by data and fsdp, tokens by sequence, weights by fsdp and tensor. Frames
        that are decoded whole are divided by the axis of most devices that divides them; for the rest the VAE stays on
        the first device.

        Raises:
          UsageError: the mesh does not divide the devices or the heads.
        """
        made, heads = mesh.make(), self.config.transformer.heads
        if heads % made.shape["tensor"]:
            raise UsageError(f"The mesh has tensor={made.shape['tensor']}; it must divide the {heads} heads.")
        for name in {"transformer", "transformer_2", "text"} & self.weights.keys():
            self.weights[name] = place(self.weights[name], shardings(self.weights[name], made))
        self.mesh, self.ulysses, self._compiled = made, mesh.ulysses, {}

    def on_mesh(self, tree: Any) -> Any:
        """Arrays with a row for each branch, where the mesh wants them."""
        return tree if self.mesh is None else place(tree, batch_shardings(tree, self.mesh))

    def everywhere(self, tree: Any) -> Any:
        """Arrays that every device of the mesh has whole, where there is one."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    @property
    def compiled(self) -> int:
        """How many programs were compiled so far."""
        return len(self._compiled)

    def _layout(self, settings: Settings, references: Sequence[Reference], prompts: int) -> TokenLayout:
        """The bucket: the references' own slots, then empty ones up to as many as the model was trained with.

        Pictures that are frames of the video have no empty slots.
        """
        pt, ph, pw = self.config.transformer.patch
        vae = self.config.vae
        height, width = settings.height // vae.spatial_factor // ph, settings.width // vae.spatial_factor // pw
        grid: Callable[[int], Grid] = lambda frames: (vae.latent_frames(frames) // pt, height, width)
        texts = (self.config.defaults.text_tokens,) * prompts
        slots = [grid(len(reference.pixels)) for reference in references]
        if self.method.pictures == "subjects":
            slots += [grid(1)] * (self.config.defaults.references - len(slots))
        return self.method.layout(grid(settings.frames), slots, texts=texts)

    def encode_references(self, references: Sequence[Reference], settings: Settings) -> list[Float[Array, "1 _ _ _ z"]]:
        """Latents of each reference, encoded alone."""
        run = functools.partial(self.run_program, report=lambda what, done, total: None)
        return self._encode(references, settings, run)[: len(references)]

    def _image(
        self, references: Sequence[Reference], slots: int, rows: int, run: Callable[..., Any]
    ) -> Float[Array, "rows p e"] | None:
        """The image encoder's tokens of the references' first frames, zero for empty slots, once for each branch."""
        if self.config.vision is None:
            return None
        stills = np.zeros((slots, *references[0].pixels.shape[1:]), np.uint8)
        stills[: len(references)] = [reference.pixels[0] for reference in references]
        there = jnp.arange(slots, dtype=jnp.int32) < len(references)
        weights = {"vision": self.weights["vision"]}
        tokens = run("image encoder", encode_image, weights, (to_model_range(stills), there))
        tokens = tokens.reshape(1, -1, tokens.shape[2])
        return jnp.broadcast_to(tokens, (rows, *tokens.shape[1:]))

    def _encode(
        self, references: Sequence[Reference], settings: Settings, run: Callable[..., Any]
    ) -> list[Float[Array, "1 f h w z"]]:
        """Latents of each slot, every reference encoded alone; pictures go through the encoder as one batch.

        Frames of the video are one clip instead, as the method has it.
        """
        if self.method.pictures == "frames":
            pictures = [jnp.asarray(to_model_range(reference.pixels[:1])) for reference in references]
            clips = [self.method.given_clip(pictures, settings.frames)] if pictures else []
            return [run("clip encoder", encode_pixels, {"vae": self.weights["vae"]}, (clip,)) for clip in clips]
        slots = max(len(references), self.config.defaults.references)
        weights = {"vae": self.weights["vae"]}
        stills = np.full((slots, 1, settings.height, settings.width, 3), 255, np.uint8)
        for index, reference in enumerate(references):
            stills[index] = reference.pixels[:1]
        latents = jnp.split(run("picture encoder", encode_pixels, weights, (to_model_range(stills),)), slots)
        for index, reference in enumerate(references):
            if len(reference.pixels) > 1:
                clip = to_model_range(reference.pixels[None])
                latents[index] = run("clip encoder", encode_pixels, weights, (clip,))
        return latents

    def run_program(
        self, what: str, function: Callable, weights: Mapping[str, Params], arguments: tuple, *, report: Progress
    ) -> Any:
        """The result of a function of (weights, *arguments), compiled for their shapes."""
        if self.mesh is not None and not weights.keys().isdisjoint(ONE_DEVICE):
            arguments = jax.device_get(arguments)
        shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(arguments))
        program = self.program(what, (function.__name__, shapes), function, weights, arguments, report)
        return jax.block_until_ready(program(weights, *arguments))

    def program(
        self,
        what: str,
        key: Hashable,
        function: Callable,
        weights: Any,
        arguments: tuple,
        report: Progress,
        out: PartitionSpec | None = None,
    ) -> Any:
        """The compiled function of (weights, *arguments), the networks' graphs bound.

        out: where a mesh has its results; None: whole on every device.
        """
        if key not in self._compiled:
            report(f"compiling the {what}", 0, 1)
            bound = functools.partial(function, graphs=self._graphs)
            if self.mesh is None or not weights.keys().isdisjoint(ONE_DEVICE):
                self._compiled[key] = jax.jit(bound).lower(weights, *arguments).compile()
            else:
                places = NamedSharding(self.mesh, out or PartitionSpec())
                with jax.set_mesh(self.mesh):
                    self._compiled[key] = jax.jit(bound, out_shardings=places).lower(weights, *arguments).compile()
            report(f"compiling the {what}", 1, 1)
        return self._compiled[key]
