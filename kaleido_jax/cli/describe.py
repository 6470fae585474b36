"""`kaleido describe`: the prompts that a describer makes of a reference and of what shall be shown."""

import argparse
from pathlib import Path


def add_describer(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declares the options that name a describer."""
    parser.add_argument(
        "--describer",
        required=required,
        metavar="WHERE",
        help="who looks at pictures: an OpenAI-compatible endpoint such as http://localhost:8000/v1 (its key, if it "
        "wants one, in KALEIDO_DESCRIBER_KEY), or the folder of a vision-language model of transformers",
    )
    parser.add_argument("--describer-model", default="", metavar="NAME", help="the name of the endpoint's model")
    parser.add_argument(
        "--elements",
        default="portrait",
        metavar="LIST",
        help="what is compared: portrait (default), animal, object or scene",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `kaleido describe`."""
    parser.description = (
        "Writes the differential prompt (anyid) of what TARGET changes of REFERENCE, element by element; or, with "
        "--two-prompts, the prompts of the reference and of the video (contextanyone). Answers of endpoints are "
        "kept, so that the same question is asked once."
    )
    parser.add_argument("reference", metavar="REFERENCE", help="the primary reference: a picture or a clip")
    parser.add_argument("target", metavar="TARGET", nargs="?", help="what is compared with it: a picture or a clip")
    parser.add_argument("--prompt", metavar="TEXT", help="instead of TARGET: what shall be shown, in words")
    add_describer(parser, required=True)
    parser.add_argument("--one-call", action="store_true", help="ask for the differences at once, not in two stages")
    parser.add_argument(
        "--gamma", type=float, metavar="X", help="in two stages: elements rated more alike than this are dropped (0.75)"
    )
    parser.add_argument("--two-prompts", action="store_true", help="write contextanyone's two prompts, of --prompt")
    parser.add_argument("--json", action="store_true", help="print the elements as JSON instead of the prompt")


def run(args: argparse.Namespace) -> int:
    """Prints the prompt; returns the exit code."""
    import json

    from kaleido_jax.describers import create
    from kaleido_jax.errors import ExitCode, UsageError
    from kaleido_jax.methods import differential
    from kaleido_jax.pipeline.compile_cache import default_folder
    from kaleido_jax.pipeline.request import check_prompt

    if (args.target is None) == (args.prompt is None):
        raise UsageError("Give either TARGET, a picture or a clip, or --prompt TEXT.")
    if args.two_prompts and args.prompt is None:
        raise UsageError("--two-prompts are written of --prompt TEXT and the reference.")
    if args.gamma is not None and (args.one_call or args.two_prompts or args.prompt):
        raise UsageError("--gamma belongs to the two stages of comparing REFERENCE with TARGET.")
    elements = differential.load_elements(args.elements)
    describer = create(args.describer, args.describer_model, cache=default_folder().parent / "describer")
    reference = _pixels(args.reference)
    if args.two_prompts:
        print(" || ".join(describer.two_prompts(reference, check_prompt(args.prompt))))
        return ExitCode.DONE
    target = _pixels(args.target) if args.target else check_prompt(args.prompt)
    comparer = None if args.one_call or args.prompt else describer
    gamma = differential.GAMMA if args.gamma is None else args.gamma
    kept = differential.differing(reference, target, elements, describer, comparer, gamma)
    print(json.dumps(kept, ensure_ascii=False) if args.json else differential.prompt(kept))
    return ExitCode.DONE


def _pixels(path: str):
    """A picture [h, w, 3] or a clip [f, h, w, 3], at most so large as models look at."""
    from kaleido_jax.media.clips import is_clip, read_clip
    from kaleido_jax.media.images import read_image
    from kaleido_jax.media.references import fit_on_white

    side = 768
    if is_clip(path):
        return read_clip(path, frames=33, height=side, width=side, frames_per_second=8)
    return fit_on_white(read_image(Path(path)), side, side)
