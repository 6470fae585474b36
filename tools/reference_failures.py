"""How a model fails on references that its data pipeline never made: JPEG, blur, light, crops, occlusion, poses, ...

    kaleido train configs/contextanyone_miniature.py --workdir runs/ca
    kaleido train configs/contextanyone_miniature.py --workdir runs/ca-faults data.perturbed=0.5
    python tools/reference_failures.py --model runs/ca/model --out runs/failures/plain
    python tools/reference_failures.py --model runs/ca-faults/model --out runs/failures/trained-with-faults
    python tools/reference_failures.py --table runs/failures/plain runs/failures/trained-with-faults

For held-out cases of the procedural world, a video is made from the reference as it is and from the same reference with
each fault of `kaleido_jax.data.perturbations` in three strengths, all from the same noise and prompt. The judge of
`kaleido_jax.evaluation.fidelity` says whether the subject is the right one of 16. A line is written for each video, so
a run that was stopped goes on where it was; it takes no attention. The table has Wilson's 95 % intervals.
"""

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kaleido_jax.data.perturbations import FAULTS, STRENGTHS, perturbed, strangers
from kaleido_jax.data.world import World
from kaleido_jax.errors import InputError, KaleidoError, UsageError
from kaleido_jax.evaluation.cases import Case, fidelity_case
from kaleido_jax.evaluation.fidelity import FidelityJudge, Verdict
from kaleido_jax.evaluation.intervals import Share

WHOLE = ("as it is", 0)
LINES, SETTINGS = "verdicts.jsonl", "settings.json"
Make = Callable[[np.ndarray, str], np.ndarray]  # (reference, prompt) -> video


def conditions() -> Iterator[tuple[str, int]]:
    """The reference as it is, then every fault in every strength."""
    return itertools.chain([WHOLE], itertools.product(FAULTS, STRENGTHS))


def reference_of(world: World, case: Case, fault: str, strength: int) -> np.ndarray:
    """The picture that the model is given."""
    if (fault, strength) == WHOLE:
        return case.reference
    others = strangers(world, case.number, "heldout") if fault == "crowded" else ()
    return perturbed(case.reference, fault, strength, case.number, others)


def study(
    folder: Path, world: World, make: Make, judge: Callable[[np.ndarray, Case], Verdict], cases: int, settings: dict
) -> None:
    """Makes and judges what the folder lacks; a line for each video is on the disk before the next one begins."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if path.exists() and json.loads(path.read_text()) != settings:
        raise UsageError(f"{folder} holds results of another model or of other options; give another --out.")
    path.write_text(json.dumps(settings, indent=1) + "\n")
    done = {(line["case"], line["fault"], line["strength"]) for line in read(folder)}
    for number in range(cases):
        missing = [condition for condition in conditions() if (number, *condition) not in done]
        case = fidelity_case(world, number) if missing else None
        for fault, strength in missing:
            assert case is not None
            video = make(reference_of(world, case, fault, strength), case.sample.prompt)
            verdict = dataclasses.asdict(judge(video, case))
            line = {"case": number, "fault": fault, "strength": strength, **verdict}
            with (folder / LINES).open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        print(f"case {number + 1} of {cases}", file=sys.stderr, flush=True)


def read(folder: Path) -> list[dict]:
    """The lines of a folder; one that an interruption cut short is dropped from the file too."""
    path = folder / LINES
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def table(folders: Sequence[Path]) -> str:
    """The share of videos with the right subject, a row for each fault and strength, a column for each folder."""
    found = []
    for folder in folders:
        lines = read(folder)
        if not lines:
            raise InputError(f"{folder} holds no {LINES}; make it with --model and --out first.")
        found.append(lines)
    rows = [f"| reference | {' | '.join(folder.name for folder in folders)} |", "| --- " * (1 + len(folders)) + "|"]
    for fault, strength in conditions():
        cells = []
        for lines in found:
            asked = [line for line in lines if (line["fault"], line["strength"]) == (fault, strength)]
            right = [line["right"]["identity"] for line in asked]
            cells.append(str(Share(sum(right), len(right))) if right else "")
        rows.append(f"| {fault}{f', {strength}' if strength else ''} | {' | '.join(cells)} |")
    return "\n".join(rows)


def maker(model: str, seed: int, steps: int | None) -> tuple[Make, World, dict]:
    """A function that makes videos with a model, the world of its size, and what the videos depend on."""
    from kaleido_jax.pipeline.models import find
    from kaleido_jax.pipeline.pipeline import Pipeline

    pipeline = Pipeline.load(model)
    defaults = pipeline.config.defaults
    settings = {
        "model": pipeline.config.name,
        "method": pipeline.config.method,
        "weights": sorted((file.name, file.stat().st_size) for file in find(model).glob("*.safetensors")),
        "seed": seed,
        "steps": steps or defaults.steps,
    }

    def make(reference: np.ndarray, prompt: str) -> np.ndarray:
        return pipeline(references=[reference], prompt=prompt, seed=seed, steps=steps).video

    return make, World((defaults.height, defaults.width), defaults.frames), json.loads(json.dumps(settings))


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder, of a method that takes one reference")
    parser.add_argument("--out", type=Path, help="folder of the verdicts")
    parser.add_argument("--cases", type=int, default=40, help="each makes 25 videos")
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FOLDER", help="print the table of these, and end")
    arguments = parser.parse_args(words)
    try:
        if not arguments.table:
            if not (arguments.model and arguments.out):
                raise UsageError("Give --model and --out, or --table with folders that were made with them.")
            make, world, settings = maker(arguments.model, arguments.seed, arguments.steps)
            study(arguments.out, world, make, FidelityJudge(world), arguments.cases, settings)
        print(table(arguments.table or [arguments.out]))
    except KaleidoError as error:
        print(f"reference_failures: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
