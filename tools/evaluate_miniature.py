"""Measure a model's fidelity on held-out subjects of the procedural world, with and without their references.

    python tools/evaluate_miniature.py --out runs/fidelity
    python tools/evaluate_miniature.py --real-only --out runs/fidelity_real

For every case a video is made from one reference picture and a prompt, and another one from the same prompt and noise
with the reference withheld, both as `kaleido generate` makes them. `kaleido_jax.evaluation.fidelity` says whether the
subject is the right one of 16 (5 of the others share its dominant colour, 5 its silhouette), and whether motion and
scene are those of the prompt; it says the same of the real rendering of the case, which shows its own error. The table
has Wilson's 95 % intervals. Cases are taken by several processes (`--workers`), each on its own.

The folder receives `verdicts.jsonl` (a line a video), `videos/` (PNG, frames side by side), `summary.json` and
`sheet.png`. Run again with the same folder and options, it goes on where it was interrupted.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import tqdm
from PIL import Image, ImageDraw

from kaleido_jax.bundle import load_config
from kaleido_jax.data.world import World
from kaleido_jax.errors import KaleidoError, UsageError
from kaleido_jax.evaluation.cases import Case, fidelity_case
from kaleido_jax.evaluation.fidelity import QUESTIONS, FidelityJudge, Verdict, shares
from kaleido_jax.pipeline.models import find
from kaleido_jax.pipeline.request import Settings

REAL, GIVEN, WITHHELD = "real renderings", "reference given", "reference withheld"
SHEET_FRAMES = 5


def main() -> int:
    arguments = parse()
    try:
        evaluate(arguments)
    except KaleidoError as error:
        print(f"evaluate_miniature: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="miniature", help="a model that comes with the package, or a model folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes that make and judge videos; one a core"
    )
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's own")
    parser.add_argument("--guidance", type=float, help="scale of the text guidance; by default the model's own")
    parser.add_argument("--shift", type=float, help="of the sampler's times; by default the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of the first case's noise; each next case has the next")
    parser.add_argument(
        "--withheld",
        choices=("blank", "absent", "skip"),
        default="blank",
        help="in place of the reference: a white picture, none (models are rarely trained for that), or skip it",
    )
    parser.add_argument("--real-only", action="store_true", help="judge real renderings only; no model is loaded")
    parser.add_argument("--sheet-rows", type=int, default=24, help="cases on the contact sheet")
    arguments = parser.parse_args()
    for name in ("cases", "workers"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    return arguments


def evaluate(arguments: argparse.Namespace) -> None:
    settings: dict = {"world": {"height": 96, "width": 96, "frames": 17}}
    conditions, asked = [REAL], None
    if not arguments.real_only:
        asked, settings = ask(arguments)
        conditions += [GIVEN] if arguments.withheld == "skip" else [GIVEN, WITHHELD]
    size = (settings["world"]["height"], settings["world"]["width"], settings["world"]["frames"])
    store = Store(arguments.out, settings)
    left = {
        number: [condition for condition in conditions if (number, condition) not in store.verdicts]
        for number in range(arguments.cases)
    }
    world = World(size[:2], size[2])
    # The processes share the cores: one thread each, for numpy as for XLA.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "NPROC": str(max((os.cpu_count() or 1) // arguments.workers, 1))}
    spawn = multiprocessing.get_context("spawn")
    start = (size, None if asked is None else (arguments.model, asked, arguments.withheld))
    with ProcessPoolExecutor(arguments.workers, spawn, initializer=start_worker, initargs=start) as workers:
        tasks = {workers.submit(measure, number, wanted): number for number, wanted in left.items() if wanted}
        try:
            for done in tqdm.tqdm(as_completed(tasks), total=len(tasks), unit="case", file=sys.stderr):
                case = fidelity_case(world, tasks[done])
                for condition, video, verdict in done.result():
                    store.add(case, condition, video, dataclasses.asdict(verdict))
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
    report(store, conditions, arguments.cases)
    rows = [fidelity_case(world, number) for number in range(min(arguments.sheet_rows, arguments.cases))]
    sheet(store, rows, REAL if arguments.real_only else GIVEN).save(arguments.out / "sheet.png")


def ask(arguments: argparse.Namespace) -> tuple[Settings, dict]:
    """What is asked of the model for the first case, and everything that the videos depend on."""
    folder = find(arguments.model)
    config = load_config(folder)
    chosen = {name: getattr(arguments, name) for name in ("steps", "guidance", "shift")}
    asked = Settings(seed=arguments.seed, **chosen).resolved(config)
    digest = hashlib.sha256()
    for name in ("config.json", "transformer.safetensors", "vae.safetensors", "text.safetensors", "tokenizer.json"):
        digest.update((folder / name).read_bytes())
    settings = {
        "world": {"height": asked.height, "width": asked.width, "frames": asked.frames},
        "model": config.name,
        "sha256": digest.hexdigest(),
        "sampler": asked.sampler,
        **{name: getattr(asked, name) for name in chosen},
        "seed": arguments.seed,
        "withheld": arguments.withheld,
    }
    return asked, settings


class Worker:
    """What a process measures with. model: the model's name or folder, what is asked of it, and what it gets in place
    of a reference that is withheld; None for real renderings alone."""

    def __init__(self, size: tuple[int, int, int], model: tuple[str, Settings, str] | None):
        self.judge = FidelityJudge(World(size[:2], size[2]))
        if model is not None:
            from kaleido_jax.pipeline.pipeline import Pipeline

            name, self._asked, self._withheld = model
            self._pipeline = Pipeline.load(name)

    def video(self, case: Case, condition: str) -> np.ndarray:
        """uint8 `[f, h, w, 3]`."""
        if condition == REAL:
            return case.sample.video
        references = [case.reference]
        if condition == WITHHELD:
            references = [np.full_like(case.reference, 255)] if self._withheld == "blank" else []
        asked = dataclasses.replace(self._asked, seed=self._asked.seed + case.number)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is no reference picture")
            return self._pipeline(references=references, prompt=case.sample.prompt, settings=asked).video


worker: Worker  # of a process that measures


def start_worker(size: tuple[int, int, int], model: tuple[str, Settings, str] | None) -> None:
    """Once in every process that measures."""
    global worker
    worker = Worker(size, model)


def measure(number: int, conditions: Sequence[str]) -> list[tuple[str, np.ndarray, Verdict]]:
    """Each condition with the video of a case, and the verdict on it."""
    case = fidelity_case(worker.judge.world, number)
    videos = {condition: worker.video(case, condition) for condition in conditions}
    return [(condition, video, worker.judge(video, case)) for condition, video in videos.items()]


class Store:
    """What was found out so far, in a folder."""

    def __init__(self, folder: Path, settings: dict):
        self._folder = folder
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        if path.exists() and json.loads(path.read_text()) != settings:
            raise UsageError(f"{folder} holds results of another model or of other options; give another --out.")
        path.write_text(json.dumps(settings, indent=1) + "\n")
        self.settings = settings
        self._lines = folder / "verdicts.jsonl"
        self.verdicts: dict[tuple[int, str], dict] = {}
        lines = self._lines.read_text().splitlines() if self._lines.exists() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # an interrupted run's last line
                continue
            self.verdicts[entry["case"], entry["condition"]] = entry
        self._lines.write_text("".join(json.dumps(entry) + "\n" for entry in self.verdicts.values()))

    def add(self, case: Case, condition: str, video: np.ndarray, verdict: dict) -> None:
        if condition != REAL:
            Image.fromarray(np.concatenate(list(video), axis=1)).save(self._video(case, condition))
        entry = {
            "case": case.number,
            "condition": condition,
            "prompt": case.sample.prompt,
            "answer": case.answer,
            **verdict,
        }
        with self._lines.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.verdicts[case.number, condition] = entry

    def video(self, case: Case, condition: str) -> np.ndarray:
        if condition == REAL:
            return case.sample.video
        strip = np.asarray(Image.open(self._video(case, condition)))
        return np.stack(np.split(strip, len(case.sample.video), axis=1))

    def summary(self, summary: dict) -> None:
        (self._folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")

    def _video(self, case: Case, condition: str) -> Path:
        return self._folder / "videos" / f"{case.number:05d}.{condition.replace(' ', '_')}.png"


def report(store: Store, conditions: list[str], cases: int) -> None:
    """Print the table and write the summary."""
    columns = {
        condition: shares(store.verdicts[number, condition]["right"] for number in range(cases))
        for condition in conditions
    }
    print("| right | " + " | ".join(conditions) + " |")
    print("|---|" + "---|" * len(conditions))
    for question in (*QUESTIONS, "all three"):
        print(f"| {question} | " + " | ".join(str(columns[condition][question]) for condition in conditions) + " |")
    results = {
        condition: {
            name: {"right": share.right, "total": share.total, "share": share.value, "interval": share.interval}
            for name, share in column.items()
        }
        for condition, column in columns.items()
    }
    store.summary({"settings": store.settings, "results": results})


def sheet(store: Store, cases: Sequence[Case], condition: str) -> Image.Image:
    """One row a case: reference, the judged frames, the real frames; marks say what is right (green) and wrong
    (red)."""
    height, width, gap, label = *cases[0].sample.video.shape[1:3], 4, 16
    shown = np.unique(np.linspace(0, len(cases[0].sample.video) - 1, SHEET_FRAMES).round().astype(int))
    groups = [condition] if condition == REAL else [condition, REAL]
    columns = 1 + len(groups) * len(shown)
    picture = Image.new(
        "RGB", (columns * (width + gap) + gap * len(groups), len(cases) * (height + label + gap)), "white"
    )
    draw = ImageDraw.Draw(picture)
    for row, case in enumerate(cases):
        top = row * (height + label + gap)
        picture.paste(Image.fromarray(case.reference), (0, top + label))
        draw.text((2, top + 2), f"{case.number}: {case.sample.prompt}", fill="black")
        left = width + 2 * gap
        for group in groups:
            verdict = store.verdicts[case.number, group]
            video = store.video(case, group)
            for frame in shown:
                picture.paste(Image.fromarray(video[frame]), (left, top + label))
                left += width + gap
            for place, question in enumerate(QUESTIONS):
                colour = (30, 150, 60) if verdict["right"][question] else (205, 30, 40)
                x = left - (3 - place) * (label + 2) - gap
                draw.rectangle((x, top, x + label - 2, top + label - 3), fill=colour)
                draw.text((x + 4, top + 1), question[0].upper(), fill="white")
            left += gap
    return picture


if __name__ == "__main__":
    sys.exit(main())
