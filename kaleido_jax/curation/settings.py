"""The configuration of a curation: one section a stage, every threshold with its source or "calibrated".

Models are named by dataclasses of their own: `models.classical` needs no weights, `models.transformers` and
`models.endpoint` are given a path or an address.
"""

from dataclasses import dataclass, field
from typing import Any

from kaleido_jax.curation.decoding import Limits

KINDS = ("crop", "segment", "inpainting", "redux")


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """From a video to clips.

    method: "adaptive" (PySceneDetect's AdaptiveDetector, threshold 3.0 its default; needs the extra `curation`),
    "histogram" (no extra) or "transnet" (TransNet V2, threshold 0.4 as in cosmos-curate; extra `transnet`).
    threshold: of the method; None for its default. seconds: shortest and longest clip
    (OpenS2V-5M's high-quality part: 2 to 10); longer shots are cut into equal parts. margin: seconds left away at both
    ends of a shot that has a cut there, for dissolves (cosmos-curate: 0.5). side: the least short side of the video.
    """

    method: str = "adaptive"
    threshold: float | None = None
    seconds: tuple[float, float] = (2.0, 10.0)
    margin: float = 0.5
    side: int = 480


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What is kept of a clip: at most `count` (4n + 1) frames at `fps`, inside height x width; `keys` of them are
    looked at for subjects. Kaleido trains on 81 frames at 16 a second, 480 x 832. quality: of the stored H.264."""

    fps: float = 16.0
    count: int = 81
    height: int = 480
    width: int = 832
    keys: int = 3
    quality: int = 14


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Thresholds of the plain filters; every score is kept in the audit table, whatever is decided.

    brightness: mean luma in [0, 255] of a clip (calibrated). blur: the least variance of the Laplacian of the luma, of
    a clip's key frames and of a subject (calibrated; it grows with resolution and texture). motion: the least mean
    absolute change of luma between frames that follow each other, and the most (cosmos-curate drops what stands still).
    area: a subject's share of its frame (at least 1/32: OpenS2V-5M's high-quality part). inside: the least distance of
    the box from the frame's border, as a share of the frame's side; 0 lets subjects be cut off. overlap: of two masks
    above this intersection over union the smaller subject is dropped (0.8: OpenS2V-5M). detection: the least score of a
    box (0.25: OpenS2V). category: the least probability of the taxonomy's category for the cut-out subject.
    subjects: at most so many a clip, the best boxes first (Kaleido trains with up to three).
    """

    brightness: tuple[float, float] = (25.0, 235.0)
    blur: float = 15.0
    subject_blur: float = 15.0
    motion: tuple[float, float] = (0.0, 45.0)
    area: tuple[float, float] = (1 / 32, 0.9)
    inside: float = 0.0
    overlap: float = 0.8
    detection: float = 0.25
    category: float = 0.5
    subjects: int = 3


@dataclass(frozen=True, kw_only=True)
class Faces:
    """The frontal-face filter: for categories of people only, never for drawn ones (Kaleido, section 3.2).

    score: the least of a detection (0.65: OpenS2V). yaw, pitch: the largest turn of the head in degrees.
    """

    score: float = 0.65
    yaw: float = 45.0
    pitch: float = 35.0


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How references are made of subjects.

    mix: crop : segment : inpainting : redux (Kaleido, section 3.2: 1 : 5 : 3 : 1). cross: the share of cross pairs, 0
    to 0.8 (Kaleido's ablation is best at 0.2 to 0.4). drawing: the paper leaves open whether that share is what
    inpainting and redux have of the mix ("share": they are scaled to it, which changes nothing at 0.4) or a draw of its
    own beside the mix ("separate"). plates: at most so many scenes that cross pairs are set into, the same for every
    process. scenes: the share of samples that also get the subject-free plate as a reference of the scene, where there
    is one.
    """

    mix: tuple[float, float, float, float] = (1.0, 5.0, 3.0, 1.0)
    cross: float = 0.4
    drawing: str = "share"
    plates: int = 512
    scenes: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Least scores of a stricter subset; a score that no stage measured does not count against a sample."""

    area: float = 0.06
    blur: float = 60.0
    detection: float = 0.5
    category: float = 0.7
    brightness: tuple[float, float] = (40.0, 215.0)


@dataclass(frozen=True, kw_only=True)
class GroupRules:
    """What a member of an identity group must be (AnyID, section 3.5; thresholds are calibrated, the paper has none).

    single: only one kept subject in the clip. blur: its least sharpness. yaw, pitch: the largest turn of the head in
    degrees; what has no face is not asked. references: fewest and most beside the target. elements: the list of
    `methods.differential` that prompts speak of.
    """

    single: bool = True
    blur: float = 60.0
    yaw: float = 60.0
    pitch: float = 45.0
    references: tuple[int, int] = (1, 5)
    elements: str = "portrait"


@dataclass(frozen=True, kw_only=True)
class Models:
    """Who looks at the clips; None leaves a stage out. See `models.protocol` for what each must be able to do."""

    captioner: Any = None
    detector: Any = None
    segmenter: Any = None
    classifier: Any = None
    faces: Any = None
    inpainter: Any = None
    editor: Any = None
    writer: Any = None


@dataclass(frozen=True, kw_only=True)
class Curation:
    """A curation from beginning to end.

    reader: a name of `readers.READERS`. shards: files that each tier is written to. balance: sampling weights are
    (samples of the category) ** -balance: 0 leaves categories as they are, 1 makes all equally frequent.
    """

    name: str
    reader: str = "folder"
    license: str = ""
    slicing: Slicing = Slicing()
    frames: Frames = Frames()
    filters: Filters = Filters()
    faces: Faces = Faces()
    pairs: Pairs = Pairs()
    tier: Tier = Tier()
    groups: GroupRules = GroupRules()
    models: Models = field(default_factory=Models)
    limits: Limits = field(default_factory=Limits)
    shards: int = 8
    balance: float = 0.5
