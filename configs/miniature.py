"""The miniature: Kaleido's conditioning on the procedural world, sized for two CPU cores.

    kaleido train configs/miniature_pictures.py --workdir runs/pictures --export runs/pictures/model
    kaleido train configs/miniature.py --workdir runs/miniature start_from=runs/pictures/model

(The first line when that run is over; it is the first stage, and can be left out at a price that its docstring gives.)
Nine latent frames of 12 x 12, two by two to a token, make 324 video tokens, and 36 more for each of up to three
references. The first start encodes `data.samples` samples with the frozen VAE; with a GPU, skip that and compute in
bfloat16:

    kaleido train configs/miniature.py --workdir runs/miniature data.source=world data.workers=8 \
        transformer.dtype=bfloat16 train.steps=100000

The weights that ship were made on two CPU cores that did other work besides. The VAE: tools/train_vae.py for 22 minutes
with four frames a latent and no emphasis of subjects, then 14 minutes from there as it stands today, then

    python tools/turn_latents.py runs/vae runs/vae-turned

The rest in several runs, since each taught something that changed the next. Tokens were three by three at first: about
9,800 steps of earlier versions on videos (first one that predicted the velocity, in which the text path died; then,
with the text path of another network, one that predicts the clean latent; then Muon instead of AdamW) made the right
scenes, and subjects that were patches of their references' colours; 762 steps on pictures and 2,900 on videos after
them made these patches follow the references (16 % right of 16). Then tokens of two by two: from there the first 676
steps on pictures (configs/miniature_pictures.py, whose docstring says what they did) and 70 minutes on videos:

    python tools/finer_patches.py runs/before/model runs/finer --patch 1,2,2
    kaleido train configs/miniature_pictures.py --workdir runs/pictures vae=runs/vae-turned start_from=runs/finer
    kaleido train configs/miniature_pictures.py --workdir runs/pictures vae=runs/vae-turned start_from=runs/finer \
        --export runs/pictures/model
    kaleido train configs/miniature.py --workdir runs/miniature vae=runs/vae-turned start_from=runs/pictures/model \
        data.samples=5888 train.keep=everything train.minutes=70
    kaleido train configs/miniature.py --workdir runs/miniature vae=runs/vae-turned start_from=runs/pictures/model \
        data.samples=5888 train.keep=everything train.minutes=70 --export model --dtype int8
"""

from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.training.experiment import (
    CheckpointConfig,
    DataConfig,
    Experiment,
    FlowConfig,
    SamplingConfig,
    TrainConfig,
)
from kaleido_jax.training.optimizer import OptimizerConfig


def config() -> Experiment:
    return Experiment(
        name="miniature",
        transformer=WanConfig.miniature(),
        text=UMT5Config.miniature(vocab_size=512),
        data=DataConfig(samples=8192, heldout=64),
        flow=FlowConfig(std=1.2, shift=6.0, subject_emphasis=8.0),
        optimizer=OptimizerConfig(kind="muon", learning_rate=2e-3, text_rate=0.2, warmup_steps=100, ema_decay=0.998),
        train=TrainConfig(steps=20_000, batch=16, log_every=20, evaluate_every=1000, sample_every=500),
        checkpoint=CheckpointConfig(every=250),
        sampling=SamplingConfig(steps=30, guidance=4.0, shift=6.0),
    )
