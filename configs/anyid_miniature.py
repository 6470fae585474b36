"""AnyID's conditioning on the procedural world: up to three clips and pictures of a subject, and a differential prompt.

    kaleido train configs/anyid_miniature.py --workdir runs/anyid

The same, tuned from the shipped weights instead of from nothing, as the paper tunes a base model:

    kaleido train configs/anyid_miniature.py --workdir runs/anyid \
        start_from=kaleido_jax/weights/miniature optimizer.learning_rate=5e-4

References are rendered and encoded for every step, because a cache of clips would hold ten times as many latents as
there are videos; on two CPU cores that is most of a step. `options=rule=unidirectional` trains the variant whose
references' keys and values are computed once.
"""

import dataclasses

from kaleido_jax.methods.anyid import EMPTY_SHARE, GUIDANCE
from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.training.experiment import DataConfig, Experiment, FlowConfig, SamplingConfig, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="anyid-miniature",
        method="anyid",
        transformer=WanConfig.miniature(),
        text=UMT5Config.miniature(vocab_size=512),
        data=DataConfig(source="world", references=3, reference_frames=5, heldout=32, text_dropout=EMPTY_SHARE),
        flow=FlowConfig(shift=1.5),
        optimizer=OptimizerConfig(learning_rate=2e-3, text_rate=0.2, warmup_steps=100, ema_decay=0.998),
        train=TrainConfig(steps=20_000, batch=8),
        sampling=dataclasses.replace(SamplingConfig(), guidance=GUIDANCE),
    )
