"""The miniature made tiny, for tests and first tries: well under a second a step on two CPU cores.

kaleido train configs/miniature_smoke.py --workdir runs/smoke train.steps=40 checkpoint.every=5
"""

from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.training.experiment import CheckpointConfig, DataConfig, Experiment, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="miniature-smoke",
        transformer=WanConfig(
            dim=32, ffn_dim=64, heads=2, layers=2, in_channels=12, out_channels=12, text_dim=32, freq_dim=32
        ),
        text=UMT5Config(vocab_size=512, dim=32, heads=2, head_dim=16, ffn_dim=64, layers=1),
        data=DataConfig(size=48, frames=5, samples=32, heldout=16, reference_buckets=False),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=10, ema_decay=0.95),
        train=TrainConfig(steps=100, batch=4, log_every=5, evaluate_every=50, sample_every=50),
        checkpoint=CheckpointConfig(every=25),
    )
