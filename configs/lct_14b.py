"""Long Context Tuning of Wan2.1-T2V-14B: scenes of up to nine shots of 480 x 480 pixels.

The paper tunes a network of 3 billion parameters that is not public, for 135,000 iterations on 128 H800, and 9,000 more
with causal attention (`options=attention=causal`). It gives neither batch nor learning rate.
A record of the recipe: of data, this version reads the procedural world alone, so `kaleido train` refuses it; what a
step takes of 128 chips is

    kaleido plan configs/lct_14b.py --target v5p:4x4x8
"""

import dataclasses

from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.training.experiment import DataConfig, Experiment, FlowConfig, SamplingConfig, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="lct-14b",
        method="lct",
        start_from="Wan2.1-T2V-14B-Diffusers/transformer",
        transformer=dataclasses.replace(WanConfig.t2v_14b(), dtype="bfloat16"),
        text=UMT5Config.xxl(),
        data=DataConfig(source="world", size=480, frames=81, shots=9, text_tokens=512, text_embeddings=True),
        flow=FlowConfig(shift=5.0),
        optimizer=OptimizerConfig(learning_rate=1e-5),
        train=TrainConfig(steps=135_000, batch=32, keep="attention"),
        mesh=MeshConfig(fsdp=-1, sequence=4),
        sampling=SamplingConfig(steps=50, guidance=5.0, shift=5.0, frames_per_second=16),
    )
