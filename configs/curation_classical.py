"""Curation without any weights: what moves before a still camera, named by its caption, cut out by GrabCut.

kaleido curate configs/curation_classical.py --input videos --output curated --runner direct

For small clips with captions beside them, such as those of the procedural world. It shows that the whole pipeline works
and gives the numbers in docs/curation.md; for real data put models into `models`.
"""

from kaleido_jax.curation.models.classical import Cutter, MovingSubjects, Smear, Turn
from kaleido_jax.curation.settings import Curation, Filters, Frames, Models, Slicing


def config() -> Curation:
    return Curation(
        name="classical",
        slicing=Slicing(seconds=(1.0, 10.0), margin=0.0, side=64),
        frames=Frames(fps=8.0, count=17, height=96, width=96, keys=5),
        filters=Filters(detection=0.3),
        models=Models(detector=MovingSubjects(), segmenter=Cutter(), inpainter=Smear(), editor=Turn()),
        shards=2,
    )
