"""`kaleido generate` with a FLUX.1 release: a prompt in, a picture out; or groups of the same characters."""

import argparse
import dataclasses
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaleido_jax.cli import generate
from kaleido_jax.errors import ExitCode, UsageError, printable
from kaleido_jax.media.images import read_image
from kaleido_jax.media.references import fit_on_white
from kaleido_jax.pipeline.request import Settings, check_prompt, whole_number

if TYPE_CHECKING:
    from kaleido_jax.methods.characonsist import CharaConsist
    from kaleido_jax.pipeline.group_file import Group
    from kaleido_jax.pipeline.picture_files import PictureFiles

METHOD = "characonsist"
SIZE = 1024  # what FLUX.1 was trained at most
# Options of `kaleido generate` that say something about pictures; all others are of videos.
OF_PICTURES = {
    "reference", "prompt", "group", "setting", "option", "frames_at_once", "out", "seed", "size", "steps", "guidance",
    "method", "model", "overwrite",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One picture or group to make. request: what determines it. command: what asks for it again."""

    prompt: str
    group: "Group | None"
    files: "PictureFiles"
    request: dict[str, Any]
    command: list[str]


def run(args: argparse.Namespace, folder: Path) -> int:
    """Makes the pictures; everything that can be wrong is found before the model is loaded.

    folder: of the model.
    """
    from kaleido_jax.methods.characonsist import create
    from kaleido_jax.pipeline.outputs import Found
    from kaleido_jax.pipeline.picture_files import check_folder

    _check_options(args)
    step = check_folder(folder)
    settings = _settings(args, step)
    method = create(args.setting, args.option) if args.group is not None else None
    at_once = whole_number("frames-at-once", 4 if args.frames_at_once is None else args.frames_at_once, 1, 64)
    identity = None
    if args.reference:
        identity = fit_on_white(read_image(args.reference[0]), settings.height, settings.width)
    waiting = []
    for job in _jobs(args, folder, settings, method, identity):
        if args.reference:
            job.files.refuse_input(Path(args.reference[0]))
        found, what = job.files.found(job.request)
        if found is Found.FINISHED and not args.overwrite:
            _note(f"{printable(str(job.files.record))} says that it is finished already; --overwrite makes it again")
            continue
        if found is Found.OTHER and not args.overwrite:
            raise UsageError(f"{what}; give --overwrite or another --out.")
        waiting.append(job)
    if not waiting:
        return ExitCode.DONE
    for job in waiting:
        job.files.make_room(len(job.files.pictures) * settings.height * settings.width)

    from kaleido_jax.cli.progress import Terminal
    from kaleido_jax.pipeline.characonsist import ConsistentCharacters
    from kaleido_jax.pipeline.compile_cache import use_compile_cache
    from kaleido_jax.pipeline.text_to_image import TextToImage, load_flux

    use_compile_cache()
    _note(f"loading the model {printable(str(folder))}")
    model = TextToImage(load_flux(folder))
    characters = None if method is None else ConsistentCharacters(model, method)
    options = {name: getattr(settings, name) for name in ("height", "width", "steps", "guidance", "seed")}
    for number, job in enumerate(waiting, 1):
        began = time.monotonic()
        if len(waiting) > 1:
            _note(f"group {number} of {len(waiting)}: {printable(job.prompt, 60)}")
        with Terminal() as progress:
            report = lambda done, total: progress("sampling", done, total)
            if job.group is None:
                made = {"picture": model([job.prompt], **options, progress=report)[0]}
            else:
                made = _group(characters, job.group, options | {"at_once": at_once, "identity": identity}, report)
            job.files.write(made, job.request, job.command)
        _note(f"made {printable(str(job.files.record))} and its pictures in {time.monotonic() - began:.1f} s")
        for path in job.files.pictures.values():
            if not path.name.endswith(".mask.png"):
                print(path, flush=True)
    return ExitCode.DONE


def _group(maker: Any, group: "Group", options: dict[str, Any], report: Any) -> dict[str, Any]:
    from kaleido_jax.pipeline.picture_files import mask_picture

    made = maker(group, **options, progress=report)
    names = ["identity", *(f"frame_{number}" for number in range(1, len(made.pixels)))]
    count = len(group.identity.characters)
    masks = [mask_picture(mask, count, made.pixels.shape[1:3]) for mask in made.characters]
    return dict(zip(names, made.pixels)) | {f"{name}.mask": mask for name, mask in zip(names, masks)}


def _check_options(args: argparse.Namespace) -> None:
    """Raises UsageError for options that do not go together, or are of videos."""
    defaults = argparse.ArgumentParser()
    generate.add_arguments(defaults)
    for name, value in vars(args).items():
        if name not in OF_PICTURES and value != defaults.get_default(name):
            raise UsageError(f"--{name.replace('_', '-')} is for videos; leave it out with a model of pictures.")
    if args.method not in (None, METHOD):
        raise UsageError(f"--method is {printable(args.method)!r}; FLUX.1 runs {METHOD}, or no method at all.")
    if args.group is None:
        if args.method == METHOD:
            raise UsageError(f"{METHOD} makes groups of pictures; give a file of their prompts with --group FILE.")
        if args.prompt is None:
            raise UsageError("There is no prompt; say what the picture shows with --prompt, or give --group FILE.")
        for name in ("reference", "option", "setting", "frames_at_once"):
            if getattr(args, name):
                raise UsageError(f"--{name.replace('_', '-')} is for --group; a picture of one prompt takes none.")
    elif args.prompt is not None:
        raise UsageError("--group brings its own prompts; leave out --prompt.")
    if len(args.reference) > 1:
        raise UsageError(f"There are {len(args.reference)} references; a group takes one, as its identity picture.")


def _settings(args: argparse.Namespace, step: int) -> Settings:
    """Whole settings of a picture; frames, shift and sampler stay at what means nothing."""
    from kaleido_jax.cli import jobs

    given = jobs.settings_of(vars(args) | {"sampler": None})
    fill = lambda value, default: default if value is None else value
    settings = dataclasses.replace(
        given, height=fill(given.height, SIZE), width=fill(given.width, SIZE), guidance=fill(given.guidance, 3.5)
    )
    for name in ("height", "width"):
        size = getattr(settings, name)
        if size % step:
            near = " and ".join(str(n) for n in (size // step * step, size // step * step + step) if n)
            raise UsageError(f"{name} is {size}; for this model it must be a multiple of {step}, nearest: {near}.")
    return settings


def _jobs(
    args: argparse.Namespace, folder: Path, settings: Settings, method: "CharaConsist | None", identity: Any
) -> Iterator[Job]:
    from kaleido_jax import __version__
    from kaleido_jax.config import to_json
    from kaleido_jax.pipeline.group_file import read_groups
    from kaleido_jax.pipeline.picture_files import PictureFiles, fingerprints

    names = ("height", "width", "steps", "guidance", "seed")
    request = {
        "settings": {name: getattr(settings, name) for name in names},
        "model": {"weights": fingerprints(folder)},
        "version": __version__,
    }
    command = ["kaleido", "generate", "--model", str(folder), "--size", f"{settings.width}x{settings.height}"]
    for name in ("steps", "guidance", "seed"):
        if getattr(settings, name) is not None:
            command += [f"--{name}", str(getattr(settings, name))]
    if args.group is None:
        prompt, files = check_prompt(args.prompt), PictureFiles.single(args.out or Path("out.png"))
        yield Job(
            prompt=prompt,
            group=None,
            files=files,
            request={"prompt": prompt} | request,
            command=[*command, "--prompt", prompt],
        )
        return
    if args.setting:
        command += ["--setting", args.setting]
    command += [word for option in args.option for word in ("--option", option)]
    command += ["--method", METHOD, "--group", str(args.group)]
    if identity is not None:
        command += ["--reference", args.reference[0]]
    groups, out = read_groups(args.group), args.out or Path("outputs")
    for number, group in enumerate(groups, 1):
        own = {
            "group": [picture.line for picture in group.pictures],
            "method": {"name": METHOD} | to_json(method),
            "identity": None if identity is None else hashlib.sha256(identity.tobytes()).hexdigest(),
        }
        files = PictureFiles.group(out / f"group_{number}", len(group.frames))
        yield Job(prompt=group.identity.prompt, group=group, files=files, request=own | request, command=command)


def _note(text: str) -> None:
    print(f"kaleido: {text}", file=sys.stderr, flush=True)
