"""Whether references leak into the first frame of videos, over placements: share of videos and highest correlation.

    kaleido train configs/anyid_miniature.py --workdir runs/after
    kaleido train configs/anyid_miniature.py --workdir runs/before scheme=concat-before
    kaleido train configs/anyid_miniature.py --workdir runs/beside scheme=shift-wh
    python tools/leaks.py runs/after/model runs/before/model runs/beside/model --cases 40

For held-out identities of the procedural world a video is made from its references; `kaleido_jax.methods.leaks`
compares its frames with every frame of every reference. The real videos of the same cases say how alike they are by
nature.
"""

import argparse
import sys
from collections.abc import Callable, Iterable

import numpy as np

from kaleido_jax.data.groups import Group, TruthDescriber, draw_group
from kaleido_jax.data.world import World
from kaleido_jax.errors import KaleidoError
from kaleido_jax.evaluation.intervals import Share
from kaleido_jax.methods import differential
from kaleido_jax.methods.leaks import Leak, leak

REAL = "real videos"
Make = Callable[[Group, str], np.ndarray]  # (group, prompt) -> uint8 [f, h, w, 3]


def prompt_of(group: Group) -> str:
    """The differential prompt of a group, as in training."""
    elements, describer = differential.load_elements("miniature"), TruthDescriber()
    kept = differential.differing(group.shown, group.target, elements, describer, differential.Words())
    return differential.prompt(kept, separator=" ")


def measured(make: Make, groups: Iterable[Group]) -> list[Leak]:
    """What leaks of the references into the video of each group."""
    return [leak(make(group, prompt_of(group)), group.references) for group in groups]


def row(name: str, placement: str, found: list[Leak]) -> str:
    """A line of the table."""
    leaked = Share(sum(bool(one.leaked) for one in found), len(found))
    first = float(np.mean([max(one.first) for one in found]))
    later = float(np.mean([max(one.later) for one in found]))
    return f"| {name} | {placement} | {leaked} | {first:.2f} | {later:.2f} |"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders, of methods that take references")
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--clip", type=int, default=5, metavar="N", help="frames of references that are clips")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's own")
    arguments = parser.parse_args(words)
    from kaleido_jax.pipeline.pipeline import Pipeline
    from kaleido_jax.pipeline.references import Reference
    from kaleido_jax.pipeline.request import Settings

    print("| model | placement | first frame is a copy | correlation of the first frame | of the likest later one |")
    print("| --- | --- | --- | --- | --- |")
    try:
        for number, folder in enumerate(arguments.models):
            pipeline = Pipeline.load(folder)
            defaults = pipeline.config.defaults
            world = World((defaults.height, defaults.width), defaults.frames)
            most, clip = defaults.references, arguments.clip
            groups = [draw_group(world, i, "heldout", most=most, clip=clip) for i in range(arguments.cases)]
            if number == 0:
                print(row(REAL, "", measured(lambda group, prompt: group.video, groups)), flush=True)

            def make(group: Group, prompt: str, pipeline: Pipeline = pipeline) -> np.ndarray:
                settings = Settings(seed=arguments.seed, steps=arguments.steps).resolved(pipeline.config)
                references = [Reference(pixels=shown, subject=0, name="") for shown in group.references]
                return pipeline.generate(references, prompt, settings).video

            print(row(folder, pipeline.config.scheme, measured(make, groups)), flush=True)
    except KaleidoError as error:
        print(f"leaks: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
