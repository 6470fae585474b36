"""`kaleido evaluate RUN_DIR --suite NAME --out FOLDER`: scores of a folder of videos."""

import argparse
import sys
from pathlib import Path

from kaleido_jax.errors import ExitCode, InputError, UsageError, printable, unknown_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments; imports nothing heavy."""
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder with a manifest.json, or with videos alone")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument(
        "--suite", action="append", default=[], metavar="NAME",
        help="kaleido (default), vbench, anyid, contextanyone, characonsist, lct, leaks; repeat it for several",
    )  # fmt: skip
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help="one score, beside the suites'")
    parser.add_argument(
        "--encoder", action="append", default=[], metavar="ROLE=PATH",
        help="weights for clip, dino, vbench-dino, clip-l14, viclip, musiq, amt, arcface, curricularface; "
        "=world needs none",
    )  # fmt: skip
    parser.add_argument(
        "--features", action="append", default=[], metavar="NAME=FOLDER",
        help="features that another program made, for arcface or curricularface: FOLDER/<case>.npz",
    )  # fmt: skip
    parser.add_argument(
        "--faces", type=Path, metavar="FOLDER",
        help="five points of each face, for the encoders arcface and curricularface: FOLDER/<case>.npz",
    )  # fmt: skip
    parser.add_argument(
        "--scores", action="append", default=[], type=Path, metavar="FILE",
        help="scores that another program gave, in VBench's JSON form",
    )  # fmt: skip
    parser.add_argument("--aesthetic-head", type=Path, metavar="FILE", help="LAION's linear head for CLIP ViT-L/14")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="VBench's {file name: prompt} of a flat folder")
    parser.add_argument("--opens2v", type=Path, metavar="FILE", help="a case JSON of OpenS2V-Eval")
    parser.add_argument("--opens2v-pictures", type=Path, metavar="FOLDER", help="what its img_paths are relative to")
    parser.add_argument(
        "--world-detector", action="store_true",
        help="find the subjects of the procedural world's cases that have no masks, from what they look like",
    )  # fmt: skip
    parser.add_argument("--temporal-encoder", default="clip", metavar="ROLE", help="of temporal consistency")
    parser.add_argument(
        "--undetected", choices=("zero", "skip"), default="zero",
        help="a frame without the subject counts 0 (default), or not at all",
    )  # fmt: skip
    parser.add_argument(
        "--over-references", choices=("mean", "max"), default="mean",
        help="S2V Decoupling with several references: their mean (default), or the one that is copied most",
    )  # fmt: skip
    parser.add_argument(
        "--present", type=float, default=0.5, metavar="X", help="similarity from which a region is taken for a subject"
    )
    parser.add_argument(
        "--as-published", action="store_true", help="with the known mistakes of official code (docs/evaluation.md)"
    )
    parser.add_argument("--shard", metavar="I/N", help="score every N-th case from the I-th; a run without it merges")


def run(args: argparse.Namespace) -> int:
    """Scores what is not scored yet and writes the results."""
    from kaleido_jax.evaluation.runs import read_run

    shard = _shard(args.shard)
    found = read_run(args.run, prompts=args.prompts, opens2v=args.opens2v, opens2v_pictures=args.opens2v_pictures)
    from kaleido_jax.evaluation.scoring import Scores, read_given, results, score_run, write_results

    names = _names(args)
    given: dict[str, dict[str, float]] = {}
    for path in args.scores:
        for name, values in read_given(path, found, as_published=args.as_published).items():
            given.setdefault(name, {}).update(values)
    tools = _tools(args, names)
    settings = {
        "run": str(args.run.resolve().name),
        "encoders": {role: encoder.name for role, encoder in {**tools.encoders, **tools.face_encoders}.items()}
        | {role: x.name for role, x in tools.networks.items() if x is not None},
        "features": {name: folder.name for name, folder in tools.features.items()},
        "faces": args.faces.name if args.faces else None,
        "aesthetic_head": args.aesthetic_head.name if args.aesthetic_head else None,
        "temporal_encoder": args.temporal_encoder,
        "undetected": tools.undetected,
        "over_references": args.over_references,
        "world_detector": args.world_detector,
        "present": args.present,
        "as_published": args.as_published,
        "cut_out": "smallest square around the mask, white outside it",
    }
    for name in found.extra:
        _note(f"{printable(name)} belongs to no case and is not scored")
    scores = Scores(args.out, settings, shard)

    def progress(number: int, total: int, case: str) -> None:
        _note(f"case {number} of {total}: {printable(case, 60)}")

    score_run(found, names, tools, scores, given=given, shard=shard, progress=progress)
    if shard != (1, 1):
        _note(f"shard {args.shard} is scored; run the command without --shard to put all together")
        return ExitCode.DONE
    document = results(found, names, scores, as_published=args.as_published)
    written = write_results(args.out, found, document, scores)
    if len(written) < 3:
        _note("there is no scores.parquet, because pyarrow is not installed (pip install 'kaleido_jax[data]')")
    _table(document)
    return ExitCode.DONE


def _names(args: argparse.Namespace) -> list[str]:
    from kaleido_jax.evaluation.suites import METRICS, SUITES
    from kaleido_jax.names import lookup

    suites = args.suite or ([] if args.metric else ["kaleido"])
    names = [name for suite in suites for name in lookup(SUITES, suite, "suite of scores")]
    for name in args.metric:
        lookup(METRICS, name, "score")
    return list(dict.fromkeys([*names, *args.metric]))


def _tools(args: argparse.Namespace, names: list[str]):
    """The encoders that the scores need, loaded. Raises for paths and roles that are wrong, needed or not."""
    from kaleido_jax.evaluation import encoders, faces
    from kaleido_jax.evaluation.evidence import Tools
    from kaleido_jax.evaluation.quality import ImagingQuality
    from kaleido_jax.evaluation.smoothness import MotionSmoothness
    from kaleido_jax.evaluation.suites import METRICS
    from kaleido_jax.evaluation.video_text import VideoText

    sources = dict(_pair(word, "encoder", "ROLE=PATH") for word in args.encoder)
    networks = {"viclip": VideoText, "musiq": ImagingQuality, "amt": MotionSmoothness}
    roles = (*encoders.ROLES, *faces.ROLES, *networks)
    for role, source in sources.items():
        if role not in roles:
            raise UsageError(unknown_name("role of an encoder", role, roles))
        if source == "world" and role not in encoders.ROLES:
            raise UsageError(f"--encoder is {role}=world; the world's own features are no {role}: give its weights.")
        if source != "world" and not Path(source).exists():
            raise InputError(f"{printable(source)}: there are no weights at this path; give a file or folder of them.")
    if args.temporal_encoder not in encoders.ROLES:
        raise UsageError(unknown_name("role of an encoder", args.temporal_encoder, encoders.ROLES))
    if args.faces is not None and not args.faces.is_dir():
        raise InputError(f"{printable(str(args.faces))}: there is no such folder of points of faces.")
    features = {}
    for word in args.features:
        name, folder = _pair(word, "features", "NAME=FOLDER")
        if name not in faces.ROLES:
            raise UsageError(unknown_name("kind of features", name, faces.ROLES))
        if not Path(folder).is_dir():
            raise InputError(f"{printable(folder)}: there is no such folder of features.")
        features[name] = Path(folder)
    needed = {need for name in names for need in METRICS[name].needs} | {args.temporal_encoder}
    loaded: dict[str, encoders.Encoder] = {}
    face_encoders: dict[str, faces.FaceFeatures] = {}
    for role, source in sources.items():
        if role in faces.ROLES and f"faces:{role}" in needed:
            face_encoders[role] = faces.FaceFeatures(source)
        elif role in encoders.ROLES and role in needed:
            same = next((loaded[other] for other in loaded if sources[other] == source), None)
            loaded[role] = same or encoders.load_encoder(role, source)
    text = None
    if "prompt" in needed and sources.get("clip", "world") != "world":
        text = encoders.ClipText(sources["clip"])
    head = None
    if args.aesthetic_head:
        head = encoders.load_head(args.aesthetic_head)
    return Tools(
        encoders=loaded, text=text, features=features, head=head, temporal_role=args.temporal_encoder,
        face_encoders=face_encoders, faces=args.faces,
        **{role: make(sources[role]) for role, make in networks.items() if role in sources and role in needed},
        world_detector=args.world_detector,
        present=args.present, over_references=args.over_references,
        # As OpenS2V's code: a frame in which nothing is found is left out.
        undetected="skip" if args.as_published else args.undetected,
    )  # fmt: skip


def _pair(word: str, option: str, form: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    if not name or not value:
        raise UsageError(f"--{option} is {printable(word)!r}; write {form}.")
    return name, value


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total)):
        raise UsageError(f"--shard is {printable(text)!r}; write I/N, such as 2/4, with I from 1 to N.")
    return int(number), int(total)


def _table(document: dict) -> None:
    print(f"{document['cases']} cases of {printable(document['run'])}, {len(document['failed'])} of them failed")
    for name, found in document["metrics"].items():
        arrow = "" if found["higher_is_better"] else "  (lower is better)"
        left = sum(found["left_out"].values())
        rest = f", {left} not applicable" if left else ""
        print(
            f"{name:26} {found['mean']:8.4f}  [{found['low']:.4f}, {found['high']:.4f}]  {found['count']} videos"
            f"{rest}{arrow}"
        )
    for name, reason in document["not_scored"].items():
        print(f"{name:26} not scored: {printable(reason)}")
    for case, reason in document["failed"].items():
        print(f"failed: {printable(case)}: {printable(reason)}; its scores are the worst there are")
    for case, reason in document["unreadable"].items():
        print(f"unreadable: {printable(case)}: {printable(reason)} Scores that need it have no value for this case.")
    for case, cut in document["prompt_tokens_cut"].items():
        for encoder, tokens in cut.items():
            print(f"prompt of {printable(case)}: {encoder} did not read its last {tokens} tokens")


def _note(text: str) -> None:
    print(f"kaleido: {text}", file=sys.stderr, flush=True)
