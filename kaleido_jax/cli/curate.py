"""`kaleido curate CONFIG`: make training data of a folder of videos. `kaleido curate audit`: people check it. `kaleido
curate subject200k`: pairs of pictures."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument(
        "task",
        metavar="CONFIG|audit|subject200k",
        help="a Python file with a function config(), such as configs/curation_classical.py; or the word audit, for a "
        "page of random subjects of --output, to be voted right or wrong, and with --votes for what was said; or the "
        "word subject200k, for the Parquet of that data set in --input as pairs of pictures in --output, in the layout "
        "that kaleido data encode reads",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields of the config to change")
    parser.add_argument("--input", metavar="FOLDER", help="what the config's reader reads")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="the data set; run again to continue")
    parser.add_argument(
        "--runner", default="direct", help="Apache Beam's: direct (this machine), FlinkRunner, SparkRunner, ..."
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of the direct runner")
    parser.add_argument(
        "--beam", action="append", default=[], metavar="OPTION", help="an option for Beam's runner; may be repeated"
    )
    parser.add_argument(
        "--write",
        action="append",
        default=[],
        choices=("kaleido", "opens2v", "groups", "scenes", "edits"),
        help="write this form as well",
    )
    parser.add_argument(
        "--tier", default="pretrain", choices=("pretrain", "sft"), help="of what kaleido and opens2v write (--write)"
    )
    parser.add_argument("--count", type=int, default=100, help="subjects on audit's page")
    parser.add_argument("--seed", type=int, default=0, help="of audit's choice")
    parser.add_argument("--votes", metavar="FILE", help="what audit's page saved: print shares with intervals and bars")


def run(args: argparse.Namespace) -> int:
    """Curate; returns the exit code."""
    from pathlib import Path

    from kaleido_jax import config
    from kaleido_jax.curation.settings import Curation
    from kaleido_jax.errors import UsageError

    output = Path(args.output)
    if args.task == "audit":
        from kaleido_jax.curation.audit import read_votes, write_page

        if args.votes is None:
            print(write_page(output, args.count, args.seed))
        else:
            print(*read_votes(output, Path(args.votes)), sep="\n")
        return 0
    if args.task == "subject200k":
        from kaleido_jax.curation import picture_pairs

        if args.input is None:
            raise UsageError("--input is missing; give the folder that holds Subject200K's Parquet files")
        for name, count in picture_pairs.write(Path(args.input), output).items():
            print(f"{count:8d}  {name}")
        return 0
    settings = config.load(args.task)
    if not isinstance(settings, Curation):
        raise UsageError(f"{args.task} describes a {type(settings).__name__}; kaleido curate runs a Curation")
    if args.input is None:
        raise UsageError("--input is missing; give the folder that holds the videos")
    if args.workers < 1:
        raise UsageError(f"--workers is {args.workers}; it must be at least 1")
    settings = config.override(settings, args.overrides) if args.overrides else settings

    from kaleido_jax.curation.engine import Runner, curate
    from kaleido_jax.curation.forms import FORMS
    from kaleido_jax.curation.writers import WRITERS

    runner = Runner(name=args.runner, workers=args.workers, options=tuple(args.beam))
    counters = curate(settings, Path(args.input), output, runner)
    for name, count in counters.items():
        print(f"{count:8d}  {name}")
    for form in args.write:
        if form in FORMS:
            print(f"{FORMS[form](output, settings)} {form} in {output / form}")
        else:
            place = output / (form if args.tier == "pretrain" else f"{form}-{args.tier}")
            print(f"{WRITERS[form](output / 'dataset', place, args.tier)} samples in {place}")
    print(f"{output / 'report.html'} shows what was kept and why not")
    return 0
