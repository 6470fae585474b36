"""`kaleido layout`: draws how a method lays out its tokens: the sequence, the positions, and who reads whom."""

import argparse
import dataclasses
import pathlib
import re

# Nothing heavy here: `kaleido --help` imports this module.
Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Method:
    """What is drawn for a name: a position scheme, a visibility rule (names of rope.SCHEMES and masks.RULES), an order.

    references: whether they stand before ("first") or after ("last") the video, or are no tokens ("none").
    shots: a global prompt and several shots instead of one video. text: prompt tokens in the same sequence.
    """

    scheme: str
    rule: str = "bidirectional"
    references: str = "first"
    shots: bool = False
    text: int = 0


METHODS = {
    "kaleido": Method("shift-wh"),
    "kaleido-released": Method("shift-wh-released"),
    "anyid": Method("concat-after"),
    "anyid-unidirectional": Method("concat-after", rule="unidirectional"),
    "contextanyone": Method("gap", rule="unidirectional"),
    "contextanyone-emphasis": Method("gap", rule="emphasis"),
    "lct": Method("interleaved", references="none", shots=True, text=8),
    "lct-causal": Method("interleaved", rule="shot-causal", references="none", shots=True, text=8),
    "wan": Method("channel-concat", references="none"),
    "phantom": Method("phantom", references="last"),
    "vace": Method("concat-before"),
    "wan-s2v": Method("wan-s2v", references="last"),
    "concat-after": Method("concat-after", references="last"),
    "future-time": Method("future-time", references="last"),
    "interleaved": Method("interleaved", references="none", shots=True, text=8),
    "interleaved-continuing-time": Method("interleaved-continuing-time", references="none", shots=True, text=8),
    "channel-concat": Method("channel-concat", references="none"),
    "flux": Method("flux", references="none", text=16),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `kaleido layout`."""
    parser.description = (
        "Draws the token layout of a method as a PNG: the sequence, the position of every token, the blocks of the "
        f"attention mask. Methods: {', '.join(METHODS)}, and every position scheme by its name (shift-w, gap, ...)."
    )
    parser.add_argument(
        "--method", default="kaleido", metavar="NAME", help="method or position scheme (default: kaleido)"
    )
    parser.add_argument("--mask", metavar="RULE", help="visibility rule (default: the method's own)")
    parser.add_argument(
        "--video",
        type=_grid,
        default=(5, 6, 10),
        metavar="FxHxW",
        help="frames, height, width in tokens (default: 5x6x10)",
    )
    parser.add_argument(
        "--references",
        type=_subjects,
        default=(0, 0, 1),
        metavar="A,B,...",
        help="the subject that each reference shows, from 1 (default: 1,1,2); 0 = no references",
    )
    parser.add_argument(
        "--reference",
        type=_grid,
        metavar="FxHxW",
        help="size of a reference in tokens (default: one frame of the video)",
    )
    parser.add_argument(
        "--text", type=_count, metavar="N", help="tokens of a prompt in the same sequence (default: the method's)"
    )
    parser.add_argument(
        "--shots", type=_count, default=3, metavar="N", help="shots of a multi-shot method (default: 3)"
    )
    parser.add_argument(
        "--samples", type=_count, default=1, metavar="N", help="samples packed into the sequence (default: 1)"
    )
    parser.add_argument(
        "--block", type=_count, metavar="N", help="tokens in a square of the mask (default: about 64 squares)"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("layout.png"), metavar="PNG", help="the picture"
    )


def run(args: argparse.Namespace) -> int:
    """Draws and writes the picture. Returns 0, or raises UsageError or StorageError with a sentence for the user."""
    import numpy as np

    from kaleido_jax import masks, rope
    from kaleido_jax.drawing import draw_layout
    from kaleido_jax.errors import UsageError
    from kaleido_jax.media.storage import make_writable_folder, written_whole
    from kaleido_jax.names import lookup

    if args.out.suffix.lower() != ".png":
        raise UsageError(f"--out is {str(args.out)!r}; a layout is drawn as PNG, so its name must end in .png")
    if args.block == 0 or args.samples == 0 or args.shots == 0:
        raise UsageError("--block, --samples and --shots must be at least 1")
    schemes = {name: Method(name) for name in rope.SCHEMES} | METHODS
    method = lookup(schemes, args.method, "method or position scheme")
    scheme = rope.SCHEMES[method.scheme]
    rule = lookup(masks.RULES, args.mask or method.rule, "visibility rule")
    layout, samples = _layout(args, method)
    if layout.tokens() > 50_000:
        raise UsageError(f"the layout has {layout.tokens()} tokens; at most 50000 can be drawn, make --video smaller")
    contents = layout.contents(samples=np.array([samples], np.int32))
    mask = masks.visibility(layout, rule, contents=contents, queries=None, keys=None)
    assert mask is not None
    one_sample, _ = _layout(argparse.Namespace(**vars(args) | {"samples": 1}), method)
    picture = draw_layout(
        layout,
        np.asarray(rope.positions(layout, scheme, contents, stream=None))[0],
        mask,
        title=args.method,
        subtitle=f"positions: {method.scheme}     visibility: {args.mask or method.rule}",
        principles=rope.principles(one_sample, scheme) if "reference" in {s.kind for s in layout.segments} else None,
        block=args.block,
    )
    make_writable_folder(args.out.parent, needed_bytes=1_000_000)
    with written_whole(args.out) as temporary:
        picture.save(temporary)
    print(f"{args.out}: {layout.tokens()} tokens in {len(layout.segments)} segments")
    return 0


def _layout(args: argparse.Namespace, method: Method):
    """The layout to draw and the sample that each of its segments belongs to."""
    from kaleido_jax.layout import Segment, TokenLayout

    text = method.text if args.text is None else args.text
    prompt = lambda shot: [Segment(kind="text", grid=(text, 1, 1), shot=shot)] if text else []
    one: list[Segment] = []
    if method.shots:
        one += [*prompt(0), Segment(kind="dummy", grid=(1, *args.video[1:]))]
        for shot in range(1, args.shots + 1):
            one += [*prompt(shot), Segment(kind="video", grid=args.video, shot=shot)]
    else:
        video = [*prompt(0), Segment(kind="video", grid=args.video)]
        grid = args.reference or (1, *args.video[1:])
        subjects = () if method.references == "none" else args.references
        references = [Segment(kind="reference", grid=grid, subject=subject) for subject in subjects]
        one = video + references if method.references == "last" else references + video
    return TokenLayout(tuple(one * args.samples)), [sample for sample in range(args.samples) for _ in one]


def _grid(words: str) -> Grid:
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4}){2}", words):
        raise argparse.ArgumentTypeError(
            f"{words!r} is not a size; write frames, height and width in tokens like 5x6x10"
        )
    frames, height, width = (int(n) for n in words.split("x"))
    return frames, height, width


def _count(words: str) -> int:
    if not re.fullmatch(r"\d{1,5}", words):
        raise argparse.ArgumentTypeError(f"{words!r} is not a whole number between 0 and 99999")
    return int(words)


def _subjects(words: str) -> tuple[int, ...]:
    if words == "0":
        return ()
    if not re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", words):
        raise argparse.ArgumentTypeError(
            f"{words!r} is not a list of subjects; write the subject of each reference like 1,1,2"
        )
    return tuple(int(n) - 1 for n in words.split(","))
