"""Kaleido's second stage on Wan2.1-T2V-14B: 0.5M chosen pairs, 5K steps at 5e-6 (section 5.1).

The batch stays at 256. The paper leaves open the size, the number of references, the warm-up, the decay and the
drawing of times: here 480 x 832, 81 frames, up to three references, a constant rate.
The pairs are videos with labels and references in a folder (docs/scale.md), encoded once; weights are those that
Wan2.1-T2V-14B was released with for diffusers, looked for where the command runs. What a step takes of 64 chips:

    kaleido data encode configs/kaleido_14b_sft.py --input pairs --out encoded
    kaleido train configs/kaleido_14b_sft.py --workdir runs/kaleido_14b_sft data.folder=encoded
    kaleido plan configs/kaleido_14b_sft.py --target v5p:4x4x4
"""

import dataclasses

from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.training.experiment import DataConfig, Experiment, SamplingConfig, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig

RELEASE = "Wan2.1-T2V-14B-Diffusers"


def config() -> Experiment:
    return Experiment(
        name="kaleido-14b-sft",
        start_from="runs/kaleido_14b_pretrain/model",  # what the first stage wrote
        vae=f"{RELEASE}/vae",
        text_encoder=f"{RELEASE}/text_encoder",
        transformer=dataclasses.replace(WanConfig.t2v_14b(), dtype="bfloat16"),
        text=UMT5Config.xxl(),  # frozen: batches hold its output
        data=DataConfig(
            source="encoded", size=480, width=832, frames=81, references=3, text_tokens=512, text_embeddings=True
        ),
        optimizer=OptimizerConfig(learning_rate=5e-6, final_fraction=1.0),
        train=TrainConfig(steps=5_000, batch=256, accumulate=16, keep="attention"),
        mesh=MeshConfig(fsdp=-1, sequence=4),
        sampling=SamplingConfig(steps=50, guidance=5.0, shift=5.0, frames_per_second=16),
    )
