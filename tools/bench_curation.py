"""What curation with classical models finds on the procedural world, where the truth is known, and how fast it is.

    python tools/bench_curation.py --clips 120
    python tools/bench_curation.py --clips 400 --speed --rounds 3 --out docs/bench --machine "a quiet machine"

Needs the extras `curation` and `data`. The first prints segmentation, grounding, categories and the check of the cross
pairs; `--speed` prints clips a second of every stage, what Beam costs and a second process gains over a plain loop, and
how much memory each run took. Runs of a round follow each other, so that their ratios hold on a machine that is busy
with other work too; processor time tells more there than the clock. `--out FOLDER` writes the numbers as JSON.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np

from kaleido_jax import config as configuration
from kaleido_jax.curation import assemble
from kaleido_jax.curation.encoding import encoder
from kaleido_jax.curation.engine import Runner, curate, entries
from kaleido_jax.curation.pictures import mask_overlap
from kaleido_jax.curation.readers import read
from kaleido_jax.curation.records import Candidate, Clip
from kaleido_jax.curation.settings import Curation
from kaleido_jax.curation.stages import decoder, find_shots, read_clip, stages
from kaleido_jax.curation.store import Store
from kaleido_jax.curation.taxonomy import default_taxonomy
from kaleido_jax.data.lexicon import ANY_NOUNS, NOUN_SYNONYMS
from kaleido_jax.data.objects import OBJECTS
from kaleido_jax.data.world import Sample, World
from kaleido_jax.media.video import write_mp4

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "curation_classical.py"
SIZE, FRAMES, FPS = 96, 17, 8
STAGED = 60  # clips of which stages are timed one by one
GOOD = 0.7  # intersection over union from which a mask counts as right


def write_world(folder: Path, clips: int) -> None:
    """Videos 0 ... clips - 1 of the world with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(SIZE, FRAMES)
    for seed in range(clips):
        sample = world.sample(seed)
        write_mp4(folder / f"{seed:05d}.mp4", sample.video, FPS)
        (folder / f"{seed:05d}.txt").write_text(sample.prompt)


def processed(folder: Path, config: Curation, clips: int) -> Iterator[tuple[Sample, Clip]]:
    """Every video's sample and clip after the stages; the clip has the sample's frames."""
    world = World(SIZE, FRAMES)
    steps = stages(config)
    for source in sorted(read(config, folder), key=lambda source: source.path)[:clips]:
        sample = world.sample(int(Path(source.path).stem))
        for shot in find_shots(source, config).clips:
            clip = read_clip(source, shot, config)
            for stage in steps:
                clip = stage(clip)
            yield sample, clip


def subject_meant(sample: Sample, clip: Clip, one: Candidate) -> int:
    """The number of the subject that the candidate's words speak of: captions name subjects in their order."""
    if len(sample.truth["story"].identities) == 1:
        return 1
    start = next(mention.start for mention in clip.mentions if mention.phrase == one.phrase)
    joints = [match.start() for match in re.finditer(r" (and|while) (?=(the|an?) )", clip.caption)]
    return 1 if not joints or start < joints[0] else 2


def truth_of(sample: Sample, clip: Clip, one: Candidate) -> tuple[float, float]:
    """(overlap with the subject that is meant, with the subject that fits best) in the candidate's key frame."""
    masks = sample.masks[clip.keys[one.frame]]
    found = one.masks[one.frame]
    overlaps = [mask_overlap(found, masks == number + 1) for number in range(len(sample.truth["story"].identities))]
    return overlaps[subject_meant(sample, clip, one) - 1], max(overlaps)


