"""How LoRA files spell what they hold: prefixes, names of layers, suffixes, and where alpha stands.

Trainers write the same low-rank factors under many names: PEFT and diffusers as `transformer.X.lora_A.weight`, with
alpha in a configuration beside them; others as `diffusion_model.X.lora_down.weight`, with a tensor
`diffusion_model.X.alpha`; kohya's as `lora_unet_X.lora_down.weight`, with the dots of X turned into underscores. X is a
layer of some layout of the model's own weights. Whatever is here under no known name is a problem that is named, never
something left out.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kaleido_jax.models.mapping import Shape
from kaleido_jax.porting.weights import Weights

METADATA = "lora_adapter_metadata"  # the key under which diffusers keeps PEFT's configuration in a file's metadata


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """A change of one weight: alpha / rank * up @ down, in PyTorch's order of axes.

    down: [rank, *inputs]. up: [outputs, rank], with axes of 1 behind them for a convolution.
    alpha: one number in the dtype and shape that its file has; None: the rank, so that nothing is scaled.
    """

    down: np.ndarray
    up: np.ndarray
    alpha: np.ndarray | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else float(self.alpha.reshape(())) / self.rank


@dataclasses.dataclass(frozen=True)
class Style:
    """How a kind of LoRA file is written.

    layout: of the names of layers. down, up: what the factors are called. underscored: dots of layers become
    underscores. alpha: "metadata", as PEFT's configuration in the file's metadata, or "tensor", one for each layer.
    """

    layout: str
    prefix: str
    down: str
    up: str
    underscored: bool
    alpha: str

    def key(self, layer: str, suffix: str) -> str:
        return self.prefix + (layer.replace(".", "_") if self.underscored else layer) + suffix


STYLES: dict[str, Style] = {
    "diffusers": Style("diffusers", "transformer.", ".lora_A.weight", ".lora_B.weight", False, "metadata"),
    "original": Style("original", "diffusion_model.", ".lora_A.weight", ".lora_B.weight", False, "tensor"),
    "kohya": Style("original", "lora_unet_", ".lora_down.weight", ".lora_up.weight", True, "tensor"),
}

# What a tensor is, by how its name ends. PEFT puts the name of the adapter in between when it saves a whole model.
_SUFFIXES: tuple[tuple[str, str], ...] = (
    ("down", r"\.(lora_A|lora_down|lora\.down)(\.default)?\.weight"),
    ("up", r"\.(lora_B|lora_up|lora\.up)(\.default)?\.weight"),
    ("up bias", r"\.lora_B(\.default)?\.bias"),
    ("alpha", r"\.alpha"),
    ("difference", r"\.diff"),
    ("bias difference", r"\.diff_b"),
)
_REFUSED: tuple[tuple[str, str], ...] = (
    (r".*\.(dora_scale|lora_magnitude_vector)(\..*)?", "is of a DoRA, whose magnitudes are no sum with the weights"),
    (r".*\.hada_\w+", "is of a LoHa, a product of two LoRAs"),
    (r".*\.lokr_\w+", "is of a LoKr, a Kronecker product"),
    (r".*\.lora_mid\..*", "is the core of a LoRA of three factors"),
    (r".*\.(oft|boft)_\w+(\..*)?", "is of an OFT, a rotation of the weights"),
    (r"(lora_te|text_encoder|lora_prior).*", "is of a text encoder; only LoRAs of the transformer are read"),
)
# Of the whole name, dots turned into underscores, so that dotted and underscored names are one.
_PREFIXES = (
    "base_model_model_", "model_diffusion_model_", "diffusion_model_", "transformer_", "lora_unet__", "lora_unet_",
    "lora_transformer_", "lycoris_",
)  # fmt: skip
# Settings of PEFT under which the factors mean something else than alpha / rank * up @ down.
_OTHER_MEANINGS = ("use_dora", "fan_in_fan_out", "layer_replication", "use_qalora", "use_bdlora", "arrow_config")


@dataclasses.dataclass(frozen=True, eq=False)
class Parsed:
    """What a file holds: factors by layer and whole differences by tensor, both as `layout` names them."""

    layout: str
    factors: dict[str, Factors]
    differences: dict[str, np.ndarray]


def parse(
    weights: Weights, layouts: Mapping[str, Mapping[str, Shape]], document: Mapping[str, Any] | None
) -> tuple[Parsed, list[str]]:
    """Read a whole file, and all that is wrong with it.

    Args:
      layouts: names and shapes of the model's own tensors, for each layout that may have given its names to the file.
      document: the adapter_config.json beside the file, if there is one.
    """
    problems: list[str] = []
    keys: dict[str, tuple[str, str]] = {}
    for key in weights.tensors:
        kind, stem = _kind(key)
        if kind is None:
            problems.append(f"{key!r} {stem}")
        else:
            keys[key] = kind, stem
    found = {layout: _resolved({stem for _, stem in keys.values()}, shapes) for layout, shapes in layouts.items()}
    layout = max(found, key=lambda name: len(found[name]))
    shapes = layouts[layout]
    by_layer: dict[str, dict[str, str]] = {}
    for key, (kind, stem) in keys.items():
        if stem not in found[layout]:
            problems.append(f"{key!r} is of no layer of this model")
            continue
        names = by_layer.setdefault(found[layout][stem], {})
        if kind in names:
            problems.append(f"{key!r} is there a second time, as {names[kind]!r}")
        names[kind] = key
    settings = _settings(weights, document, problems)
    factors: dict[str, Factors] = {}
    differences: dict[str, np.ndarray] = {}
    for layer, names in by_layer.items():
        arrays = _arrays(weights, names, problems)
        shape = shapes.get(f"{layer}.weight", shapes.get(layer, ()))
        if {"down", "up", "alpha", "up bias"} & names.keys():
            change = _factors(layer, names, arrays, shape, settings, problems)
            if change is not None:
                factors[layer] = change
        for kind, target, scaled in (
            ("difference", f"{layer}.weight" if f"{layer}.weight" in shapes else layer, False),
            ("bias difference", f"{layer}.bias", False),
            ("up bias", f"{layer}.bias", True),
        ):
            if kind not in arrays:
                continue
            value, wanted = arrays[kind], shapes.get(target)
            if value.shape != wanted:
                what = f"expected {wanted}" if wanted else f"and the model has no {target}"
                problems.append(f"{names[kind]!r} has shape {value.shape}, {what}")
            elif target in differences:
                problems.append(f"{names[kind]!r} changes {target}, which another tensor changes too")
            elif scaled and layer in factors and factors[layer].scale != 1.0:
                differences[target] = value.astype(np.float32) * np.float32(factors[layer].scale)
            else:
                differences[target] = value
    if not by_layer and not problems:
        problems.append("holds no LoRA: no tensor ends with lora_A.weight, lora_down.weight or diff")
    return Parsed(layout, factors, differences), problems


def _kind(key: str) -> tuple[str | None, str]:
    """(what a tensor is, the layer's name as it stands there), or (None, why it is refused)."""
    for pattern, why in _REFUSED:
        if re.fullmatch(pattern, key):
            return None, f"{why}: refused"
    for kind, pattern in _SUFFIXES:
        match = re.fullmatch(f"(.+?){pattern}", key)
        if match:
            return kind, match[1]
    return None, "is nothing that is known of LoRA files: refused"


def _resolved(stems: Iterable[str], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """The layer of a layout for each name that is one, whatever its prefix and whether it is dotted or underscored."""
    layers = {name.removesuffix(".weight").removesuffix(".bias") for name in shapes}
    folded = {layer.replace(".", "_"): layer for layer in layers}
    if len(folded) != len(layers):
        raise AssertionError("layers of a model cannot be told apart without their dots")
    found = {}
    for stem in stems:
        tails = [stem.replace(".", "_")]
        for _ in range(3):
            tails += [tail.removeprefix(prefix) for tail in tails for prefix in _PREFIXES if tail.startswith(prefix)]
        layer = next((folded[tail] for tail in tails if tail in folded), None)
        if layer is not None:
            found[stem] = layer
    return found


def _arrays(weights: Weights, names: Mapping[str, str], problems: list[str]) -> dict[str, np.ndarray]:
    """A layer's tensors by what they are; those with numbers that cannot be are problems."""
    arrays = {}
    for kind, key in names.items():
        info = weights.tensors[key]
        if kind != "alpha" and info.dtype.kind not in "fV":
            problems.append(f"{key!r} has dtype {info.dtype.name}, expected floating point")
            continue
        value = weights.read(key)
        if info.dtype.kind in "fV" and not np.isfinite(value.astype(np.float32)).all():
            problems.append(f"{key!r} holds NaN or infinity")
            continue
        arrays[kind] = value
    return arrays


def _factors(
    layer: str,
    names: Mapping[str, str],
    arrays: Mapping[str, np.ndarray],
    shape: Shape,
    settings: "_Settings | None",
    problems: list[str],
) -> Factors | None:
    for kind in ("down", "up"):
        if kind not in names:
            others = ", ".join(repr(key) for other, key in names.items() if "difference" not in other)
            problems.append(f"{layer} has {others}, but its {kind} factor is missing")
    if "down" not in arrays or "up" not in arrays:
        return None
    down, up, alpha = arrays["down"], arrays["up"], arrays.get("alpha")
    before = len(problems)
    if len(shape) < 2:
        problems.append(f"{layer} is no layer with a matrix, but has low-rank factors")
    elif down.ndim < 2 or up.ndim < 2 or math.prod(up.shape[2:]) != 1:
        problems.append(f"{layer} has factors of shapes {down.shape} and {up.shape}; expected two matrices")
    else:
        if down.shape[0] != up.shape[1]:
            problems.append(f"{layer} has factors of rank {down.shape[0]} and {up.shape[1]}, which must be equal")
        if down.shape[1:] != shape[1:]:
            problems.append(f"{names['down']!r} has shape {down.shape}, expected {(down.shape[0], *shape[1:])}")
        if up.shape[0] != shape[0]:
            problems.append(f"{names['up']!r} has shape {up.shape}, expected ({shape[0]}, {up.shape[1]})")
    if alpha is not None and alpha.size != 1:
        problems.append(f"{names['alpha']!r} has shape {alpha.shape}, expected a single number")
    if len(problems) > before:
        return None
    if settings is not None:
        configured = settings.alpha(layer, down.shape[0], problems)
        if alpha is not None and float(alpha.reshape(())) != float(configured):
            problems.append(
                f"{names['alpha']!r} is {float(alpha.reshape(()))}, but its configuration says {configured}"
            )
        alpha = configured if alpha is None else alpha
    return Factors(down, up, alpha)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What of PEFT's configuration says how strong each layer is; patterns are ends of layers' names."""

    rank: int
    value: int | float
    ranks: Mapping[str, int]
    alphas: Mapping[str, int | float]
    rank_stabilised: bool

    def alpha(self, layer: str, rank: int, problems: list[str]) -> np.ndarray:
        expected = _matching(self.ranks, layer, self.rank)
        if rank != expected:
            problems.append(f"{layer} has rank {rank}, but its configuration says {expected}")
        value = _matching(self.alphas, layer, self.value)
        # With rank stabilisation the scale is alpha / sqrt(rank); the number kept is that of a file without it.
        value = value * math.sqrt(rank) if self.rank_stabilised else value
        return np.asarray(value, np.int64 if type(value) is int else np.float32)


def _matching(patterns: Mapping[str, Any], layer: str, otherwise: Any) -> Any:
    for pattern, value in patterns.items():
        name = pattern.removeprefix("^")
        if layer == name or (not pattern.startswith("^") and layer.endswith("." + name)):
            return value
    return otherwise


def _settings(weights: Weights, document: Mapping[str, Any] | None, problems: list[str]) -> _Settings | None:
    """PEFT's configuration, of the file's metadata or of the adapter_config.json beside it."""
    text = getattr(weights, "metadata", {}).get(METADATA)
    if text is not None:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.append(f"{METADATA} of the metadata is not JSON: {error}")
            return None
    if document is None:
        return None
    if not isinstance(document, Mapping):
        problems.append("the configuration of the LoRA is not a JSON object")
        return None
    own = {key.removeprefix("transformer."): x for key, x in document.items() if key.startswith("transformer.")}
    document = own or document
    before = len(problems)
    problems += [
        f"{name} is set, which changes what the factors mean" for name in _OTHER_MEANINGS if document.get(name)
    ]
    rank, alpha = document.get("r", 8), document.get("lora_alpha", 8)
    ranks, alphas = (document.get(f"{which}_pattern") or {} for which in ("rank", "alpha"))
    if not _number(rank) or rank < 1:
        problems.append(f"r of the configuration is {rank!r}; expected a positive number")
    if not _number(alpha):
        problems.append(f"lora_alpha of the configuration is {alpha!r}; expected a number")
    for name, pattern in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(pattern, dict) or not all(_number(value) for value in pattern.values()):
            problems.append(f"{name} of the configuration is {pattern!r}; expected numbers by layer")
        else:
            problems += [
                f"{name} of the configuration has the expression {key!r}; only plain ends of names are read"
                for key in pattern
                if not re.fullmatch(r"\^?[\w.]+", key)
            ]
    if len(problems) > before:
        return None
    return _Settings(rank, alpha, ranks, alphas, bool(document.get("use_rslora")))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def spell(
    style: Style, factors: Mapping[str, Factors], differences: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str], list[str]]:
    """(tensors, metadata, what this kind of file cannot hold) of a file; names are of the style's layout."""
    tensors: dict[str, np.ndarray] = {}
    problems: list[str] = []
    in_metadata = style.alpha == "metadata"
    biased = any(name.endswith(".bias") for name in differences)
    for layer, change in factors.items():
        tensors[style.key(layer, style.down)] = change.down
        tensors[style.key(layer, style.up)] = change.up
        if not in_metadata and (change.alpha is not None or style.underscored):
            alpha = np.float32(change.rank) if change.alpha is None else change.alpha
            tensors[style.key(layer, ".alpha")] = np.asarray(alpha)
        if in_metadata and biased and f"{layer}.bias" not in differences:  # PEFT has biases in all layers or in none
            tensors[style.key(layer, ".lora_B.bias")] = np.zeros(change.up.shape[:1], change.up.dtype)
    for name, value in differences.items():
        layer, _, end = name.rpartition(".")
        if not in_metadata:
            bias = end == "bias"
            tensors[style.key(layer if end in ("weight", "bias") else name, ".diff_b" if bias else ".diff")] = value
        elif end == "bias" and layer in factors:
            scale = factors[layer].scale
            tensors[style.key(layer, ".lora_B.bias")] = value if scale == 1 else (value / scale).astype(value.dtype)
        else:
            problems.append(f"{name} changes by a whole tensor, which files of PEFT cannot hold")
    metadata = {"format": "pt"}
    if in_metadata:
        metadata[METADATA] = json.dumps(_configuration(style, factors, biased), sort_keys=True)
    return tensors, metadata, problems


def _configuration(style: Style, factors: Mapping[str, Factors], biased: bool) -> dict[str, Any]:
    """PEFT's configuration, as diffusers keeps it: every key begins with the name of the network."""
    alphas = {layer: float(x.rank if x.alpha is None else x.alpha.reshape(())) for layer, x in factors.items()}
    rank = next(iter(factors.values())).rank if factors else 1
    alpha = next(iter(alphas.values()), 1.0)
    whole = lambda number: int(number) if float(number).is_integer() else number
    configuration = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": whole(alpha),
        "rank_pattern": {f"^{layer}": change.rank for layer, change in factors.items() if change.rank != rank},
        "alpha_pattern": {f"^{layer}": whole(value) for layer, value in alphas.items() if value != alpha},
        "target_modules": sorted(factors),
        "lora_bias": biased,
        "use_dora": False,
        "use_rslora": False,
    }
    return {f"{style.prefix}{key}": value for key, value in configuration.items()}
