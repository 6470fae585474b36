"""`kaleido report RESULTS [RESULTS ...] --out FOLDER`: a page of tables, plots and videos."""

import argparse
from pathlib import Path

from kaleido_jax.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULTS", help="folders that kaleido evaluate has written, one a run"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where report.html goes")
    parser.add_argument("--videos", type=int, default=50, metavar="N", help="cases whose videos are shown (default 50)")


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    from kaleido_jax.evaluation.comparison import read_results
    from kaleido_jax.evaluation.report import write_report

    print(write_report([read_results(folder) for folder in args.results], args.out, videos=args.videos))
    return ExitCode.DONE
