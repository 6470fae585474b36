"""What the references are made of, trained and measured: cross pairs, none, crops alone, segments alone.

    python tools/cross_pair_ablation.py --out runs/ablation
    python tools/cross_pair_ablation.py --out runs/ablation --print

Kaleido's table 3 compares S2V consistency and decoupling of a model trained with 40 % cross pairs (0.708, 0.310) and
with none (0.670, 0.297). Here the procedural world is filmed and curated by `configs/curation_classical.py` once for
each kind of data, a miniature is trained on each with the same seed and steps, all make the same held-out test set, and
`kaleido evaluate` scores them; `report/` is the table. Every step is a `kaleido` command that goes on where it was
stopped, and those that ended are not begun again: run the same command until it says it is done. `--print` only shows
the commands. It runs in one environment that has the extras `curation` and `data`.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from kaleido_jax.data.world import World
from kaleido_jax.media.storage import written_whole
from kaleido_jax.media.video import write_mp4

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "kaleido_jax" / "weights" / "miniature"
SIZE, FRAMES, FPS = 96, 17, 8
# The kinds of data, as fields of the curation: segments and crops alone are what is left of the mix without the others.
VARIANTS = {
    "cross_40": ("pairs.cross=0.4",),
    "cross_0": ("pairs.cross=0.0",),
    "crop_only": ("pairs.mix=1,0,0,0", "pairs.cross=0.0", "pairs.drawing=separate"),
    "segment_only": ("pairs.mix=0,1,0,0", "pairs.cross=0.0", "pairs.drawing=separate"),
}


def commands(out: Path, options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """(name, arguments of `kaleido`) of every step, in order."""
    steps: list[tuple[str, list[str]]] = []
    add = lambda name, *arguments: steps.append((name, [str(one) for one in arguments]))
    add("testset", "testset", "kaleido", "--out", out / "set", "--cases", options.cases)
    for name, fields in VARIANTS.items():
        folder = out / name
        curated = ("curate", ROOT / "configs" / "curation_classical.py", *fields, "--input", out / "videos")
        add(f"{name}: data", *curated, "--output", folder / "curated", "--runner", options.runner, "--write", "kaleido")
        data = (
            ROOT / "configs" / "miniature.py", "data.source=encoded", "data.text_embeddings=True",
            f"text_encoder={MODEL}", f"data.folder={folder / 'encoded'}", "data.heldout=16",
        )  # fmt: skip
        encoded = ("--input", folder / "curated" / "kaleido", "--out", folder / "encoded")
        add(f"{name}: encoding", "data", "encode", *data, *encoded)
        run = (f"train.steps={options.steps}", "--workdir", folder / "run")
        add(f"{name}: training", "train", *data, *run)
        add(f"{name}: model", "train", *data, *run, "--export", folder / "model")
        add(
            f"{name}: videos", "generate", "--model", folder / "model", "--prompts", out / "set" / "jobs.jsonl",
            "--out", folder / "set" / "videos",
        )  # fmt: skip
        add(
            f"{name}: scores", "evaluate", folder / "set", "--suite", "kaleido", "--suite", "leaks", "--out",
            folder / "scores", "--world-detector", "--encoder", "clip=world", "--encoder", "vbench-dino=world",
        )  # fmt: skip
    add("report", "report", *(out / name / "scores" for name in VARIANTS), "--out", out / "report")
    return steps


def film(folder: Path, clips: int) -> None:
    """Training videos of the world with their captions; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(SIZE, FRAMES)
    for seed in range(clips):
        words = folder / f"{seed:06d}.txt"  # written last
        if not words.is_file():
            sample = world.sample(seed)
            with written_whole(folder / f"{seed:06d}.mp4") as temporary:
                write_mp4(temporary, np.asarray(sample.video), FPS)
            with written_whole(words) as temporary:
                temporary.write_text(sample.prompt)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=8000, help="filmed; about half of them give a sample")
    parser.add_argument("--steps", type=int, default=20_000, help="of training, for each kind of data")
    parser.add_argument("--cases", type=int, default=8, help="of the test set, for each category")
    parser.add_argument("--runner", default="direct", help="of curation")
    parser.add_argument("--print", action="store_true", help="show the commands and run nothing")
    options = parser.parse_args()
    out = options.out.absolute()
    steps = commands(out, options)
    if options.print:
        print("\n".join(shlex.join(["kaleido", *arguments]) for _, arguments in steps))
        return 0
    film(out / "videos", options.clips)
    done_file = out / "done.json"
    done = json.loads(done_file.read_text()) if done_file.is_file() else []
    for name, arguments in steps:
        if arguments in done:
            continue
        print(f"== {name}", flush=True)
        if arguments[0] == "generate":  # the test set's manifest names the videos beside it
            target = Path(arguments[-1]).parent
            target.mkdir(parents=True, exist_ok=True)
            for path in (out / "set").rglob("*"):
                if path.is_file():
                    copy = target / path.relative_to(out / "set")
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(path.read_bytes())
        code = subprocess.run([sys.executable, "-c", "from kaleido_jax.cli import program; program()", *arguments])
        if code.returncode:
            print(f"{name} ended with {code.returncode}; run the same command to go on", file=sys.stderr)
            return code.returncode
        done.append(arguments)
        with written_whole(done_file) as temporary:
            temporary.write_text(json.dumps(done))
    print(f"done: {out / 'report'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
