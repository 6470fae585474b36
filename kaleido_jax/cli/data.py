"""`kaleido data encode`: samples through VAE and text encoder once, before training."""

import argparse
from pathlib import Path

from kaleido_jax.cli.parts import part


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.description = (
        "encode: writes what `kaleido train` reads with data.source=encoded: latents and text embeddings as "
        "ArrayRecord shards with an index, in OUT/train and OUT/heldout. Run it again to finish what was stopped."
    )
    parser.add_argument("action", choices=("encode",))
    parser.add_argument("config", help="the config that will be trained: shapes, VAE, text encoder, mesh")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields of the config to change")
    parser.add_argument(
        "--input",
        required=True,
        metavar="FOLDER",
        help="videos/ID.mp4, labels/ID.txt, references/ID/ref1.png ...; or the word world, for the procedural one",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="the encoded data, data.folder of a run")
    parser.add_argument("--batch", type=_positive, default=8, metavar="N", help="samples encoded together (default: 8)")
    parser.add_argument("--shard-size", type=_positive, default=256, metavar="N", help="samples a shard (default: 256)")
    parser.add_argument("--workers", type=_positive, default=2, metavar="N", help="samples read at a time (default: 2)")
    parser.add_argument(
        "--part", type=part, default=(0, 1), metavar="I/N", help="write the I-th of N parts, from 1: one job for each"
    )
    parser.add_argument(
        "--most-rejected", type=_share, default=0.05, metavar="X", help="share of a shard's samples (default: 0.05)"
    )


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Encode; returns the exit code."""
    from kaleido_jax import config
    from kaleido_jax.errors import ExitCode, UsageError, printable
    from kaleido_jax.pipeline.compile_cache import use_compile_cache
    from kaleido_jax.training.encode import encode
    from kaleido_jax.training.experiment import Experiment
    from kaleido_jax.training.metrics import report
    from kaleido_jax.training.signals import Signals

    experiment = config.load(args.config)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{args.config} describes a {type(experiment).__name__}; kaleido data takes an Experiment")
    experiment = config.override(experiment, args.overrides)
    use_compile_cache()
    with Signals() as signals:
        rejected = encode(
            experiment,
            args.input,
            args.out,
            batch=args.batch,
            shard_size=args.shard_size,
            workers=args.workers,
            part=args.part,
            most_rejected=args.most_rejected,
            stop=lambda: signals.received,
        )
        if signals.received:
            report(f"stopped by {signals.name}; run the same command to continue")
            return signals.exit_code
    for name, reason in list(rejected.items())[:20]:
        report(f"rejected {printable(name)}: {reason}")
    report(f"done: {args.out}, {len(rejected)} samples rejected")
    return ExitCode.DONE