def print_quality(folder: Path, config: Curation, clips: int) -> dict[str, float]:
    names = default_taxonomy()
    nouns = {*OBJECTS, *ANY_NOUNS, *NOUN_SYNONYMS, *(word for words in NOUN_SYNONYMS.values() for word in words)}
    said = right = found = named = 0
    rows = []
    for sample, clip in processed(folder, config, clips):
        subjects = [word for word in re.findall(r"[a-z]+", clip.caption) if word in nouns]
        heads = [mention.phrase.split()[-1] for mention in names.mentions(clip.caption)]
        said += len(subjects)
        found += sum(word in heads for word in subjects)
        right += sum(head in nouns for head in heads)
        named += len(heads)
        rows += [(one.dropped, *truth_of(sample, clip, one)) for one in clip.candidates if one.masks is not None]
    kept = [row for row in rows if row[0] is None]
    dropped = [row for row in rows if row[0] is not None]
    numbers = {"clips": clips, "segmented": len(rows), "kept": len(kept)}
    numbers |= {"category_recall": found / said, "category_precision": right / named}
    print(f"{clips} clips, {len(rows)} subjects segmented, {len(kept)} kept")
    print(f"category: recall {found / said:.3f} of {said} nouns, precision {right / named:.3f} of {named} mentions")
    for label, group in (("segmented", rows), ("kept", kept), ("dropped", dropped)):
        if group:
            best, meant = np.array([row[2] for row in group]), np.array([row[1] for row in group])
            numbers |= {f"{label}_miou": float(best.mean()), f"{label}_good": float((best > GOOD).mean())}
            numbers[f"{label}_meant"] = float((meant == best).mean())
            print(
                f"{label}: mIoU {best.mean():.3f}, IoU > {GOOD} for {(best > GOOD).mean():.3f}, "
                f"the subject that is meant for {(meant == best).mean():.3f}",
                flush=True,
            )
    return numbers


def print_pairs(folder: Path, config: Curation, output: Path) -> dict[str, float]:
    """No cross pair may show the scene that its video shows."""
    curate(config, folder, output, None)
    world, store = World(SIZE, FRAMES), Store(output)
    sources = {source.id: int(Path(source.path).stem) for source in read(config, folder)}
    everything = [
        store.facts(entry.id)
        for source in read(config, folder)
        for entry in entries(source, store)
        if entry.source is None
    ]
    whole = assemble.gather(everything, config)
    scene = lambda source: (lambda story: (story.scene, story.scene_seed))(world.story(sources[source]))
    references = set_elsewhere = apart = crossed = 0
    for facts in everything:
        for one in assemble.kept(facts):
            plan = assemble.reference_plan(facts, one, whole, config)
            references += 1
            crossed += plan["cross"]
            if plan["donor"]:
                set_elsewhere += 1
                apart += scene(facts["source"]["id"]) != scene(plan["donor"])
    print(f"references: {references}, cross pairs {crossed / references:.3f}, asked for {config.pairs.cross}")
    print(f"set before another scene: {set_elsewhere}, of which another scene than the video's: {apart}")
    return {"references": references, "cross": crossed, "set_elsewhere": set_elsewhere, "apart": apart}


def print_stages(folder: Path, config: Curation, clips: int, work: Path) -> dict[str, list[float]]:
    """Clips a second, stage by stage.

    By the clock, and by the processor time of this process, which does not count decoding and encoding but is not
    disturbed by what else a machine does.
    """
    sources = sorted(read(config, folder), key=lambda source: source.path)[:clips]
    spent: dict[str, np.ndarray] = {}

    def timed(name, function, *arguments):
        start = np.array([time.perf_counter(), time.process_time()])
        result = function(*arguments)
        spent[name] = spent.get(name, np.zeros(2)) - start + [time.perf_counter(), time.process_time()]
        return result

    find_shots(sources[0], config)  # starts the decoder
    steps, store = stages(config), Store(work / "stages")
    for source in sources:
        for shot in timed("slicing", find_shots, source, config).clips:
            clip = timed("decoding", read_clip, source, shot, config)
            for stage in steps:
                clip = timed(stage.name, stage, clip)
            timed("writing", store.write_clip, clip, config.frames.fps, config.frames.quality)
    rates = {name: (len(sources) / np.maximum(seconds, 1e-9)).tolist() for name, seconds in spent.items()}
    for name, (clock, own) in rates.items():
        print(f"{name}: {clock:.1f} clips/s, {own:.1f} by processor time", flush=True)
    return rates


RUNS = {"plain loop": None, "Beam, 1 worker": 1, "Beam, 2 workers": 2}


