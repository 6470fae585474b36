"""What curation with classical models finds on the procedural world, where the truth is known, and how fast it is.

    python tools/bench_curation.py --clips 120
    python tools/bench_curation.py --clips 60 --speed

Needs the extras `curation` and `data`. The first prints segmentation, grounding, categories and the check of the cross
pairs; `--speed` prints clips a second of every stage, and what Beam costs and a second process gains over a plain loop.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from kaleido_jax import config as configuration
from kaleido_jax.curation import assemble
from kaleido_jax.curation.engine import Runner, curate, entries
from kaleido_jax.curation.pictures import mask_overlap
from kaleido_jax.curation.readers import read
from kaleido_jax.curation.records import Candidate, Clip
from kaleido_jax.curation.settings import Curation
from kaleido_jax.curation.stages import find_shots, read_clip, stages
from kaleido_jax.curation.store import Store
from kaleido_jax.curation.taxonomy import default_taxonomy
from kaleido_jax.data.lexicon import ANY_NOUNS, NOUN_SYNONYMS
from kaleido_jax.data.objects import OBJECTS
from kaleido_jax.data.world import Sample, World
from kaleido_jax.media.video import write_mp4

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "curation_classical.py"
SIZE, FRAMES, FPS = 96, 17, 8
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


def print_quality(folder: Path, config: Curation, clips: int) -> None:
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
    print(f"{clips} clips, {len(rows)} subjects segmented, {len(kept)} kept")
    print(f"category: recall {found / said:.3f} of {said} nouns, precision {right / named:.3f} of {named} mentions")
    for label, group in (("segmented", rows), ("kept", kept), ("dropped", dropped)):
        if group:
            best, meant = np.array([row[2] for row in group]), np.array([row[1] for row in group])
            print(
                f"{label}: mIoU {best.mean():.3f}, IoU > {GOOD} for {(best > GOOD).mean():.3f}, "
                f"the subject that is meant for {(meant == best).mean():.3f}",
                flush=True,
            )


def print_pairs(folder: Path, config: Curation, output: Path) -> None:
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


def print_speed(folder: Path, config: Curation, clips: int, work: Path) -> None:
    """Clips a second, stage by stage, and of whole runs.

    By the clock, and by the processor time of this process, which does not count decoding but is not disturbed by what
    else a machine does.
    """
    sources = sorted(read(config, folder), key=lambda source: source.path)[:clips]
    spent: dict[str, np.ndarray] = {}

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    def timed(name, function, *arguments):
        start = now()
        result = function(*arguments)
        spent[name] = spent.get(name, np.zeros(2)) + now() - start
        return result

    rates = lambda seconds: "{:.1f} clips/s, {:.1f} by processor time".format(*len(sources) / np.maximum(seconds, 1e-9))
    find_shots(sources[0], config)  # starts the decoder
    steps, store = stages(config), Store(work / "stages")
    for source in sources:
        for shot in timed("slicing", find_shots, source, config).clips:
            clip = timed("decoding", read_clip, source, shot, config)
            for stage in steps:
                clip = timed(stage.name, stage, clip)
            timed("writing", store.write_clip, clip, config.frames.fps, config.frames.quality)
    for name, seconds in spent.items():
        print(f"{name}: {rates(seconds)}", flush=True)
    for name, runner in (
        ("plain loop", None),
        ("Beam, 1 worker", Runner()),
        ("Beam, 2 workers", Runner(workers=2)),
    ):
        start = now()
        curate(config, folder, work / name.replace(" ", "-"), runner)
        print(f"{name}: {rates(now() - start)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--cross", type=float, default=0.4, help="the share of cross pairs")
    parser.add_argument("--speed", action="store_true", help="measure time instead")
    options = parser.parse_args()
    config = configuration.load(CONFIG)
    config = replace(config, pairs=replace(config.pairs, cross=options.cross))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "videos")
        write_world(folder, options.clips)
        if options.speed:
            print_speed(folder, config, options.clips, Path(temporary))
        else:
            print_quality(folder, config, options.clips)
            print_pairs(folder, config, Path(temporary, "out"))


if __name__ == "__main__":
    main()
