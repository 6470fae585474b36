"""ContextAnyone's conditioning on the procedural world: references, each of which the network paints again.

    kaleido train configs/contextanyone_miniature.py --workdir runs/contextanyone

The paper tunes a model that knows no reference's reconstruction. So can this: from the shipped weights, beside which
the two new branches start at nothing,

    kaleido train configs/contextanyone_miniature.py --workdir runs/contextanyone \
        start_from=kaleido_jax/weights/miniature optimizer.learning_rate=5e-4

The paper has one reference; samples of this world have up to three, and all of them are taken.
The image branch reads the patches of the reference's own latents (2 x 2 of 12 channels), since no image encoder is
trained on this world.
"""

import dataclasses

from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.training.experiment import DataConfig, Experiment, FlowConfig, SamplingConfig, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    transformer = dataclasses.replace(WanConfig.miniature(), image_dim=48, emphasis=True)
    return Experiment(
        name="contextanyone-miniature",
        method="contextanyone",
        transformer=transformer,
        text=UMT5Config.miniature(vocab_size=512),
        data=DataConfig(references=3, heldout=64),
        flow=FlowConfig(shift=1.5),
        optimizer=OptimizerConfig(learning_rate=2e-3, text_rate=0.2, warmup_steps=100, ema_decay=0.998),
        train=TrainConfig(steps=20_000, batch=8),
        sampling=SamplingConfig(guidance=3.0, shift=3.0),
    )
