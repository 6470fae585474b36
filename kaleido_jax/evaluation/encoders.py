"""What turns pictures and prompts into features: image encoders with weights from a path, and one without any.

A metric asks for a *role*, such as "clip"; which encoder fills it is told in the results. Roles and what the papers'
scores were defined with:

  clip        CLIP ViT-B/32: S2V Consistency and Decoupling, CLIP-I, CLIP-T, VBench's background consistency
  dino        DINO ViT-S/16: DINO-I
  vbench-dino DINO ViT-B/16: VBench's subject consistency
  clip-l14    CLIP ViT-L/14: VBench's aesthetic quality
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8
from PIL import Image

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import InputError, printable
from kaleido_jax.models import mapping
from kaleido_jax.models.text.clip import params as clip_params
from kaleido_jax.models.text.clip.modeling import CLIPTextEncoder
from kaleido_jax.models.text.clip.tokenizer import CLIPTokenizer
from kaleido_jax.models.vision import Preprocessing, VisionConfig, VisionEncoder
from kaleido_jax.models.vision import params as vision_params
from kaleido_jax.names import lookup
from kaleido_jax.porting.weights import config_beside, open_weights

BATCH = 32  # pictures encoded at a time at most
ROLES: dict[str, str] = {
    "clip": "CLIP ViT-B/32",
    "dino": "DINO ViT-S/16",
    "vbench-dino": "DINO ViT-B/16",
    "clip-l14": "CLIP ViT-L/14",
}
Picture = UInt8[np.ndarray, "h w 3"]


@runtime_checkable
class Encoder(Protocol):
    """Pictures to features; `name` stands in the results and says what it is and which weights it has."""

    name: str

    def __call__(
        self, pictures: Sequence[np.ndarray], preprocessing: Preprocessing | None = None
    ) -> Float[np.ndarray, "n d"]:
        """Features of uint8 pictures `[h, w, 3]`, a row each. preprocessing: other than the encoder's usual one."""
        ...


class VisionFeatures:
    """CLIP, DINO or DINOv2: the summary of each picture, projected where CLIP projects it.

    Batches are divided over all devices of the process.
    """

    def __init__(self, config: VisionConfig, parameters: dict[str, Any], name: str):
        self.name, self._config = name, config
        self.preprocessing = usual_preprocessing(config)
        graph, _ = abstract(lambda: VisionEncoder(config, nnx.Rngs(0)))
        devices = jax.local_devices()
        self._mesh = jax.sharding.Mesh(np.array(devices), ("data",))
        everywhere = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())
        parameters = {name: jnp.asarray(x) for name, x in parameters.items()}
        layers = merge(graph, parameters).unstacked()  # none of them is copied out of a stack then
        rest = {name: x[:0] if name.startswith("blocks.") else x for name, x in parameters.items()}
        self._parameters = jax.device_put((rest, layers), everywhere)
        self._encode = jax.jit(lambda parameters, x: merge(graph, parameters[0]).summarise(x, parameters[1]))

    def __call__(
        self, pictures: Sequence[np.ndarray], preprocessing: Preprocessing | None = None
    ) -> Float[np.ndarray, "n d"]:
        prepare = preprocessing or self.preprocessing
        split = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec("data"))
        rows: list[np.ndarray | None] = [None] * len(pictures)
        for numbers in _by_shape(pictures):
            start = 0
            for size in batch_sizes(len(numbers), BATCH, self._mesh.size):
                part = numbers[start : start + size]
                start += size
                pixels = prepare(pictures[i] for i in part)
                whole = np.concatenate([pixels, np.repeat(pixels[-1:], size - len(part), axis=0)])
                features = np.asarray(self._encode(self._parameters, jax.device_put(whole, split)), np.float32)
                for number, row in zip(part, features):
                    rows[number] = row
        return np.stack([row for row in rows if row is not None])


def batch_sizes(count: int, most: int, step: int = 1) -> list[int]:
    """The sizes of batches for `count` things, of which the last may have places left.

    They are `step` times powers of two, up to `most`, so that few programs are compiled and few places stay empty. One
    that would be left alone comes along: videos have 4 n + 1 frames, and a batch of one is slow.
    """
    sizes, size = [], step
    while 2 * size <= most:
        size *= 2
    while count > 0:
        while size > step and 8 * count < 7 * size:  # at most an eighth is empty
            size //= 2
        whole = size + (step == 1 and count - size == 1)
        sizes.append(whole)
        count -= whole
    return sizes


