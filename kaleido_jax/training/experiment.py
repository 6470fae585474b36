"""All fields of a training run, in sections that the command line overrides as `section.field=value`."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kaleido_jax.config import to_json
from kaleido_jax.data.buckets import VideoBucket
from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.training.low_rank import LoraConfig
from kaleido_jax.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on: the procedural world, rendered and encoded on the fly or encoded once and cached ("latents");
    or a data set that `kaleido data encode` wrote ("encoded").
    """

    source: Literal["world", "latents", "encoded"] = "latents"
    size: int = 96  # pixels of the picture's height
    width: int = 0  # of the picture in pixels; 0: as wide as high
    frames: int = 17
    references: int = 3  # at most this many a sample
    reference_frames: int = 1  # of a reference that is a clip, for methods that take clips
    shots: int = 3  # of a scene, for methods that take scenes
    single_shots: float = 0.25  # share of their samples that are one shot alone
    reference_buckets: bool = True  # cached batches of one reference count each: no compute on absent ones
    samples: int = 4096  # in the cache; the world itself never repeats one
    heldout: int = 96  # samples for the held-out loss
    folder: str = ""  # of the cache or the encoded data; empty: "latents" in the work directory
    buckets: tuple[str, ...] = ()  # further shapes, "HEIGHTxWIDTHxFRAMES", that encoded videos may have
    packed: bool = False  # short samples share a sequence, no longer than the longest sample; a batch is of sequences
    unreadable: float = 0.001  # share of an encoded data set's records that may be replaced by others
    text_tokens: int = 32
    text_embeddings: bool = False  # batches hold a frozen text encoder's output instead of token ids
    text_dropout: float = 0.1  # share of samples trained with the empty prompt, for guidance
    cross_pairs: float = 1.0  # share whose references show their subjects anew; others' are cut out of the video
    perturbed: float = 0.0  # share of the references with a fault: bad light, occlusion, ... (data.perturbations)
    reference_subsets: float = 0.2  # share of samples that are shown only some of their references
    workers: int = 0  # loader processes; 0 loads in threads of this one

    @property
    def shapes(self) -> tuple[VideoBucket, ...]:
        """All buckets; the first is the picture's own."""
        own = VideoBucket(height=self.size, width=self.width or self.size, frames=self.frames)
        return tuple(dict.fromkeys((own, *map(VideoBucket.parse, self.buckets))))

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.size, self.width or self.size

    def __post_init__(self) -> None:
        if self.references < 1:
            raise ValueError(f"data.references must be at least 1, got {self.references}")
        if self.source == "encoded" and not self.text_embeddings:
            raise ValueError("data.text_embeddings is False; encoded data holds a text encoder's output")
        if self.packed and self.source == "world":
            raise ValueError("data.packed is True, but data.source is world, whose samples are all of one shape")
        for bucket in self.buckets:
            VideoBucket.parse(bucket)
        for name in ("text_dropout", "reference_subsets", "single_shots", "cross_pairs", "perturbed", "unreadable"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"data.{name} is a share in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and what is looked at on the way. `minutes` ends a run by the clock instead of by `steps`."""

    steps: int = 1000
    minutes: float | None = None  # over all restarts; the learning rate then follows the clock too
    batch: int = 16
    accumulate: int = 1  # parts of a batch whose gradients are summed one after another, to save memory
    # What each layer keeps for its backward pass, which makes the rest again: the less, the less memory and the slower.
    # "offloaded" keeps what "attention" does, and the layers' inputs, in the memory of the host.
    keep: Literal["everything", "products", "attention", "offloaded", "nothing"] = "products"
    log_every: int = 20
    evaluate_every: int = 500
    sample_every: int = 500
    skipped_limit: int = 10  # non-finite steps in a row that end the run
    tensorboard: bool = False  # metrics also as event files in the work directory
    stall_seconds: float = 300.0  # a step that takes longer ends the process, a pause six times as long; 0: never

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "evaluate_every", "sample_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written, how many are kept, and how often one that could not be written is tried again."""

    every: int = 500
    keep: int = 2
    keep_every: int = 0  # those of every so many steps stay for ever; 0: none
    retries: int = 2  # 10 and 30 s later


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How times are drawn in training: logit-normal, then moved towards noise by `shift`.

    A token counts 1 + `subject_emphasis` times the share of its pixels that show a subject. The papers weigh all alike;
    in a short training of a small model, the scene would take nearly all of the loss.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    subject_emphasis: float = 0.0

    def __post_init__(self) -> None:
        if self.subject_emphasis < 0:
            raise ValueError(f"flow.subject_emphasis must be at least 0, got {self.subject_emphasis}")


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Tuning by preference pairs (Flow-DPO) instead of by samples, of a model that `start_from` names.

    pairs: a file that `kaleido pairs select` wrote; empty: samples are trained on. beta: how far the model may go from
    the reference model for a pair; AnyID gives none. Ours is for errors that are means over a clip's tokens: after
    supervised tuning two clips' differ by some thousandths.
    """

    pairs: str = ""
    beta: float = 500.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"preference.beta must be positive, got {self.beta}")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How samples are drawn during training, and what the exported model does by default.

    frames_per_second: of the videos, also of those that `kaleido data encode` reads.
    """

    steps: int = 30
    guidance: float = 4.0
    shift: float = 3.0
    pictures: int = 4  # samples on a contact sheet
    frames_per_second: int = 8


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training run."""

    name: str
    seed: int = 0
    method: str = "kaleido"
    scheme: str = ""  # a name of rope.SCHEMES; empty: the method's own
    options: tuple[str, ...] = ()  # of the method, as "name=value"
    # Folder of a model that has a VAE, or one that `kaleido port` reads; empty: that of `start_from`, else the shipped.
    vae: str = ""
    # Of a frozen text encoder, a folder or a file in the same sense, with its tokenizer in it or beside it.
    text_encoder: str = ""
    # Of a frozen image encoder (CLIP), in the same sense; empty: its branch reads the references' latents.
    image_encoder: str = ""
    # A model, such as a first stage's, whose weights training starts from; or a released transformer.
    start_from: str = ""
    transformer: WanConfig
    text: UMT5Config
    data: DataConfig = field(default_factory=DataConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if self.preference.pairs and not self.lora.rank:
            raise ValueError(
                "lora.rank is 0, but preference.pairs are trained on; the reference model is the one without the LoRA"
            )
        if self.preference.pairs and self.data.packed:
            raise ValueError("data.packed is True, but preference.pairs are trained on, which are all of one shape")
        if self.image_encoder and self.data.packed:
            raise ValueError("data.packed is True, but what image_encoder makes is read by a whole sequence")
        if self.lora.rank and not self.start_from:
            raise ValueError(f"lora.rank is {self.lora.rank}, but start_from is empty; name the model that it changes")


# What a run keeps from its first start: everything that shapes its state, its batches or their order.
_FIXED = re.compile(
    r"seed|method|scheme|options|(transformer|text)\.(?!dtype).*|lora\..*|train\.batch|flow\..*|optimizer\.kind|"
    r"data\.(source|size|width|frames|references|reference_frames|reference_buckets|shots|buckets|packed|text_tokens)"
)


def changed_fields(stored: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """What of a stored experiment, as JSON holds it, stands in the way of going on with this one: "field=value"."""
    now = dict(_dotted(json.loads(json.dumps(to_json(experiment)))))
    return [
        f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in _dotted(stored)
        if _FIXED.fullmatch(name) and name in now and now[name] != value
    ]


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
