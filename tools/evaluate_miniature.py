"""Measure a model's fidelity on held-out subjects of the procedural world, with and without their references.

    python tools/evaluate_miniature.py --out runs/fidelity
    python tools/evaluate_miniature.py --real-only --out runs/fidelity_real

For every case a video is made from one reference picture and a prompt, and another one from the same prompt and noise
with the reference withheld. `kaleido_jax.evaluation.fidelity` says whether the subject is the right one of 16 (5 of
the others share its dominant colour, 5 its silhouette), and whether motion and scene are those of the prompt; it says
the same of the real rendering of the case, which shows its own error. The table has Wilson's 95 % intervals.

The folder receives `verdicts.jsonl` (a line a video), `videos/` (PNG, frames side by side), `summary.json` and
`sheet.png`. Run again with the same folder and options, it goes on where it was interrupted.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import tqdm
from PIL import Image, ImageDraw

from kaleido_jax.data.world import World
from kaleido_jax.errors import KaleidoError, UsageError
from kaleido_jax.evaluation.cases import Case, fidelity_case
from kaleido_jax.evaluation.fidelity import QUESTIONS, FidelityJudge, Verdict, shares

REAL, GIVEN, WITHHELD = "real renderings", "reference given", "reference withheld"
SHEET_FRAMES = 5

# (cases, whether the references are given) -> uint8 videos
Generate = Callable[[Sequence[Case], bool], list[np.ndarray]]

judge: FidelityJudge  # of a process that judges


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
    parser.add_argument("--batch", type=int, default=8, help="videos made at a time")
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's own")
    parser.add_argument("--guidance", type=float, help="scale of the text guidance; by default the model's own")
    parser.add_argument("--shift", type=float, help="of the sampler's times; by default the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument(
        "--withheld",
        choices=("blank", "absent", "skip"),
        default="blank",
        help="in place of the reference: a white picture, none (models are rarely trained for that), or skip it",
    )
    parser.add_argument("--real-only", action="store_true", help="judge real renderings only; no model is loaded")
    parser.add_argument("--sheet-rows", type=int, default=24, help="cases on the contact sheet")
    arguments = parser.parse_args()
    for name in ("cases", "batch"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    return arguments


def evaluate(arguments: argparse.Namespace) -> None:
    settings: dict = {"world": {"height": 96, "width": 96, "frames": 17}}
    generate: Generate | None = None
    conditions = [REAL]
    if not arguments.real_only:
        generate, settings = load_generator(arguments)
        conditions += [GIVEN] if arguments.withheld == "skip" else [GIVEN, WITHHELD]
    size = (settings["world"]["height"], settings["world"]["width"], settings["world"]["frames"])
    store = Store(arguments.out, settings)
    world = World(size[:2], size[2])
    missing = [
        (number, [condition for condition in conditions if (number, condition) not in store.verdicts])
        for number in range(arguments.cases)
    ]
    missing = [entry for entry in missing if entry[1]]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # in the processes that judge, one for each core
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(os.cpu_count(), spawn, initializer=make_judge, initargs=(size,)) as judges,
        tqdm.tqdm(total=arguments.cases, initial=arguments.cases - len(missing), unit="case", file=sys.stderr) as bar,
    ):
        for group in chunks(missing, arguments.batch):
            cases = [fidelity_case(world, number) for number, _ in group]
            for condition in conditions:
                wanted = [case for case, (_, needs) in zip(cases, group) if condition in needs]
                if not wanted:
                    continue
                if condition == REAL:
                    videos = [case.sample.video for case in wanted]
                else:
                    assert generate is not None
                    bar.set_postfix_str(f"making videos, {condition}")
                    videos = generate(wanted, condition == GIVEN)
                bar.set_postfix_str(f"judging, {condition}")
                verdicts = judges.map(verdict_of, [case.number for case in wanted], videos)
                for case, video, verdict in zip(wanted, videos, verdicts):
                    store.add(case, condition, video, dataclasses.asdict(verdict))
            bar.update(len(group))
    report(store, conditions, arguments.cases)
    rows = [fidelity_case(world, number) for number in range(min(arguments.sheet_rows, arguments.cases))]
    sheet(store, rows, REAL if arguments.real_only else GIVEN).save(arguments.out / "sheet.png")


def make_judge(size: tuple[int, int, int]) -> None:
    """Once in every process that judges."""
    global judge
    judge = FidelityJudge(World(size[:2], size[2]))


def verdict_of(number: int, video: np.ndarray) -> Verdict:
    """The verdict on a video that was made for case `number`."""
    return judge(video, fidelity_case(judge.world, number))


def chunks(entries: list, size: int) -> Iterator[list]:
    return (entries[first : first + size] for first in range(0, len(entries), size))


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


def load_generator(arguments: argparse.Namespace) -> tuple[Generate, dict]:
    """A function that makes videos of many cases at once, and everything that its videos depend on."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from kaleido_jax.bundle import load_bundle, merge, parameters
    from kaleido_jax.diffusion import guidance, samplers
    from kaleido_jax.layout import unpatchify
    from kaleido_jax.methods import kaleido
    from kaleido_jax.pipeline.compile_cache import use_compile_cache
    from kaleido_jax.pipeline.models import find

    use_compile_cache()
    folder = find(arguments.model)
    bundle = load_bundle(folder)
    config, defaults = bundle.config, bundle.config.defaults
    chosen = {name: getattr(arguments, name) for name in ("steps", "guidance", "shift")}
    chosen = {name: getattr(defaults, name) if value is None else value for name, value in chosen.items()}
    modules = {"transformer": bundle.transformer, "vae": bundle.vae, "text": bundle.text}
    graphs = {name: nnx.split(module)[0] for name, module in modules.items()}
    weights = {name: parameters(module) for name, module in modules.items()}
    pt, ph, pw = patch = config.transformer.patch
    vae = config.vae
    height, width = defaults.height // vae.spatial_factor, defaults.width // vae.spatial_factor
    frames = vae.latent_frames(defaults.frames)
    grid = (frames // pt, height // ph, width // pw)
    layout = kaleido.layout(grid, [(1, *grid[1:])], text_tokens=defaults.text_tokens)
    rule = guidance.text_guidance(chosen["guidance"])
    times = samplers.euler(chosen["steps"], chosen["shift"])

    @jax.jit
    def make(weights, texts, pictures, counts, keys):
        networks = {name: merge(graphs[name], values) for name, values in weights.items()}
        pixels = pictures.astype(jnp.float32)[:, None] / 127.5 - 1.0
        references = networks["vae"].encode(pixels)
        contexts = {name: (networks["text"](ids, lengths), lengths) for name, (ids, lengths) in texts.items()}

        def velocity(x, time, context):
            words, lengths, counts, references = context
            table = kaleido.table(
                layout,
                times=jnp.broadcast_to(time, (x.shape[0],)),
                reference_counts=counts,
                text_lengths=lengths,
                scheme=config.scheme,
            )
            tokens = kaleido.tokens(x, [references], patch)
            return unpatchify(networks["transformer"](tokens, table, words, layout=layout), grid, patch)

        shape = (frames, height, width, config.transformer.out_channels)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
        texts_of = [contexts["prompt" if branch.text == "prompt" else "empty"] for branch in rule.branches]
        conditions = [(*text, counts, references) for text in texts_of]
        latents = samplers.sample_scan(guidance.guided(velocity, conditions, rule), noise, times)
        # One video at a time: the decoder needs far more memory than the transformer.
        video = jax.lax.map(lambda x: networks["vae"].decode(x[None])[0], latents)
        return jnp.round((video + 1.0) * 127.5).astype(jnp.uint8)

    encode = functools.partial(bundle.tokenizer.encode, length=defaults.text_tokens)

    def generate(cases: Sequence[Case], given: bool) -> list[np.ndarray]:
        # A last, smaller batch is filled up, so that there is one program.
        rows = [cases[i % len(cases)] for i in range(arguments.batch)]
        texts = {"prompt": encode([case.sample.prompt for case in rows]), "empty": encode([""] * len(rows))}
        pictures = np.stack([case.reference if given else np.full_like(case.reference, 255) for case in rows])
        counts = np.full(len(rows), int(given or arguments.withheld == "blank"), np.int32)
        key = jax.random.key(arguments.seed)
        keys = jnp.stack([jax.random.fold_in(key, case.number) for case in rows])
        videos = make(weights, texts, pictures, counts, keys)
        return list(np.asarray(videos)[: len(cases)])

    digest = hashlib.sha256()
    for name in ("config.json", "transformer.safetensors", "vae.safetensors", "text.safetensors", "tokenizer.json"):
        digest.update((folder / name).read_bytes())
    settings = {
        "world": {"height": defaults.height, "width": defaults.width, "frames": defaults.frames},
        "model": config.name,
        "sha256": digest.hexdigest(),
        "sampler": "euler",
        **chosen,
        "seed": arguments.seed,
        "withheld": arguments.withheld,
    }
    return generate, settings


if __name__ == "__main__":
    sys.exit(main())
