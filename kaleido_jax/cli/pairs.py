"""`kaleido pairs`: preference pairs, from sampling to the file that training reads."""

import argparse
import sys
from pathlib import Path

ACTIONS = {
    "sample": "make two clips of each request",
    "judge": "let an automatic judge vote",
    "annotate": "judge them yourself, on a page in the browser",
    "select": "write those of which one clip is better along both tracks, for training",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kaleido pairs`."""
    from kaleido_jax.cli.describe import add_describer

    parser.description = (
        "Preference pairs for Flow-DPO: "
        + "; ".join(f"`{name}`: {what}" for name, what in ACTIONS.items())
        + ". Each goes on where it was stopped."
    )
    parser.add_argument("action", choices=tuple(ACTIONS), help="what to do with the pairs")
    parser.add_argument("folder", type=Path, help="of the pairs")
    parser.add_argument(
        "--model", default="miniature", metavar="NAME", help="sample: the model, see `kaleido generate`"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="sample: requests, as `kaleido generate` reads them"
    )
    parser.add_argument("--world", type=int, metavar="N", help="sample: instead, N requests of the procedural world")
    parser.add_argument(
        "--clip", type=int, default=5, metavar="N", help="sample: frames of the world's reference clips"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="sample: of the first clip (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="sample: steps of the sampler (default: the model's)")
    parser.add_argument("--judge", default="world", metavar="WHO", help="judge: world (its truth, default) or model")
    add_describer(parser, required=False)
    parser.add_argument("--name", metavar="NAME", help="annotate: yours, which stands in each vote")
    parser.add_argument("--track", action="append", metavar="NAME", help="identity or control (default: both)")
    parser.add_argument("--port", type=int, default=8765, metavar="N", help="annotate: of the page (default: 8765)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="select: in the folder (default: preferences.jsonl)")


def run(args: argparse.Namespace) -> int:
    """Does one of the actions; returns the exit code."""
    from kaleido_jax.cli.interrupt import interruptible

    with interruptible():
        {"sample": _sample, "judge": _judge, "annotate": _annotate, "select": _select}[args.action](args)
    return 0


def _sample(args: argparse.Namespace) -> None:
    from itertools import islice

    from kaleido_jax.cli.jobs import read_jobs
    from kaleido_jax.data.world import World
    from kaleido_jax.errors import UsageError
    from kaleido_jax.pipeline.pipeline import Pipeline
    from kaleido_jax.pipeline.request import Settings
    from kaleido_jax.preference.sampling import Request, sample_pairs, world_requests

    if (args.prompts is None) == (args.world is None):
        raise UsageError("Give the requests either with --prompts FILE or, of the procedural world, with --world N.")
    settings = Settings(seed=args.seed, steps=args.steps)
    requests = []
    if args.prompts is not None:
        for job in read_jobs(args.prompts, args.folder, settings):
            files = [Path(file) for subject in job.references for file in subject]
            requests.append(Request(prompt=job.prompt, references=files))
    pipeline = Pipeline.load(args.model)
    if args.world is not None:
        defaults = pipeline.config.defaults
        world = World((defaults.height, defaults.width), defaults.frames)
        endless = world_requests(world, references=defaults.references, clip=args.clip)
        requests = islice(endless, args.world)
    made = sample_pairs(pipeline, requests, args.folder, settings=settings, progress=_note)
    _note(f"made {made} pairs in {args.folder}")


def _judge(args: argparse.Namespace) -> None:
    from kaleido_jax.describers import create
    from kaleido_jax.errors import UsageError, unknown_name
    from kaleido_jax.pipeline.compile_cache import default_folder
    from kaleido_jax.preference.judges import ModelJudge, WorldJudge, judge

    if args.judge == "world":
        who = WorldJudge()
    elif args.judge == "model":
        if not args.describer:
            raise UsageError("--judge model asks a model; name it with --describer.")
        describer = create(args.describer, args.describer_model, cache=default_folder().parent / "describer")
        who = ModelJudge(describer, args.describer_model or Path(args.describer).name)
    else:
        raise UsageError(unknown_name("judge", args.judge, ("world", "model")))
    given = judge(args.folder, who, _tracks(args), progress=lambda done, total: _note(f"judged {done} of {total}"))
    _note(f"{who.name} gave {given} votes")


def _annotate(args: argparse.Namespace) -> None:
    from kaleido_jax.errors import UsageError
    from kaleido_jax.preference.page import HOST, Annotation, make_server

    if not args.name:
        raise UsageError("Votes bear a name; give yours with --name.")
    annotation = Annotation(args.folder, args.name, _tracks(args))
    with make_server(annotation, args.port) as server:
        _note(f"open http://{HOST}:{server.server_address[1]}/ ; Ctrl-C ends it, and every vote is kept")
        server.serve_forever()


def _select(args: argparse.Namespace) -> None:
    from kaleido_jax.preference.files import TARGET, select

    out = args.out or args.folder / "preferences.jsonl"
    chosen, there = select(args.folder, out)
    _note(f"{chosen} of {there} pairs have a clip that is better along both tracks (the paper trains on {TARGET})")
    print(out, flush=True)


def _tracks(args: argparse.Namespace) -> tuple[str, ...]:
    from kaleido_jax.names import lookup
    from kaleido_jax.preference.files import TRACKS

    chosen = args.track or TRACKS
    return tuple(lookup({name: name for name in TRACKS}, track, "track") for track in chosen)


def _note(text: str) -> None:
    from kaleido_jax.errors import printable

    print(f"kaleido: {printable(text)}", file=sys.stderr, flush=True)
