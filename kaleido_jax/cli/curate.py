"""`kaleido curate`: make training data of a folder of videos."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument("config", help="a Python file with a function config(), such as configs/curation_classical.py")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields of the config to change")
    parser.add_argument("--input", required=True, metavar="FOLDER", help="what the config's reader reads")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the data set; run again to continue")
    parser.add_argument(
        "--runner", default="direct", help="Apache Beam's: direct (this machine), FlinkRunner, SparkRunner, ..."
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of the direct runner")
    parser.add_argument(
        "--beam", action="append", default=[], metavar="OPTION", help="an option for Beam's runner; may be repeated"
    )


def run(args: argparse.Namespace) -> int:
    """Curate; returns the exit code."""
    from pathlib import Path

    from kaleido_jax import config
    from kaleido_jax.curation.settings import Curation
    from kaleido_jax.errors import UsageError

    settings = config.load(args.config)
    if not isinstance(settings, Curation):
        raise UsageError(f"{args.config} describes a {type(settings).__name__}; kaleido curate runs a Curation")
    if args.workers < 1:
        raise UsageError(f"--workers is {args.workers}; it must be at least 1")
    settings = config.override(settings, args.overrides) if args.overrides else settings

    from kaleido_jax.curation.engine import Runner, curate

    runner = Runner(name=args.runner, workers=args.workers, options=tuple(args.beam))
    counters = curate(settings, Path(args.input), Path(args.output), runner)
    for name, count in counters.items():
        print(f"{count:8d}  {name}")
    return 0