def one_run(folder: Path, name: str, output: Path) -> None:
    """A whole curation; prints seconds by the clock and of all processes, and the most memory that one of them held."""
    workers, start = RUNS[name], time.perf_counter()
    curate(configuration.load(CONFIG), folder, output, None if workers is None else Runner(workers=workers))
    clock = time.perf_counter() - start
    for helper in (decoder(configuration.load(CONFIG).limits), encoder()):
        helper.close()  # so that their time is counted
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
    print(json.dumps([clock, busy, max(own.ru_maxrss, others.ru_maxrss) / 1024]))


def run_alone(folder: Path, name: str, output: Path) -> list[float]:
    """`one_run` in a process of its own: (seconds by the clock, of all processors, MiB)."""
    command = [sys.executable, __file__, "--one", name, "--videos", str(folder), "--output", str(output)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(answer.strip().splitlines()[-1])


def print_runs(folder: Path, clips: int, work: Path, rounds: int) -> dict[str, object]:
    """Whole runs: what Beam costs and a second worker gains, by the rounds' medians; the memory of a short one."""
    seen: dict[str, list[list[float]]] = {name: [] for name in RUNS}
    for number in range(rounds):
        for name in RUNS:
            seen[name].append(run_alone(folder, name, work / f"{number}-{name}"))
    for name, values in seen.items():
        clock, busy, memory = (statistics.median(column) for column in zip(*values))
        print(f"{name}: {clips / clock:.2f} clips/s, {clips / busy:.2f} a core-second, {memory:.0f} MiB", flush=True)
    ratio = lambda a, b, column: statistics.median(one[column] / other[column] for one, other in zip(seen[a], seen[b]))
    ratios = {
        "beam_by_clock": ratio("Beam, 1 worker", "plain loop", 0),
        "beam_by_processor_time": ratio("Beam, 1 worker", "plain loop", 1),
        "second_worker": ratio("Beam, 1 worker", "Beam, 2 workers", 0),
        # What a second core of its own gives at most: the work of both processes, less what they add to it.
        "second_worker_by_processor_time": 2 * ratio("Beam, 1 worker", "Beam, 2 workers", 1),
    }
    print(json.dumps(ratios))
    few = work / "few"
    few.mkdir()
    for path in sorted(folder.iterdir())[: 2 * (clips // 4)]:  # a video and its caption each
        shutil.copy(path, few)
    quarter = run_alone(few, "plain loop", work / "few-out")[2]
    print(f"plain loop over {clips // 4} clips: {quarter:.0f} MiB")
    return {"rounds": rounds, "seconds_clock_processor_and_mib": seen, "ratios": ratios, "quarter_mib": quarter}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--cross", type=float, default=0.4, help="the share of cross pairs")
    parser.add_argument("--speed", action="store_true", help="measure time instead")
    parser.add_argument("--rounds", type=int, default=3, help="of whole runs, with --speed; 0 leaves them out")
    parser.add_argument("--out", type=Path, help="write the numbers into this folder")
    parser.add_argument("--machine", default="", help="what machine this is and what else it does, for the JSON")
    for name in ("--one", "--videos", "--output"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_run(Path(options.videos), options.one, Path(options.output))
        return
    config = configuration.load(CONFIG)
    config = replace(config, pairs=replace(config.pairs, cross=options.cross))
    numbers: dict[str, object] = {"clips": options.clips, "load": os.getloadavg()[0]}
    numbers |= {name: metadata.version(name) for name in ("apache-beam", "opencv-python-headless", "av")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "videos")
        write_world(folder, options.clips)
        if options.speed:
            few = min(options.clips, STAGED)
            numbers["stages_by_clock_and_processor_time"] = print_stages(folder, config, few, Path(temporary))
            if options.rounds:
                numbers |= print_runs(folder, options.clips, Path(temporary), options.rounds)
        else:
            numbers |= print_quality(folder, config, options.clips)
            numbers |= print_pairs(folder, config, Path(temporary, "out"))
    if options.out:
        # Not above: it imports jax, whose memory is not curation's.
        from kaleido_jax.testing.benchmark import save_report

        kind = "curation-speed" if options.speed else "curation-quality"
        print(save_report(options.out, kind, options.machine, numbers))


if __name__ == "__main__":
    main()
