"""AnyID at its paper's scale: Wan2.2-TI2V-5B at 1280 x 704, 121 frames, one to five references.

The paper tunes low-rank adapters for about 4,500 hours of A100 and leaves their rank, the learning rate and the drawing
of times open; what stands here for those is rank 128, a rate that is usual for LoRAs, and the base model's own shift.
It gives no batch size. A record of the recipe: of data, this version reads the procedural world alone, so
`kaleido train` refuses it; what a step takes of 64 chips is

    kaleido plan configs/anyid_5b.py --target v5p:4x4x4
"""

import dataclasses

from kaleido_jax.methods.anyid import EMPTY_SHARE, GUIDANCE
from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.training.experiment import DataConfig, Experiment, FlowConfig, SamplingConfig, TrainConfig
from kaleido_jax.training.low_rank import LoraConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="anyid-5b",
        method="anyid",
        start_from="Wan2.2-TI2V-5B-Diffusers/transformer",
        transformer=dataclasses.replace(WanConfig.ti2v_5b(), dtype="bfloat16"),
        text=UMT5Config.xxl(),
        data=DataConfig(
            source="world",
            size=704,
            width=1280,
            frames=121,
            references=5,
            reference_frames=121,
            text_tokens=512,
            text_embeddings=True,
            text_dropout=EMPTY_SHARE,
        ),
        flow=FlowConfig(shift=5.0),
        lora=LoraConfig(rank=128),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        train=TrainConfig(batch=32, keep="attention"),
        mesh=MeshConfig(fsdp=-1, sequence=4),
        sampling=SamplingConfig(steps=50, guidance=GUIDANCE, shift=5.0, frames_per_second=24),
    )
