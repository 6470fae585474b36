"""`kaleido testset FORM --out FOLDER`: references and prompts in the form of a paper's test set."""

import argparse
from pathlib import Path

from kaleido_jax.errors import ExitCode, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument("form", metavar="FORM", help="kaleido, anyid, characonsist or lct")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="an empty folder, or a new one")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER",
        help="your pictures, as <category>/<subject>/<picture>; without it, held-out subjects of the procedural world",
    )  # fmt: skip
    parser.add_argument("--cases", type=int, metavar="N", help="only the first N of each category")
    parser.add_argument(
        "--references", type=int, metavar="N", help="at most N pictures of each subject, such as 1 for methods of one"
    )
    parser.add_argument("--size", type=int, default=96, metavar="N", help="pixels a side of the world's pictures")


def run(args: argparse.Namespace) -> int:
    """Writes the set and prints how large it is."""
    if args.cases is not None and args.cases < 1:
        raise UsageError(f"--cases is {args.cases}; it must be at least 1.")
    if args.references is not None and args.references < 1:
        raise UsageError(f"--references is {args.references}; it must be at least 1.")
    if not 16 <= args.size <= 2048:
        raise UsageError(f"--size is {args.size}; it must be 16 to 2048.")
    from kaleido_jax.data.world import World
    from kaleido_jax.evaluation.testsets import Folder, Procedural, write_test_set

    catalogue = Folder(args.pictures) if args.pictures else Procedural(World(args.size))
    cases = write_test_set(args.form, catalogue, args.out, cases=args.cases, references=args.references)
    several = sum(case.subjects > 1 for case in cases)
    pictures = sum(len(case.references) for case in cases)
    print(f"{args.out / 'manifest.json'}: {len(cases)} cases, {several} of several subjects, {pictures} references")
    return ExitCode.DONE
