"""Long Context Tuning on the procedural world: scenes of three shots of one subject.

    kaleido train configs/lct_miniature.py --workdir runs/lct

The paper tunes a single-shot model, such as the shipped one. Afterwards the causal variant, whose scenes are made shot
by shot, is tuned from that:

    kaleido train configs/lct_miniature.py --workdir runs/lct \
        start_from=kaleido_jax/weights/miniature optimizer.learning_rate=5e-4
    kaleido train configs/lct_miniature.py --workdir runs/lct-causal options=attention=causal start_from=runs/lct/model
"""

from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.training.experiment import DataConfig, Experiment, FlowConfig, SamplingConfig, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="lct-miniature",
        method="lct",
        transformer=WanConfig.miniature(),
        text=UMT5Config.miniature(vocab_size=512),
        data=DataConfig(source="world", shots=3, frames=9, heldout=32),
        flow=FlowConfig(shift=1.5),
        optimizer=OptimizerConfig(learning_rate=2e-3, text_rate=0.2, warmup_steps=100, ema_decay=0.998),
        train=TrainConfig(steps=20_000, batch=8),
        sampling=SamplingConfig(guidance=3.0, shift=3.0),
    )
