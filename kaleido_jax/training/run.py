"""One experiment in one work directory: networks, programs, checkpoints, latent caches, and the exported model."""

import copy
import dataclasses
import functools
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from kaleido_jax.bundle import Bundle, BundleConfig, Defaults, abstract, merge, parameters, save_bundle
from kaleido_jax.config import to_json
from kaleido_jax.data.encoded import EncodedData
from kaleido_jax.data.latents import LatentCache, write_cache
from kaleido_jax.data.pairing import paired
from kaleido_jax.data.perturbations import augmented
from kaleido_jax.data.world import Sample
from kaleido_jax.errors import InputError, StorageError, UsageError
from kaleido_jax.methods.method import EMPTY_BYTE
from kaleido_jax.methods.registry import create as create_method
from kaleido_jax.models.text import Tokenizer, UMT5Encoder
from kaleido_jax.models.vae import WanVAE
from kaleido_jax.models.wan import WanTransformer
from kaleido_jax.parallel import place, processes, shardings
from kaleido_jax.porting.lora import Lora
from kaleido_jax.porting.lora import merge as merge_loras
from kaleido_jax.preference.files import read_preferences
from kaleido_jax.training import low_rank
from kaleido_jax.training.checkpoint import Checkpoints
from kaleido_jax.training.experiment import Experiment, changed_fields
from kaleido_jax.training.frozen import digest, first_weights, load_text, on_host
from kaleido_jax.training.groups import GroupSource, SceneSource
from kaleido_jax.training.image_encoder import ImageEncoder
from kaleido_jax.training.metrics import Rate, duration, report
from kaleido_jax.training.pairs import PairSource
from kaleido_jax.training.programs import Programs
from kaleido_jax.training.sources import CachedSource, PackedSource, Source, WorldSource, padded
from kaleido_jax.training.state import Batch, Parameters, TrainState, create, joined
from kaleido_jax.training.step import Networks

CLIPS = 16  # encoded at a time when a cache is written


