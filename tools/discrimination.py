"""Print whether the scores tell right from wrong on the procedural world, where the truth is known.

    python tools/discrimination.py
    python tools/discrimination.py --pairs 200 --clip world

Mistakes are planted in videos of held-out subjects: another subject, the reference's background, the reference as a
frame, a subject twice, two subjects exchanged. Each line has the area under the ROC curve between videos with and
without the mistake, with its bootstrap 95 % interval. The project's goal is 0.95; the exit code is 1 if a score
misses it (look-alikes are shown beside, and are no part of the goal).
"""

import argparse
import sys

from kaleido_jax.data.world import World
from kaleido_jax.errors import KaleidoError
from kaleido_jax.evaluation.discrimination import QUESTIONS, discriminate
from kaleido_jax.evaluation.encoders import load_encoder
from kaleido_jax.evaluation.evidence import Tools

GOAL = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100, help="of videos, for each question")
    parser.add_argument("--clip", default="world", help="weights of CLIP, or the features that need none (default)")
    arguments = parser.parse_args()
    if arguments.pairs < 2:
        parser.error(f"--pairs is {arguments.pairs}; it must be at least 2")
    try:
        tools = Tools(encoders={"clip": load_encoder("clip", arguments.clip)})
    except KaleidoError as error:
        print(f"discrimination: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{arguments.pairs} pairs of videos for each question; encoder: {tools.encoders['clip'].name}\n")
    print("| score | right, wrong | medians | AUC | 95 % interval |\n|---|---|---|---|---|")
    missed = []
    for answer in discriminate(World(), tools, arguments.pairs):
        print(
            f"| {answer.name} | {QUESTIONS[answer.name].what} | {answer.right:.3f}, {answer.wrong:.3f} "
            f"| {answer.area:.3f} | {answer.low:.3f} to {answer.high:.3f} |",
            flush=True,
        )
        if answer.area < GOAL and "look-alikes" not in answer.name:
            missed.append(answer.name)
    if missed:
        print(f"\nbelow {GOAL}: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
