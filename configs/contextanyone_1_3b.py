"""ContextAnyone at its paper's scale: Wan2.1-T2V-1.3B, one reference, its two new branches.

The paper tunes on about 18,000 pairs with eight A6000 Ada and gives neither batch, iterations nor guidance; those here
are the base model's. Its image encoder is CLIP, whose ViT-H/14 gives 257 tokens of width 1280.
A record of the recipe: of data, this version reads the procedural world alone, so `kaleido train` refuses it; what a
step takes of 16 chips is

    kaleido plan configs/contextanyone_1_3b.py --target v5p:2x2x4
"""

import dataclasses

from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.training.experiment import DataConfig, Experiment, FlowConfig, SamplingConfig, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="contextanyone-1.3b",
        method="contextanyone",
        start_from="Wan2.1-T2V-1.3B-Diffusers/transformer",
        transformer=dataclasses.replace(WanConfig.t2v_1_3b(), image_dim=1280, emphasis=True, dtype="bfloat16"),
        text=UMT5Config.xxl(),
        data=DataConfig(
            source="world", size=480, width=832, frames=81, references=1, text_tokens=512, text_embeddings=True
        ),
        flow=FlowConfig(shift=5.0),
        optimizer=OptimizerConfig(learning_rate=1e-5),
        train=TrainConfig(batch=32, keep="attention"),
        mesh=MeshConfig(fsdp=-1, sequence=4),
        sampling=SamplingConfig(steps=50, guidance=5.0, shift=5.0, frames_per_second=16),
    )
