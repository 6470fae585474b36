"""What may be asked of a model: checked here, in one sentence each, before anything expensive starts."""

import dataclasses
import math
import operator
import unicodedata
import warnings
from typing import TYPE_CHECKING, Any

from kaleido_jax.errors import InputError, UsageError, printable

if TYPE_CHECKING:
    from kaleido_jax.bundle import BundleConfig

MAX_PROMPT_CHARACTERS = 2000
MAX_SEED = 2**32 - 1
MAX_STEPS = 100
MAX_GUIDANCE = 100.0
MAX_SHIFT = 100.0
MAX_SIDE = 2048
MAX_FRAMES = 401
MAX_REFERENCES = 16
DECODE = ("auto", "whole", "tiled")
REFERENCE_CACHE = ("exact", "int8", "none")
WHOLE_PIXELS = 2**19  # of a frame: 480 x 832 and less are decoded whole, 720 x 1280 in tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a video is made, beside its references and its prompt; None is the model's own default.

    height, width: pixels. frames: of the video. steps: of the sampler. guidance: scale of the text guidance, 1 is none.
    sampler: a name of `kaleido_jax.diffusion.samplers.SAMPLERS`. shift: of the sampler's times towards noise.
    decode: latents become pixels of "whole" frames (on a mesh, which then is divided over them, if it can be), or in
      overlapping tiles ("tiled"), which takes less memory and changes a little where tiles meet; "auto" takes tiles for
      frames of more than `WHOLE_PIXELS`.
    reference_cache: keys and values of references that are the same at every step (`methods.cache`) are kept as the
      network makes them ("exact"), in bytes ("int8": half the memory, and the video changes a little), or made anew at
      every step ("none").
    """

    seed: int = 0
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | int | None = None
    shift: float | int | None = None
    sampler: str = "euler"
    decode: str = "auto"
    reference_cache: str = "exact"

    def __post_init__(self) -> None:
        whole_number("seed", self.seed, 0, MAX_SEED)
        for name, most in (("height", MAX_SIDE), ("width", MAX_SIDE), ("frames", MAX_FRAMES), ("steps", MAX_STEPS)):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1, most)
        for name, low, most in (("guidance", 0.0, MAX_GUIDANCE), ("shift", 0.01, MAX_SHIFT)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real_number(name, getattr(self, name), low, most))
        if not isinstance(self.sampler, str):
            raise UsageError(f"sampler is {shown(self.sampler)}; it must be the name of a sampler, such as euler.")
        for name, ways in (("decode", DECODE), ("reference_cache", REFERENCE_CACHE)):
            if getattr(self, name) not in ways:
                raise UsageError(f"{name} is {shown(getattr(self, name))}; it must be one of {', '.join(ways)}.")

    def resolved(self, config: "BundleConfig") -> "Settings":
        """These settings with the model's defaults filled in, and known to fit the model.

        Warns when the model was not trained for this size or length.

        Raises:
          UsageError: a size or a number of frames that the model cannot make (names the nearest that it can), or an
            unknown sampler (names the nearest).
        """
        from kaleido_jax.diffusion.samplers import SAMPLERS
        from kaleido_jax.names import lookup

        sampler = self.sampler.replace("-", "_")
        lookup(SAMPLERS, sampler, "sampler")
        defaults = config.defaults
        fill = lambda name: getattr(defaults, name) if getattr(self, name) is None else getattr(self, name)
        names = ("height", "width", "frames", "steps", "guidance", "shift")
        whole = dataclasses.replace(self, sampler=sampler, **{name: fill(name) for name in names})
        pt, ph, pw = config.transformer.patch
        for name, step in (("height", ph * config.vae.spatial_factor), ("width", pw * config.vae.spatial_factor)):
            size = getattr(whole, name)
            if size % step:
                near = " and ".join(str(n) for n in (size // step * step, size // step * step + step) if n)
                raise UsageError(f"{name} is {size}; for this model it must be a multiple of {step}, nearest: {near}.")
        step = pt * config.vae.temporal_factor
        if (whole.frames - 1) % step:
            low = (whole.frames - 1) // step * step + 1
            raise UsageError(
                f"frames is {whole.frames}; for this model it must be {step} n + 1, nearest: {low} and {low + step}."
            )
        if whole.decode == "auto":
            tiled = whole.height * whole.width > WHOLE_PIXELS
            whole = dataclasses.replace(whole, decode="tiled" if tiled else "whole")
        if (whole.height, whole.width, whole.frames) != (defaults.height, defaults.width, defaults.frames):
            warnings.warn(
                f"The model was trained at {defaults.width} x {defaults.height} pixels and {defaults.frames} frames; "
                f"{whole.width} x {whole.height} and {whole.frames} may look worse.",
                stacklevel=2,
            )
        return whole


def check_prompt(prompt: Any) -> str:
    """The prompt in Unicode's composed form (NFC), with white space collapsed.

    Raises:
      InputError: it is no text, empty, longer than `MAX_PROMPT_CHARACTERS`, or holds control characters.
    """
    if not isinstance(prompt, str):
        raise InputError(f"The prompt is {shown(prompt)}; it must be a text.")
    if len(prompt) > 20 * MAX_PROMPT_CHARACTERS:  # before anything is computed of it
        raise InputError(_too_long(len(prompt)))
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise InputError("The prompt is not valid Unicode (it holds half of a surrogate pair); give it in UTF-8.")
    prompt = " ".join(unicodedata.normalize("NFC", prompt).split())
    for character in prompt:
        if unicodedata.category(character) == "Cc":
            raise InputError(f"The prompt holds the control character U+{ord(character):04X}; give plain text.")
    if not any(character.isprintable() and not character.isspace() for character in prompt):
        raise InputError("The prompt is empty; say what the video should show.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise InputError(_too_long(len(prompt)))
    return prompt


def _too_long(length: int) -> str:
    return f"The prompt has {length} characters, and at most {MAX_PROMPT_CHARACTERS} are read; shorten it."


def check_reference_count(count: int, trained: int) -> None:
    """Warns of more references than the model was trained for, or none; raises UsageError for far too many."""
    if count > MAX_REFERENCES:
        raise UsageError(
            f"There are {count} reference pictures, and at most {MAX_REFERENCES} are taken; leave some out."
        )
    if count > trained:
        warnings.warn(
            f"There are {count} reference pictures, and the model was trained with at most {trained}; "
            "it may mix them up or leave some out.",
            stacklevel=2,
        )
    if count == 0:
        warnings.warn("There is no reference picture, and the model was trained with at least one.", stacklevel=2)


def whole_number(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int. Raises UsageError unless it is a whole number (not a bool) from `low` to `high`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} is {shown(value)}; it must be a whole number from {low} to {high}.") from None
    if not low <= number <= high:
        raise UsageError(f"{name} is {shown(number)}; it must be a whole number from {low} to {high}.")
    return number


def real_number(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float. Raises UsageError unless it is a finite number (not a bool) from `low` to `high`."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:  # false for NaN
        raise UsageError(f"{name} is {shown(value)}; it must be a number from {low:g} to {high:g}.")
    return number


def shown(value: Any) -> str:
    """A value as it may stand in a message."""
    return printable(repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number", 60)
