"""`kaleido generate`: reference pictures and a prompt in, a video out."""

import argparse
import contextlib
import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaleido_jax.cli.describe import add_describer
from kaleido_jax.cli.parts import part
from kaleido_jax.errors import ExitCode, InputError, KaleidoError, UsageError, printable

# Nothing heavy here: `kaleido generate --help` imports this module.
if TYPE_CHECKING:
    from kaleido_jax.bundle import BundleConfig
    from kaleido_jax.cli.jobs import Job
    from kaleido_jax.parallel import MeshConfig
    from kaleido_jax.pipeline.loras import LoraFile
    from kaleido_jax.pipeline.references import Reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kaleido generate`."""
    parser.description = (
        "Makes a video of the subjects in the reference pictures that does what the prompt says. Beside OUT.mp4 it "
        "writes OUT.sheet.png (references and frames on one sheet) and OUT.json (all that is needed to make it again). "
        "A video that is there already, made by the same request, is left as it is."
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="FILE[,FILE...]",
        help="a subject: a PNG, JPEG or WebP picture (or an MP4 or WebM clip), or several of the same subject, "
        "separated by commas; repeat it for each subject",
    )
    parser.add_argument(
        "--primary",
        type=_number,
        default=1,
        metavar="N",
        help="which of the references is the one that the prompt is relative to, counted from 1 (anyid; default: 1)",
    )
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help='what happens in the video; for a scene of shots (lct) "SCENE || SHOT || SHOT", without references',
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="many videos: a file of lines PROMPT@@PICTURE@@PICTURE..., or of JSON objects with the fields prompt, "
        "references, out, size, frames, seed, steps, guidance, shift, sampler",
    )
    parser.add_argument(
        "--scene",
        type=Path,
        metavar="FILE",
        help="a scene of shots (lct): a YAML or JSON file with its prompt and its shots, see docs/methods.md",
    )
    parser.add_argument(
        "--sampling",
        metavar="WAY",
        help="how the shots of --scene are made: joint, conditioned (around those that are given) or autoregressive "
        "(one after the other); default: what the file says",
    )
    parser.add_argument(
        "--group",
        type=Path,
        metavar="FILE",
        help="pictures of the same characters with FLUX.1 (characonsist): a file of lines "
        "BACKGROUND#CHARACTER#WHAT IT DOES, the identity picture first, an empty line between groups; --reference "
        "PICTURE then is the identity picture",
    )
    parser.add_argument("--setting", metavar="NAME", help="of characonsist: released (default) or paper")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a constant of characonsist, such as keep_background=True; repeat it for several",
    )
    parser.add_argument(
        "--frames-at-once",
        type=_number,
        metavar="N",
        help="how many frames of a group are made together, which takes memory (default: 4)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="OUT.mp4",
        help="the video (default: out.mp4) or FLUX.1's picture (out.png); with --prompts or --group a folder (outputs)",
    )
    parser.add_argument("--seed", type=_number, metavar="N", help="another number, another video (default: 0)")
    parser.add_argument("--size", metavar="WxH", help="width and height in pixels (default: the model's)")
    parser.add_argument("--frames", type=_number, metavar="N", help="frames, 4 n + 1 (default: the model's)")
    parser.add_argument("--steps", type=_number, metavar="N", help="steps of the sampler (default: the model's)")
    parser.add_argument(
        "--guidance",
        type=_number,
        metavar="X",
        help="how strongly the prompt is followed, 1 is plain (default: the model's)",
    )
    parser.add_argument(
        "--shift", type=_number, metavar="X", help="more of the steps at high noise (default: the model's)"
    )
    parser.add_argument("--sampler", metavar="NAME", help="euler (default), unipc-wan, dpmpp-2m-wan, ...")
    parser.add_argument(
        "--decode",
        metavar="WAY",
        help="how latents become pixels: whole frames (on a --mesh, divided over it), tiled (overlapping tiles, for "
        "less memory), or auto (default: tiled above 2^19 pixels a frame)",
    )
    parser.add_argument(
        "--reference-cache",
        metavar="WAY",
        help="keys and values of references that no step changes: exact (default), int8 (half the memory) or none",
    )
    parser.add_argument("--method", metavar="NAME", help="the conditioning, which must be the model's own")
    parser.add_argument(
        "--model", default="miniature", metavar="NAME", help="the shipped miniature (default), or a model folder"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[:X]",
        help="a LoRA of the transformer, added X times (default: 1) to its weights; repeat it for several",
    )
    parser.add_argument(
        "--lora-low-noise",
        action="append",
        default=[],
        metavar="FILE[:X]",
        help="the same for the second transformer of a model that has one for low noise, as Wan 2.2's A14B have",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="on several devices: data (branches of the guidance), fsdp (those, and weights), sequence (tokens), "
        "tensor (heads), such as data=2,sequence=4; -1 takes all that are left",
    )
    add_describer(parser, required=False)
    parser.add_argument(
        "--part", type=part, default=(0, 1), metavar="I/N", help="with --prompts: every N-th of them, from the I-th on"
    )
    parser.add_argument("--overwrite", action="store_true", help="make it again and replace what is there")


def run(args: argparse.Namespace) -> int:
    """Makes the videos; returns the exit code. Everything that can be wrong is found before the model is loaded."""
    from kaleido_jax.cli.interrupt import interruptible

    with interruptible(), _warnings_as_notes():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from kaleido_jax.pipeline import models
    from kaleido_jax.pipeline.loras import LoraFile

    if args.group is not None or args.method == "characonsist" or models.is_flux(args.model):
        from kaleido_jax.cli import pictures

        return pictures.run(args, models.find(args.model))
    for name in ("option", "setting", "frames_at_once"):
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is for pictures of FLUX.1; leave it out.")
    jobs = list(_jobs(args))
    folder = models.find(args.model)
    loras = [LoraFile.of(given) for given in args.lora]
    loras += [LoraFile.of(given, low_noise=True) for given in args.lora_low_noise]
    _note(f"starting jax for {len(jobs)} videos" if len(jobs) > 1 else "starting jax")
    from kaleido_jax.bundle import load_config
    from kaleido_jax.parallel import MeshConfig
    from kaleido_jax.pipeline.outputs import Outputs

    mesh = MeshConfig.parse(args.mesh) if args.mesh else None
    if mesh is not None:
        mesh.make()  # raises for devices that it does not divide, before anything is loaded

    config = load_config(folder)
    models.check_method(args.method, config)
    jobs = [_named(job, lambda job=job: _prepared(job, config)) for job in jobs]
    if args.describer:
        jobs = [_named(job, lambda job=job: _described(job, config, args)) for job in jobs]
    wanted = lambda job: _is_wanted(job, config, folder, loras, args.overwrite)
    waiting = [job for job in jobs if _named(job, lambda job=job: wanted(job))]
    if not waiting:
        return ExitCode.DONE
    for job in waiting:  # last, because it may make folders
        _named(job, lambda job=job: Outputs.of(job.out).make_room(job.settings))

    from kaleido_jax.cli.progress import Terminal
    from kaleido_jax.pipeline.pipeline import Pipeline

    if mesh is not None:
        for job in waiting:
            _named(job, lambda job=job: _check_needs(job, config, mesh))
    _note(f"loading the model {config.name}")
    pipeline = Pipeline.load(folder, loras=loras, mesh=mesh)
    if mesh is not None and all(job.scene is None for job in waiting) and pipeline.method.data != "scene":
        _note("encoding the prompts, after which the text encoder is let go")
        pipeline.encode_prompts([(job.prompt, job.settings) for job in waiting])
    for number, job in enumerate(waiting, 1):
        began = time.monotonic()
        if len(waiting) > 1:
            _note(f"video {number} of {len(waiting)}: {printable(job.prompt, 60)}")
        with Terminal() as progress:
            references = _named(job, lambda job=job: _references(job, config))
            generation = pipeline.generate(references, job.prompt, job.settings, progress, job.scene)
            Outputs.of(job.out).write(generation)
        _note(f"made {printable(str(job.out))}, its sheet and its record in {time.monotonic() - began:.1f} s")
        print(job.out, flush=True)
    return ExitCode.DONE


def _jobs(args: argparse.Namespace) -> "Iterator[Job]":
    from kaleido_jax.cli import jobs
    from kaleido_jax.pipeline.request import check_prompt

    settings = jobs.settings_of(vars(args))
    if args.sampling is not None and args.scene is None:
        raise UsageError("--sampling says how the shots of --scene are made; give --scene FILE.")
    if args.prompts is not None:
        if args.prompt is not None or args.reference:
            raise UsageError("--prompts brings its own prompts and references; leave out --prompt and --reference.")
        index, count = args.part
        yield from jobs.read_jobs(args.prompts, args.out or Path("outputs"), settings)[index::count]
        return
    if args.scene is not None:
        from kaleido_jax.pipeline.scene_file import read_scene

        if args.prompt is not None or args.reference:
            raise UsageError("--scene brings its own prompts and references; leave out --prompt and --reference.")
        scene = read_scene(args.scene, sampling=args.sampling)
        out, prompt = args.out or Path("out.mp4"), " || ".join(scene.prompts)
        yield jobs.Job(prompt=prompt, references=scene.files, settings=settings, out=out, scene=scene)
        return
    if args.prompt is None:
        raise UsageError("There is no prompt; say what the video should show with --prompt, or give --prompts FILE.")
    references = tuple(jobs.subject_files(words) for words in args.reference)
    if args.primary != 1:
        from kaleido_jax.methods.differential import primary_first
        from kaleido_jax.pipeline.request import whole_number

        whole_number("primary", args.primary, 1, len(references))
        references = tuple(primary_first(references, args.primary))
    out = args.out or Path("out.mp4")
    yield jobs.Job(prompt=check_prompt(args.prompt), references=references, settings=settings, out=out)


def _prepared(job: "Job", config: "BundleConfig") -> "Job":
    """The job with the model's defaults filled in; its number of references is looked at."""
    from kaleido_jax.methods.lct import scene_prompts
    from kaleido_jax.methods.registry import METHODS, create
    from kaleido_jax.pipeline.request import check_reference_count

    if METHODS[config.method].data == "scene" and job.scene is None:
        scene_prompts(job.prompt)
    elif METHODS[config.method].data == "scene":
        pass  # checked when it was read
    elif METHODS[config.method].pictures == "frames" and job.scene is None:
        create(config.method, config.scheme, config.options).check_references(sum(map(len, job.references)))
    elif not job.references and job.scene is None:
        raise UsageError(
            f"There is no reference picture; {config.name}, a model of {config.method}, needs at least one: "
            "--reference PICTURE."
        )
    elif job.scene is not None:
        raise UsageError(f"{config.name} is a model of {config.method}; only lct makes scenes of shots.")
    else:
        check_reference_count(sum(map(len, job.references)), config.defaults.references)
    return dataclasses.replace(job, settings=job.settings.resolved(config))


def _described(job: "Job", config: "BundleConfig", args: argparse.Namespace) -> "Job":
    """The job with the prompt that the describer makes of it and of the first reference, as its method has it."""
    from kaleido_jax.describers import create
    from kaleido_jax.methods import differential
    from kaleido_jax.pipeline.compile_cache import default_folder

    if config.method not in ("anyid", "contextanyone"):
        raise UsageError(
            f"{config.name} is a model of {config.method}, which takes prompts as they are; leave out --describer."
        )
    describer = create(args.describer, args.describer_model, cache=default_folder().parent / "describer")
    reference = _references(job, config)[0].pixels
    if config.method == "contextanyone":
        prompt = " || ".join(describer.two_prompts(reference, job.prompt))
    else:
        elements = differential.load_elements(args.elements)
        prompt = differential.prompt(differential.differing(reference, job.prompt, elements, describer))
    _note(f"prompt: {printable(prompt, 1000)}")
    return dataclasses.replace(job, prompt=prompt)


def _is_wanted(job: "Job", config: "BundleConfig", folder: Path, loras: "list[LoraFile]", overwrite: bool) -> bool:
    """Whether the job has still to be done; raises for whatever would make it fail later."""
    from kaleido_jax.pipeline.outputs import Found, Outputs
    from kaleido_jax.pipeline.record import request_of

    outputs = Outputs.of(job.out)
    outputs.refuse_inputs(file for files in job.references for file in files)
    references = _references(job, config)
    found, what = outputs.found(request_of(job.prompt, references, job.settings, config, folder, loras, job.scene))
    if not overwrite:
        if found is Found.FINISHED:
            _note(f"{printable(str(job.out))} is finished already; --overwrite makes it again")
            return False
        if found is Found.OTHER:
            raise UsageError(f"{what}; give --overwrite or another --out.")
    return True


def _check_needs(job: "Job", config: "BundleConfig", mesh: "MeshConfig") -> None:
    """Says what the video takes of the mesh's devices; UsageError if it cannot fit."""
    import jax

    from kaleido_jax.methods.registry import METHODS
    from kaleido_jax.pipeline import capacity
    from kaleido_jax.training.metrics import duration

    if METHODS[config.method].data == "scene":
        return  # made in as many parts as its file asks for
    frames = [len(reference.pixels) for reference in _references(job, config)]
    found = capacity.check(config, job.settings, mesh, jax.devices(), frames)
    _note(f"{found}; sampling takes about {duration(found.seconds)}, and compiling before that")


def _references(job: "Job", config: "BundleConfig") -> "tuple[Reference, ...]":
    from kaleido_jax.methods.registry import METHODS
    from kaleido_jax.pipeline.references import read_references

    settings = job.settings
    assert settings.height and settings.width and settings.frames
    return read_references(
        job.references,
        height=settings.height,
        width=settings.width,
        frames=settings.frames,
        frames_per_second=config.defaults.frames_per_second,
        show=METHODS[config.method].pictures,
    )


def _named(job: "Job", work) -> Any:
    """The result of `work()`, whose errors name the line of the file that the job came from."""
    try:
        return work()
    except KaleidoError as error:
        if not job.where:
            raise
        kind = InputError if isinstance(error, UsageError) else type(error)
        raise kind(f"{job.where}: {error}") from None


def _number(text: str) -> int | float | str:
    """A number if the text is one; what is wrong with it, `Settings` says."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


@contextlib.contextmanager
def _warnings_as_notes() -> Iterator[None]:
    """Warnings become one line each, without the place in the code."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _note(f"note: {printable(str(message), 600)}")

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


def _note(text: str) -> None:
    print(f"kaleido: {text}", file=sys.stderr, flush=True)
