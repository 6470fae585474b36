"""`kaleido inspect SOURCE`: what a checkpoint is."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument(
        "source", help="a .safetensors or .pth file, an index of shards, or a folder that holds one of them"
    )


def run(args: argparse.Namespace) -> int:
    """Print what it is; the exit code says whether it is complete."""
    from kaleido_jax.errors import ExitCode, printable
    from kaleido_jax.porting import inspect

    found = inspect(args.source)
    print(f"family       {found.family}")
    print(f"layout       {found.layout}")
    print(f"size         {found.size}" + (f", but {'; '.join(found.differences)}" if found.differences else ""))
    print(f"parameters   {found.parameters:,} in {found.tensors} tensors")
    print(f"dtypes       {', '.join(f'{name} ({count:,})' for name, count in found.dtypes.items())}")
    print(f"problems     {len(found.problems) or 'none'}")
    for problem in found.problems:
        print(f"  {printable(problem)}")
    return ExitCode.BAD_INPUT if found.problems else ExitCode.DONE
