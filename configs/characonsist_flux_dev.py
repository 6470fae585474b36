"""CharaConsist as the paper has it, on FLUX.1 [dev] at 1024 x 1024: 50 steps, 57 layers, points found at every step.

The pass that this compiles is what a test measures the memory of. With the weights at hand it runs by

    kaleido generate --model FLUX.1-dev --group groups.txt --setting paper --option keep_background=True
"""

import dataclasses

from kaleido_jax.methods.characonsist import CharaConsist
from kaleido_jax.models.flux import FluxConfig
from kaleido_jax.pipeline.characonsist import Recipe


def config() -> Recipe:
    return Recipe(
        name="characonsist-flux-dev",
        transformer=dataclasses.replace(FluxConfig.dev(), dtype="bfloat16"),
        method=CharaConsist.paper(keep_background=True),
    )
