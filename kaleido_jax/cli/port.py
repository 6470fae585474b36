"""`kaleido port SOURCE DEST`: write weights as another kind of checkpoint."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument(
        "source", help="a .safetensors or .pth file, an index of shards, or a folder that holds one of them"
    )
    parser.add_argument("destination", help="a folder; or one file, if it ends with .safetensors or .pth")
    parser.add_argument(
        "--to",
        default="diffusers",
        choices=("original", "diffusers", "kaleido-sat", "orbax", "kaleido"),
        help="layout to write: of the original release, of diffusers or transformers, of Kaleido's release, our own in"
        " orbax's or safetensors' files (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", metavar="NAME", help="convert to this dtype, such as bfloat16; else each keeps its own"
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="write weights that hold NaN or infinity")
    parser.add_argument("--overwrite", action="store_true", help="replace a destination that exists")


def run(args: argparse.Namespace) -> int:
    """Port, with a line of progress; returns the exit code."""
    import tqdm

    from kaleido_jax.porting import port

    with tqdm.tqdm(desc="kaleido: port", unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        ported = port(
            args.source,
            args.destination,
            to=args.to,
            dtype=args.dtype,
            allow_nonfinite=args.allow_nonfinite,
            overwrite=args.overwrite,
            progress=progress,
        )
    what = f"{ported.family} weights of layout {ported.layout}"
    print(f"{args.destination}: {what}, {ported.tensors} tensors, {ported.nbytes:,} bytes")
    return 0
