"""`kaleido study RESULTS RESULTS ... --out FOLDER`: a blind study with people; `--votes` puts its votes together."""

import argparse
from pathlib import Path

from kaleido_jax.errors import ExitCode, UsageError, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument(
        "results", type=Path, nargs="*", metavar="RESULTS", help="folders that kaleido evaluate has written, one a run"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the page and its key go")
    parser.add_argument(
        "--questions", default="kaleido", metavar="SET", help="kaleido (default) or anyid, of two videos; or ranking"
    )
    parser.add_argument("--cases", type=int, default=40, metavar="N", help="how many cases are shown (default 40)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the cases and their sides")
    parser.add_argument("--key", type=Path, metavar="FILE", help="key.json of a study, to count its votes")
    parser.add_argument("--votes", type=Path, nargs="+", default=[], metavar="FILE", help="what participants saved")


def run(args: argparse.Namespace) -> int:
    """Makes a study, or prints what its votes say."""
    if bool(args.votes) != bool(args.key):
        raise UsageError("--votes and --key go together: the votes, and whose videos they are of.")
    if args.votes:
        return _count(args)
    if args.out is None or not args.results:
        raise UsageError("A study needs results and --out; or give --key and --votes to count.")
    if args.cases < 1:
        raise UsageError(f"--cases is {args.cases}; it must be at least 1.")
    from kaleido_jax.evaluation.comparison import read_results
    from kaleido_jax.evaluation.study import write_study

    runs = [read_results(folder) for folder in args.results]
    print(write_study(runs, args.out, questions=args.questions, cases=args.cases, seed=args.seed))
    return ExitCode.DONE


def _count(args: argparse.Namespace) -> int:
    from kaleido_jax.evaluation.study import tally

    found = tally(args.key, args.votes)
    print(f"{found.votes} votes of {found.participants} participants")
    for question, share in found.wins.items():
        print(f"{question:24} {printable(found.pair[0])} wins {share}, {found.ties[question]} for neither")
    for name, (mean, low, high) in found.ranks.items():
        print(f"{printable(name):24} mean rank {mean:.2f} of {len(found.pair)} ({low:.2f} to {high:.2f}; best is most)")
    return ExitCode.DONE