def usual_preprocessing(config: VisionConfig) -> Preprocessing:
    """What a family's features are usually taken of; encoders of less than 224 pixels keep the proportions."""
    if config.family == "clip":
        return Preprocessing.clip(config.image_size)
    side = min(config.image_size, 224)
    return dataclasses.replace(Preprocessing.dino(), shorter_side=side * 256 // 224, crop=side)


def load_vision(path: str | Path) -> VisionFeatures:
    """An image encoder from its weights: a file or folder of transformers', open_clip's or Meta's, or a whole CLIP.

    Raises:
      InputError, UsageError: there are no such weights, or they are damaged.
    """
    weights = open_weights(existing(path))
    try:
        tensors = {name: name for name in weights.tensors}
        document = config_beside(weights.path)
        if "vision_model.pre_layrnorm.weight" in tensors:
            layout = "huggingface"
            tensors = {n: n for n in tensors if n.startswith(("vision_model.", "visual_projection."))}
            document = _part(document, "vision_config", "clip_vision_model")
        elif "visual.ln_pre.weight" in tensors:
            layout = "open_clip"
        elif "visual.pre_norm.weight" in tensors:
            layout = "wan"
        elif "embeddings.cls_token" in tensors:
            layout = "huggingface"
        else:
            layout = "original"
        if layout in ("open_clip", "wan"):
            tensors = {n: n for n in tensors if n.startswith("visual.")}
        tensors = {n: n for n in tensors if not n.endswith("position_ids") and not n.startswith("pooler.")}
        config = vision_params.config_from({n: weights.tensors[n].shape for n in tensors}, layout, document)
        read = {n: weights.read(n) for n in tensors}
    finally:
        weights.close()
    found = _from_torch(vision_params, lambda: VisionEncoder(config, nnx.Rngs(0)), read, config, layout)
    what = f"{config.family} {config.layers}x{config.dim}, patch {config.patch}, {config.image_size} px"
    return VisionFeatures(config, found, f"{what}; {Path(path).name} sha256 {digest(read)}")


class ClipText:
    """CLIP's text tower with its projection: prompts to the space of CLIP's pictures.

    `longest` is the number of tokens that it reads; `cut` says of a prompt how many are left out.
    """

    def __init__(self, path: str | Path):
        """From the folder of a whole CLIP (transformers' CLIPModel or CLIPTextModelWithProjection) with its tokenizer.

        Raises:
          InputError, UsageError: there are no such weights, or no tokenizer beside them.
        """
        folder = Path(existing(path))
        weights = open_weights(folder)
        try:
            names = [n for n in weights.tensors if n.startswith("text_model.") and not n.endswith("position_ids")]
            if not names or "text_projection.weight" not in weights.tensors:
                raise InputError(
                    f"{printable(str(path))}: has no text tower with text_projection.weight; CLIP-T needs a CLIPModel."
                )
            document = _part(config_beside(weights.path), "text_config", "clip_text_model")
            config = clip_params.config_from({n: weights.tensors[n].shape for n in names}, "huggingface", document)
            read = {n: weights.read(n) for n in names}
            self._projection = weights.read("text_projection.weight").astype(np.float32)
        finally:
            weights.close()
        self.longest = config.positions
        self._tokenizer = CLIPTokenizer.load(folder if folder.is_dir() else folder.parent)
        make = lambda: CLIPTextEncoder(config, nnx.Rngs(0))
        graph, _ = abstract(make)
        self._parameters = jax.device_put(_from_torch(clip_params, make, read, config, "huggingface"))
        self._encode = jax.jit(lambda parameters, ids: merge(graph, parameters)(ids)[1])

    def __call__(self, prompt: str) -> Float[np.ndarray, "d"]:
        ids = jnp.asarray(self._tokenizer.encode([prompt], self.longest))
        return np.asarray(self._encode(self._parameters, ids), np.float32)[0] @ self._projection.T

    def cut(self, prompt: str) -> int:
        """How many tokens of the prompt are not read."""
        return self._tokenizer.cut(prompt, self.longest)


class WorldFeatures:
    """Colours and edges of what is drawn: features without weights, which tell the procedural world's subjects apart.

    Soft histograms of hue, saturation and value, and of the directions of edges in each of 2 x 2 quarters of the
    picture; plain white, which fills what was cut away, does not count. Square roots are taken, so that a cosine is the
    overlap of the distributions (Bhattacharyya's coefficient).
    """

    name = "world features: histograms of colours and edges"

    def __call__(
        self, pictures: Sequence[np.ndarray], preprocessing: Preprocessing | None = None
    ) -> Float[np.ndarray, "n d"]:
        return np.stack([_histograms(picture) for picture in pictures])


HUES, SATURATIONS, VALUES, DIRECTIONS = 16, 3, 4, 8


def _histograms(picture: np.ndarray) -> np.ndarray:
    small = Image.fromarray(picture)
    if max(small.size) > 64:
        small = small.resize((64, 64), Image.Resampling.BOX)
    pixels = np.asarray(small)
    weight = 1.0 - (pixels >= 250).all(-1)
    hsv = np.asarray(small.convert("HSV"), np.float64) / 256
    colour = np.zeros((HUES, SATURATIONS, VALUES))
    cells = [_soft(hsv[..., 0] * HUES, HUES, around=True)]
    cells += [_soft(hsv[..., i] * n - 0.5, n, around=False) for i, n in ((1, SATURATIONS), (2, VALUES))]
    # Hue means little where there is little colour: such pixels share all hues.
    vivid = np.clip(hsv[..., 1] * hsv[..., 2] * 6, 0, 1)
    for h, hue in cells[0]:
        for s, saturation in cells[1]:
            for v, value in cells[2]:
                np.add.at(colour, (h, s, v), weight * vivid * hue * saturation * value)
    grey = np.zeros(VALUES)
    for v, value in cells[2]:
        np.add.at(grey, v, weight * (1 - vivid) * value)
    parts = np.concatenate([colour.ravel(), grey])
    parts = parts / max(parts.sum(), 1e-9)
    light = pixels.astype(np.float64).mean(-1) / 255
    across, down = np.gradient(light, axis=1) * weight, np.gradient(light, axis=0) * weight
    strength, turn = np.hypot(across, down), (np.arctan2(down, across) % np.pi) / np.pi * DIRECTIONS
    edges = np.zeros(DIRECTIONS)
    for d, share in _soft(turn, DIRECTIONS, around=True):
        np.add.at(edges, d, strength * share)
    edges = 0.1 * edges / max(edges.sum(), 1e-9)
    return np.sqrt(np.concatenate([parts, edges])).astype(np.float32)


def _soft(x: np.ndarray, count: int, *, around: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two cells that each value lies between, with their shares."""
    low = np.floor(x).astype(int)
    share = x - low
    if around:
        return [(low % count, 1 - share), ((low + 1) % count, share)]
    return [(np.clip(low, 0, count - 1), 1 - share), (np.clip(low + 1, 0, count - 1), share)]


def load_encoder(role: str, source: str) -> Encoder:
    """The encoder for a role: "world", or a path of weights.

    Raises:
      UsageError: there is no such role.
      InputError: there are no weights at the path, or they are damaged.
    """
    lookup(ROLES, role, "role of an encoder")
    return WorldFeatures() if source == "world" else load_vision(source)


def _by_shape(pictures: Sequence[np.ndarray]) -> Iterable[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, picture in enumerate(pictures):
        groups.setdefault(picture.shape, []).append(number)
    return groups.values()


def existing(path: str | Path) -> str | Path:
    """The path of weights. Raises InputError if nothing is there."""
    if "\0" in str(path) or not Path(path).exists():
        raise InputError(f"{printable(str(path))}: there are no weights at this path; give a file or folder of them.")
    return path


def _part(document: Any, key: str, kind: str) -> Any:
    """The section of a whole CLIP's config.json about one tower."""
    if document is None or document.get("model_type") == kind:
        return document
    section = document.get(key)
    return section | {"model_type": kind} if isinstance(section, dict) else None


def _from_torch(params: Any, make: Callable[[], nnx.Module], tensors: dict[str, np.ndarray], config: Any, layout: str):
    """Our parameters, float32. Raises InputError naming every tensor that is missing or of another shape."""
    found = mapping.from_torch(
        tensors, params.mapping(config, layout), mapping.abstract_parameters(make), "the encoder's weights"
    )
    return {name: np.asarray(x, np.float32) for name, x in found.items()}


def digest(tensors: dict[str, np.ndarray]) -> str:
    """The first 12 digits of a SHA-256 over all tensors, by name."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(np.ascontiguousarray(tensors[name]).tobytes())
    return total.hexdigest()[:12]


def load_head(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(weight [1, d], bias [1]) of LAION's linear aesthetic predictor (sa_0_4_vit_l_14_linear).

    Raises:
      InputError: there is no such file, or it holds no such weights.
    """
    weights = open_weights(existing(path))
    try:
        if set(weights.tensors) != {"weight", "bias"}:
            raise InputError(f"{printable(str(path))}: holds {sorted(weights.tensors)[:5]}; expected weight and bias.")
        return weights.read("weight").astype(np.float32), weights.read("bias").astype(np.float32)
    finally:
        weights.close()
