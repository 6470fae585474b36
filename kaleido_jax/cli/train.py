"""`kaleido train`: run an experiment, or continue it, in a work directory."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument("config", help="a Python file with a function config(), such as configs/miniature.py")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields of the config to change")
    parser.add_argument(
        "--distributed",
        metavar="WHERE",
        help="one of several processes: auto (Slurm, GKE, TPUs, Open MPI) or ADDRESS,COUNT,INDEX as host:1234,8,0",
    )
    parser.add_argument("--workdir", required=True, help="checkpoints, metrics, pictures; run again to continue")
    parser.add_argument(
        "--export",
        metavar="FOLDER",
        help="do not train: write the newest checkpoint as a model folder, or, of a run that trains a LoRA, under a "
        "name that ends in .safetensors, as a LoRA file",
    )
    parser.add_argument(
        "--lora-format", default="diffusers", metavar="NAME", help="of that file: diffusers (default), original, kohya"
    )
    parser.add_argument(
        "--dtype", default="float16", choices=("float32", "float16", "int8"), help="of --export's weights"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or export; returns the exit code."""
    from kaleido_jax import config
    from kaleido_jax.errors import UsageError
    from kaleido_jax.training.experiment import Experiment

    experiment = config.load(args.config)
    if not isinstance(experiment, Experiment):
        raise UsageError(f"{args.config} describes a {type(experiment).__name__}; kaleido train runs an Experiment")
    experiment = config.override(experiment, args.overrides)

    from kaleido_jax.parallel import processes
    from kaleido_jax.pipeline.compile_cache import use_compile_cache
    from kaleido_jax.porting import lora
    from kaleido_jax.training.loop import train
    from kaleido_jax.training.miniature import prepare
    from kaleido_jax.training.signals import Signals

    use_compile_cache()
    with processes.joined(args.distributed), Signals() as signals:
        prepared = prepare(experiment, args.workdir)
        if args.export:
            if not prepared.checkpoints.steps():
                raise UsageError(f"there is no checkpoint in {args.workdir} to export")
            state, _ = prepared.restore()
            if not args.export.endswith(".safetensors"):
                prepared.export(state, args.export, dtype=args.dtype)
                return 0
            if not experiment.lora.rank:
                raise UsageError("--export names a LoRA file, but lora.rank is 0: name a folder")
            lora.write(args.export, prepared.lora(state), to=args.lora_format)
            return 0
        return int(train(prepared, signals))