class Run:
    """One experiment in one work directory: everything that is made once, before the first step."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: str | Path,
        *,
        world: Any,
        vae: WanVAE,
        tokenizer: Tokenizer | None,
        shard_size: int = 128,
    ) -> None:
        encoded = experiment.data.source == "encoded"
        if experiment.data.text_embeddings and not encoded:
            raise UsageError(
                "data.text_embeddings is True, but the world's prompts are token ids; write them with `kaleido data "
                "encode` and train with data.source=encoded"
            )
        if not encoded and tokenizer.vocab_size > experiment.text.vocab_size:
            raise UsageError(
                f"text.vocab_size is {experiment.text.vocab_size}; the world's words need {tokenizer.vocab_size}"
            )
        self.experiment = experiment
        self.workdir = Path(workdir).absolute()
        self.world, self.vae, self.tokenizer, self._shard_size = world, vae, tokenizer, shard_size
        self.method = create_method(experiment.method, experiment.scheme, experiment.options)
        if self.method.needs_mmdit:
            raise UsageError(
                f"{experiment.method} is to read prompts in the sequence; `kaleido train` trains Wan's transformer, "
                "which reads them by cross-attention. Leave prompts_in out."
            )
        if encoded and self.method.data != "pictures":
            raise UsageError(f"data.source is encoded; {experiment.method} trains on a {self.method.data} of the world")
        if experiment.data.perturbed and (encoded or self.method.data != "pictures"):
            raise UsageError(
                f"data.perturbed is {experiment.data.perturbed}; only pictures of the world are drawn with faults, not "
                f"{'encoded data' if encoded else f'the {self.method.data} that {experiment.method} trains on'}"
            )
        needed = self.method.in_channels(vae.config.z_dim, experiment.data.references)
        if experiment.transformer.in_channels != needed:
            raise UsageError(
                f"transformer.in_channels is {experiment.transformer.in_channels}; {experiment.method} with latents of "
                f"{vae.config.z_dim} channels and {experiment.data.references} reference slots needs {needed}"
            )
        self.image_encoder = ImageEncoder.load(experiment.image_encoder) if experiment.image_encoder else None
        read = vae.config.z_dim * experiment.transformer.patch[1] * experiment.transformer.patch[2]
        what = "without an image encoder, it reads patches of the references' latents"
        if self.image_encoder is not None:
            read, what = self.image_encoder.module.config.dim, f"of {experiment.image_encoder} it reads tokens"
        if experiment.transformer.image_dim != read and (self.image_encoder or experiment.transformer.image_dim):
            raise UsageError(
                f"transformer.image_dim is {experiment.transformer.image_dim}; {what}, so it must be {read}"
            )
        networks = functools.partial(_networks, experiment)
        modules = nnx.eval_shape(networks)
        graphs = {name: nnx.split(module)[0] for name, module in modules.items()}
        if experiment.lora.rank:
            base = low_rank.base(modules["transformer"], experiment.lora)
            graphs["untuned"] = nnx.split(base)[0]
            graphs["transformer"] = nnx.split(low_rank.attach(base, experiment.lora))[0]
        if self.method.decodes:
            graphs["vae"] = nnx.split(vae)[0]
        self.networks = Networks(**graphs)
        self.programs = Programs(experiment, self.method, self.networks, vae)
        self.initial, self.programs.frozen = _initial(experiment, networks, self.programs.mesh)
        if self.method.decodes:
            decoder, mesh = {"vae": parameters(vae)}, self.programs.mesh
            self.programs.frozen |= decoder if mesh is None else place(decoder, shardings(decoder, mesh))
        self.checkpoints = _checkpoints(experiment, self.workdir)

    def with_experiment(self, experiment: Experiment, workdir: str | Path | None = None) -> "Run":
        """Another run of the same networks, with this one's compiled programs; what shapes the step must be equal."""
        run = copy.copy(self)
        run.experiment = experiment
        run.workdir = Path(workdir).absolute() if workdir else self.workdir
        run.checkpoints = _checkpoints(experiment, run.workdir)
        return run

    def restore(self) -> tuple[TrainState, float]:
        """The newest state that verifies and the seconds trained so far, or the initial state and 0."""
        # Copies, because the step donates its state, and what was read may share memory with the reader; put in their
        # places, because a program for arrays without a fixed place is another one, which a restart would compile.
        own = lambda state: jax.tree.map(lambda leaf: jax.device_put(jnp.copy(leaf), leaf.sharding), state)
        restored = self.checkpoints.restore(self.initial)
        if restored is None:
            return own(self.initial), 0.0
        step, state, metadata = restored
        changed = changed_fields(metadata["experiment"], self.experiment)
        if changed:
            raise UsageError(
                f"the run in {self.workdir} was begun with {' '.join(changed)}; go on with that, or take another "
                "work directory"
            )
        report(f"continuing from step {step}")
        return own(state), float(metadata["seconds"])

    def save(self, state: TrainState, seconds: float, *, wait: bool = True) -> None:
        """Write a checkpoint; with `wait` it is on the disk afterwards, otherwise it is written while the run goes on.

        After one that could not be written, the state is written `checkpoint.retries` times more, waited for each time.
        """
        versions = {name: importlib.metadata.version(name) for name in ("kaleido-jax", "jax", "orbax-checkpoint")}
        metadata = {"seconds": seconds, "experiment": to_json(self.experiment), "versions": versions}
        for pause in (*[10 * 3**number for number in range(self.experiment.checkpoint.retries)], None):
            try:
                self.checkpoints.begin(int(state.step), state, metadata)
                if wait:
                    self.checkpoints.finish()
                return
            except StorageError as error:
                if pause is None:
                    raise
                report(f"{error}; trying again in {pause} s")
                time.sleep(pause)
                wait = True

    def lora(self, state: TrainState) -> Lora:
        """The averaged low-rank changes of a run that trains a LoRA."""
        experiment = self.experiment
        average = on_hosts(state.average)
        return low_rank.to_lora(experiment.transformer, experiment.lora, average["transformer"])

    def export(self, state: TrainState, folder: str | Path, *, dtype: str = "float16") -> None:
        """Write the averaged weights as a model folder; those of a LoRA are added to the weights that it changes."""
        weights = on_hosts(joined(self.programs.frozen, state.average))
        graph = self.networks.transformer
        experiment, data, sampling = self.experiment, self.experiment.data, self.experiment.sampling
        if experiment.lora.rank:
            graph, _ = abstract(lambda: WanTransformer(experiment.transformer, nnx.Rngs(0)))
            before = low_rank.unrounded(on_hosts(self.programs.frozen)["transformer"])
            weights["transformer"] = merge_loras(before, [(self.lora(state), 1.0)])
        frozen = load_text(experiment, on_host()) if data.source == "encoded" else None
        config = BundleConfig(
            name=experiment.name,
            method=experiment.method,
            scheme=self.method.scheme,
            options=experiment.options,
            transformer=dataclasses.replace(experiment.transformer, dtype="float32"),
            vae=self.vae.config,
            text=experiment.text,
            vision=self.image_encoder.module.config if self.image_encoder else None,
            defaults=Defaults(
                height=data.picture[0],
                width=data.picture[1],
                frames=data.frames,
                frames_per_second=sampling.frames_per_second,
                references=data.references,
                text_tokens=data.text_tokens,
                steps=sampling.steps,
                guidance=sampling.guidance,
                shift=sampling.shift,
            ),
        )
        bundle = Bundle(
            config=config,
            transformer=merge(graph, weights["transformer"]),
            text=merge(self.networks.text, weights["text"]) if frozen is None else frozen[0],
            vae=self.vae,
            tokenizer=self.tokenizer if frozen is None else frozen[1],
            vision=self.image_encoder.module if self.image_encoder else None,
        )
        processes.everywhere(lambda: save_bundle(folder, bundle, dtype=dtype), only_first=True)

    def write_caches(self, stopped: Callable[[], bool]) -> None:
        """Encode what the latent cache lacks; continues where it was stopped."""
        data = self.experiment.data
        if self.method.data != "pictures" or data.source == "encoded":  # rendered for every batch, or done before
            return
        for split, samples in (("heldout", data.heldout), ("train", data.samples if data.source == "latents" else 0)):
            shards = Rate()
            began = time.monotonic()

            def progress(done: int, total: int, split: str = split, shards: Rate = shards) -> None:
                nonlocal began
                shards.add(time.monotonic() - began)
                began = time.monotonic()
                left = max(total - done, 0) / self._shard_size / shards.steps_per_second
                report(f"encoded {min(done, total)} of {total} {split} samples, {duration(left)} left")

            write_cache(
                self.cache_folder(split),
                samples=samples,
                render=self._render(split),
                encode_videos=self._encode,
                encode_pictures=lambda pictures: self._encode(pictures[:, None])[:, 0],
                fingerprint=self.fingerprint(),
                slots=data.references,
                shard_size=self._shard_size,
                progress=progress,
                stop=stopped,
            )

    def _render(self, split: str) -> Callable[[int], Sample]:
        """The world's sample of a seed; what is held out has whole cross pairs alone, which are the task itself."""
        data, train = self.experiment.data, split == "train"
        share, faults = (data.cross_pairs, data.perturbed) if train else (1.0, 0.0)

        def render(seed: int) -> Sample:
            sample = paired(self.world.sample(seed, split=split), seed, share)
            return augmented(self.world, sample, seed, faults, split) if faults else sample

        return render

    def cache_folder(self, split: str) -> Path:
        folder = self.experiment.data.folder
        return (Path(folder) if folder else self.workdir / "latents") / split

    def fingerprint(self) -> str:
        """Changes with the VAE's weights and with what is rendered."""
        data = self.experiment.data
        total = sum(float(jnp.sum(jnp.abs(leaf))) for leaf in parameters(self.vae).values())
        world = f"world {data.picture[0]} x {data.picture[1]} x {data.frames}"
        world += f", cross pairs {data.cross_pairs:g}" if data.cross_pairs < 1 else ""
        world += f", perturbed {data.perturbed:g}" if data.perturbed else ""
        return f"{world}, vae {total:.6e}"

    def _encode(self, clips: np.ndarray) -> np.ndarray:
        """Latents of uint8 clips [n, f, h, w, 3], some at a time; the last ones are padded to the same program."""
        pieces = []
        for start in range(0, len(clips), CLIPS):
            piece = clips[start : start + CLIPS]
            padded = np.zeros((CLIPS, *clips.shape[1:]), np.uint8)
            padded[: len(piece)] = piece
            pieces.append(np.asarray(self.programs.encode(padded))[: len(piece)])
        return np.concatenate(pieces)

    def source(self, split: str) -> Source:
        experiment, data = self.experiment, self.experiment.data
        if split == "train" and experiment.preference.pairs:
            if self.tokenizer is None:
                raise UsageError(
                    "data.source is encoded; prompts of preference pairs are read by the run's own encoder"
                )
            pairs = read_preferences(experiment.preference.pairs)
            clip = self.vae.config.latent_frames(data.reference_frames)
            return PairSource(pairs, self.tokenizer, data, experiment.train.batch, experiment.seed, clip)
        factor = self.vae.config.spatial_factor
        grid = (self.vae.config.latent_frames(data.frames), *(side // factor for side in data.picture))
        if self.method.data != "pictures":
            self.vae.config.latent_frames(data.reference_frames)  # raises for a clip that it cannot encode
            if split == "heldout":
                data = dataclasses.replace(data, text_dropout=0.0)
            common = {
                "world": self.world,
                "split": split,
                "tokenizer": self.tokenizer,
                "config": data,
                "size": experiment.train.batch,
                "seed": experiment.seed,
                "grid": grid,
            }
            if self.method.data == "scene":
                return SceneSource(**common)
            return GroupSource(**common, factor=self.vae.config.temporal_factor)
        if split == "heldout":  # all references and every prompt: what is measured is the task itself
            data = dataclasses.replace(data, text_dropout=0.0, reference_subsets=0.0, packed=False)
        if data.source == "encoded":
            size = experiment.train.batch
            if split == "heldout":  # evaluated without gradients and not in parts: one program for all reference counts
                data, size = dataclasses.replace(data, reference_buckets=False), size // experiment.train.accumulate
            return _packed(CachedSource(self._encoded(split), None, data, size, experiment.seed))
        if split == "heldout" or data.source == "latents":
            cache = LatentCache(self.cache_folder(split), data.heldout if split == "heldout" else data.samples)
            return _packed(CachedSource(cache, self.tokenizer, data, experiment.train.batch, experiment.seed))
        return WorldSource(self._render(split), self.tokenizer, data, experiment.train.batch, experiment.seed, grid)

    def _encoded(self, split: str) -> EncodedData:
        """A split of an encoded data set, made with this run's VAE and a text encoder of its width."""
        data = EncodedData(self.cache_folder(split), most_bad=self.experiment.data.unreadable)
        provenance, own = data.description["provenance"], digest(self.vae)
        if provenance["vae"] != own:
            raise InputError(f"{data.folder} was encoded with the VAE {provenance['vae']}; the run's is {own}")
        width = data.empty_text.shape[1]
        if width != self.experiment.transformer.text_dim:
            raise InputError(
                f"{data.folder} holds text of {width} channels; transformer.text_dim is "
                f"{self.experiment.transformer.text_dim}"
            )
        return data

    def unconditional(self, batch: Batch) -> Batch:
        """A batch of latents with what guidance leaves out: prompts, and references where the method says so."""
        tokens = self.experiment.data.text_tokens
        if self.tokenizer is None:
            ids, lengths = padded([self._encoded("heldout").empty_text], tokens)
        else:
            ids, lengths = self.tokenizer.encode([""], tokens)
        text = np.broadcast_to(ids, batch.text.shape)
        there = np.asarray(batch.text_lengths) > 0  # a shot without a prompt is absent, and stays so
        empty = dataclasses.replace(batch, text=text, text_lengths=np.where(there, lengths[0], 0).astype(np.int32))
        if all(branch.references == "kept" for branch in self.method.guidance(2.0).branches):
            return empty
        data = self.experiment.data
        count = batch.references.shape[0] * batch.references.shape[1]  # as in `latents`: the same program
        nothing = np.full((count, data.reference_frames, *data.picture, 3), EMPTY_BYTE, np.uint8)
        return dataclasses.replace(empty, references=self.programs.encode(nothing).reshape(batch.references.shape))

    def ready(self, batch: Batch, source: Source) -> Batch:
        """A batch of a source as the networks read it: latents, and the image encoder's tokens if there is one."""
        made = self.latents(batch) if source.pixels else batch
        if self.image_encoder is None:
            return made
        # Of cached latents the pictures are gone; what the decoder makes of them is what is left.
        references = (
            batch.references
            if source.pixels
            else self.programs.decode(batch.references.reshape(-1, 1, *batch.references.shape[-3:]))
        )
        size, slots = made.references.shape[:2]
        pictures = np.asarray(references).reshape(size * slots, -1, *references.shape[-3:])[:, 0]
        tokens = self.image_encoder.tokens(pictures)
        there = np.arange(slots)[None] < np.asarray(batch.reference_counts)[:, None]
        tokens = jnp.where(jnp.asarray(there.reshape(-1, 1, 1)), tokens, 0.0)
        return dataclasses.replace(made, image=tokens.reshape(size, -1, tokens.shape[2]))

    def latents(self, batch: Batch) -> Batch:
        """A batch of pixels as a batch of latents; every reference and every shot is encoded alone."""
        references, video = batch.references, batch.video
        if video.ndim == 6:  # scenes, which have no references
            shots = self.programs.encode(video.reshape(-1, *video.shape[2:]))
            shots = shots.reshape(video.shape[0], -1, *shots.shape[2:])
            none = jnp.zeros((video.shape[0], 0, *shots.shape[2:]), shots.dtype)
            return dataclasses.replace(batch, video=shots, references=none)
        clips = references if references.ndim == 6 else references[:, :, None]
        encoded = self.programs.encode(clips.reshape(-1, *clips.shape[2:]))
        encoded = encoded.reshape(*clips.shape[:2], *encoded.shape[1:])
        return dataclasses.replace(
            batch,
            video=self.programs.encode(video),
            references=encoded if references.ndim == 6 else encoded[:, :, 0],
        )


def _packed(source: CachedSource) -> CachedSource | PackedSource:
    return PackedSource(source) if source.config.packed else source


def _checkpoints(experiment: Experiment, workdir: Path) -> Checkpoints:
    config = experiment.checkpoint
    return Checkpoints(workdir / "checkpoints", keep=config.keep, keep_every=config.keep_every)


def _networks(experiment: Experiment) -> dict[str, Any]:
    """The networks to be trained, with random weights."""
    transformer = WanTransformer(experiment.transformer, nnx.Rngs(experiment.seed))
    if experiment.data.text_embeddings:
        return {"transformer": transformer}
    return {"transformer": transformer, "text": UMT5Encoder(experiment.text, nnx.Rngs(experiment.seed + 1))}


def on_hosts(weights: Parameters) -> Parameters:
    """Weights of which every process has all of each array, one after another, where several processes divide them."""
    if jax.process_count() == 1:
        return weights
    return jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), weights)


def _initial(
    experiment: Experiment, networks: Callable[[], dict[str, Any]], mesh: Mesh | None
) -> tuple[TrainState, Parameters]:
    """The state before the first step, and the parameters that are not trained.

    On a mesh every device makes its own part: no device ever holds all of it.
    """
    start = functools.partial(create, experiment.optimizer)
    if experiment.start_from:
        weights, frozen = first_weights(experiment, mesh), {}
        if experiment.lora.rank:
            kept = low_rank.frozen(experiment.lora, experiment.transformer.dtype, weights["transformer"])
            frozen = weights | {"transformer": kept}
            made = low_rank.factors(experiment.transformer, experiment.lora, experiment.seed)
            weights = {"transformer": made}
        if mesh is None:
            return start(weights), frozen
        weights, frozen = place(weights, shardings(weights, mesh)), place(frozen, shardings(frozen, mesh))
        return jax.jit(start, out_shardings=shardings(jax.eval_shape(start, weights), mesh))(weights), frozen
    make = lambda: start({name: parameters(part) for name, part in networks().items()})
    if mesh is None:
        return make(), {}
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make), mesh))(), {}
