"""`kaleido plan`: what a training step takes of chips that need not be there."""

import argparse
import json
import os
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.description = (
        "Compiles an experiment's training step, or a step of sampling, for chips that this machine need not have, and "
        "says what it takes: memory by kind, operations, traffic between devices, and an estimate of the time of a "
        "step with what it assumes. Exit code 65 if it does not fit."
    )
    parser.add_argument("config", help="a Python file with a function config(), such as configs/kaleido_14b_sft.py")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields of the config to change")
    parser.add_argument(
        "--target", required=True, metavar="CHIP:SHAPE", help="v5p:4x4x4, v5e:16x16, v6e:16x16, h100:8x8 (nodes x GPUs)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="compile with less effort (TPUs): temporary memory is then an upper bound"
    )
    parser.add_argument(
        "--search",
        nargs="?",
        const=3,
        type=int,
        metavar="N",
        help="try all meshes, numbers of parts and train.keep by formulas, compile the N best (default: 3), rank them",
    )
    parser.add_argument(
        "--sample", action="store_true", help="plan a step of sampling one video with sampling.*, instead of training"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan there too")


def run(args: argparse.Namespace) -> int:
    """Plan and print; returns the exit code."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the host's; the step is compiled for another
    from kaleido_jax import config
    from kaleido_jax.errors import ExitCode, UsageError
    from kaleido_jax.media.storage import written_whole
    from kaleido_jax.parallel.chips import Target
    from kaleido_jax.parallel.target import devices_of
    from kaleido_jax.training.experiment import Experiment

    target = Target.parse(args.target)
    experiment = config.load(args.config)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{args.config} describes a {type(experiment).__name__}; kaleido plan takes an Experiment")
    experiment = config.override(experiment, args.overrides)

    if args.search is not None:
        if args.sample:
            raise UsageError("--search is for training steps; leave out --sample, or give the mesh of the videos")
        if args.search < 1:
            raise UsageError(f"--search is {args.search}; compile at least 1")
        from kaleido_jax.training import search

        note = lambda line: print(line, file=sys.stderr, flush=True)
        options = {"target": str(target), "compiled": args.search, "quick": args.quick, "report": note}
        found = search.search(experiment, devices_of(target), target.chip, **options)
        result = found[0][1]
        document = result.to_json() | {"ranking": [_ranked(words.words, plan) for words, plan in found]}
        lines = [*report(result), *(_line(place, words.words, plan) for place, (words, plan) in enumerate(found, 1))]
    else:
        from kaleido_jax.pipeline.plan import sampling_plan
        from kaleido_jax.training.plan import plan

        planned = sampling_plan if args.sample else plan
        result = planned(experiment, devices_of(target), target.chip, target=str(target), quick=args.quick)
        document, lines = result.to_json(), report(result)
    print("\n".join(lines))
    if args.json:
        with written_whole(args.json) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n")
    return ExitCode.DONE if result.fits else ExitCode.BAD_INPUT


def _ranked(words: str, result) -> dict:
    """What the JSON document says of one of several plans."""
    return {
        "overrides": words,
        "fits": result.fits,
        "total": result.total,
        "seconds": result.seconds["estimate"],
        "mfu": result.mfu["estimate"],
    }


def _line(place: int, words: str, result) -> str:
    """The line that is printed for one of several plans."""
    size = f"{result.total / 2**30:.1f} GiB{'' if result.fits else ', DOES NOT FIT'}"
    return f"{place}. {words}: {result.seconds['estimate']:.1f} s, MFU {result.mfu['estimate']:.1%}, {size}"


def report(result) -> list[str]:
    """The lines that are printed for a `training.plan.Plan`."""
    gib = lambda size: f"{size / 2**30:9.2f} GiB"
    lines = [
        f"{result.name} on {result.devices} devices of {result.target}, mesh {result.mesh}: "
        f"{result.batch} samples of {result.tokens} tokens a step; compiled in {result.compile_seconds:.0f} s",
        "memory of one device",
        *(f"  {kind:24}{gib(size)}" for kind, size in result.bytes.items()),
        f"  {'total':24}{gib(result.total)} of {result.memory / 2**30:.2f} GiB: "
        f"{'fits' if result.fits else 'DOES NOT FIT'}",
        "operations of a step",
        f"  {'model, as MFU counts':24}{result.model_flops / 1e15:9.2f} PFLOP",
        f"  {'computed':24}{result.computed_flops / 1e15:9.2f} PFLOP, attention {result.attention_flops / 1e15:.2f}",
        "received by one device in a step",
        *(
            f"  along {axes:18}{gib(sum(kinds.values()))}: "
            + ", ".join(f"{kind} {size / 2**30:.2f}" for kind, size in kinds.items())
            for axes, kinds in result.traffic.items()
        ),
        *(["  not known: the compiler gave up on memory"] if not result.traffic and result.devices > 1 else []),
        "seconds of a step",
        *(f"  {name:24}{value:9.3f}" for name, value in result.seconds.items()),
        f"MFU {result.mfu['estimate']:.1%} estimated, at most {result.mfu['bound']:.1%} with these kernels; "
        f"limited by {result.limit}",
        "assumed: " + "; ".join(result.assumptions),
    ]
    return lines + [f"to make it fit: {advice}" for advice in result.advice]
