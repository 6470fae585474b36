"""AnyID's second stage on the procedural world: a LoRA tuned by preference pairs (Flow-DPO).

Starts from the first stage's model, which also samples the pairs. The world's own judge votes along both tracks; a
person can vote as well (`kaleido pairs annotate runs/pairs --name anna`).

    kaleido train configs/anyid_miniature.py --workdir runs/anyid
    kaleido pairs sample runs/pairs --model runs/anyid/model --world 200
    kaleido pairs judge runs/pairs
    kaleido pairs select runs/pairs
    kaleido train configs/anyid_miniature_dpo.py --workdir runs/anyid-dpo

The LoRA is written as runs/anyid-dpo/lora.safetensors, the model with it as runs/anyid-dpo/model. Without the field
`preference` the same file tunes a LoRA on samples, of the shipped weights, too:

    kaleido train configs/anyid_miniature_dpo.py --workdir runs/anyid-lora \
        start_from=kaleido_jax/weights/miniature preference.pairs=
"""

import dataclasses

from kaleido_jax.methods.anyid import GUIDANCE
from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.training.experiment import (
    DataConfig,
    Experiment,
    FlowConfig,
    PreferenceConfig,
    SamplingConfig,
    TrainConfig,
)
from kaleido_jax.training.low_rank import LoraConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="anyid-miniature-dpo",
        method="anyid",
        start_from="runs/anyid/model",
        transformer=WanConfig.miniature(),
        text=UMT5Config.miniature(vocab_size=512),
        lora=LoraConfig(rank=16),
        preference=PreferenceConfig(pairs="runs/pairs/preferences.jsonl"),
        data=DataConfig(source="world", references=3, reference_frames=5, heldout=32),
        flow=FlowConfig(shift=1.5),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=20),
        train=TrainConfig(steps=500, batch=8),
        sampling=dataclasses.replace(SamplingConfig(), guidance=GUIDANCE),
    )
