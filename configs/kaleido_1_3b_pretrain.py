"""Kaleido's first stage on Wan2.1-T2V-1.3B: 2M pairs, 10K steps at 1e-5, batch 256, AdamW (section 5.1).

The paper leaves open the size, the number of references, the warm-up, the decay and the drawing of times: here 480 x
832, 81 frames, up to three references, a constant rate. The paper trains 14B; this is the same recipe on
Wan2.1-T2V-1.3B.
A record of the recipe: of data, this version reads the procedural world alone, so `kaleido train` refuses it; what a
step takes of 64 chips is

    kaleido plan configs/kaleido_1_3b_pretrain.py --target v5p:4x4x4
"""

import dataclasses

from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.training.experiment import DataConfig, Experiment, SamplingConfig, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="kaleido-1-3b-pretrain",
        transformer=dataclasses.replace(WanConfig.t2v_1_3b(), dtype="bfloat16"),
        text=UMT5Config.xxl(),  # frozen: batches hold its output
        data=DataConfig(size=480, width=832, frames=81, references=3, text_tokens=512, text_embeddings=True),
        optimizer=OptimizerConfig(learning_rate=1e-5, final_fraction=1.0),
        train=TrainConfig(steps=10_000, batch=256, accumulate=4, keep="attention"),
        mesh=MeshConfig(fsdp=-1),
        sampling=SamplingConfig(steps=50, guidance=5.0, shift=5.0, frames_per_second=16),
    )
