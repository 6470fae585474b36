"""Reading what is measured: videos, references, and the masks that tell subjects from what is around them."""

import functools
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageSequence

from kaleido_jax.errors import InputError, printable
from kaleido_jax.evaluation.runs import Reference, RunCase
from kaleido_jax.media.clips import read_frames
from kaleido_jax.media.images import read_bytes, read_image

MAX_BYTES = 500_000_000
MAX_FRAMES = 1000
MAX_PIXELS = 500_000_000  # of a video whose frames are pictures
PICTURE_SUFFIXES, MASK_SUFFIX = (".png", ".jpg", ".jpeg", ".webp"), ".mask.png"
WHITE = 250  # a channel from which a pixel counts as white
BORDER = 0.02  # share of a picture that must be plain white around the subject


def read_frames_of(path: Path) -> UInt8[np.ndarray, "f h w 3"]:
    """Every frame of a clip, of a GIF, or of a folder of pictures (`pictures_of`).

    Raises:
      InputError: it is missing, broken, or holds no frame; the sentence names the file.
    """
    shown = printable(str(path))
    if path.is_dir():
        files = pictures_of(path)
        if not files:
            raise InputError(f"{shown}: the folder holds no pictures; expected one a frame.")
        if len(files) > MAX_FRAMES:
            raise InputError(f"{shown}: holds {len(files)} pictures; at most {MAX_FRAMES} frames are read.")
        return _stacked([read_image(file) for file in files], shown)
    if path.suffix.lower() == ".gif":
        return _stacked(_gif(path), shown)
    return read_frames(path)


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder that stands for a video: identity.png first, then by name, numbers in their order.

    What ends with .mask.png is no picture but the mask of one, as `kaleido generate --group` writes it.
    """
    found = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.endswith(MASK_SUFFIX)
    ]
    words = lambda name: [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", name)]
    return sorted(found, key=lambda file: (file.stem != "identity", words(file.name)))


def _gif(path: Path) -> list[np.ndarray]:
    data = read_bytes(path, MAX_BYTES, "a GIF")
    try:
        with Image.open(io.BytesIO(data), formats=("GIF",)) as animation:
            count = getattr(animation, "n_frames", 1)
            if count > MAX_FRAMES or count * animation.width * animation.height > MAX_PIXELS:
                raise InputError(f"{printable(str(path))}: has {count} frames of {animation.size} pixels; too many.")
            return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever broken bytes lead them to
        raise InputError(f"{printable(str(path))}: is damaged or no GIF ({type(error).__name__}).") from None


def _stacked(frames: list[np.ndarray], shown: str) -> np.ndarray:
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        raise InputError(f"{shown}: its frames have the sizes {sorted(sizes)}; expected one and the same.")
    return np.stack(frames)


def read_masks(path: Path, video: UInt8[np.ndarray, "f h w 3"]) -> tuple[np.ndarray, np.ndarray]:
    """(instances uint8 `[f, h, w]`, 0 for none; the subject that each was found as, int `[i]`) of a case's masks.

    Raises:
      InputError: the file is missing or broken, or the masks are not of the video's size.
    """
    shown = printable(str(path))
    data = read_bytes(path, MAX_BYTES, "an .npz with masks")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            masks = file["masks"]
            subjects = file["subjects"] if "subjects" in file else np.arange(1, int(masks.max(initial=0)) + 1)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{shown}: holds no masks that can be read ({type(error).__name__}).") from None
    if masks.dtype != np.uint8 or masks.shape != video.shape[:3]:
        raise InputError(
            f"{shown}: masks are {masks.dtype} {list(masks.shape)}; the video needs uint8 {list(video.shape[:3])}."
        )
    if subjects.ndim != 1 or len(subjects) < masks.max(initial=0) or not np.issubdtype(subjects.dtype, np.integer):
        raise InputError(f"{shown}: subjects must be whole numbers, one for each of {masks.max()} instances.")
    return masks, subjects.astype(np.int64)


def masks_beside(folder: Path, video: UInt8[np.ndarray, "f h w 3"]) -> tuple[np.ndarray, np.ndarray] | None:
    """As `read_masks`, of grey pictures <name>.mask.png beside each picture of a folder: every grey is a subject.

    None if a picture has none. Raises InputError: one is broken, or not of the video's size.
    """
    files = [file.with_name(file.stem + MASK_SUFFIX) for file in pictures_of(folder)]
    if not all(file.is_file() for file in files):
        return None
    greys = [read_image(file)[..., 0] for file in files]
    for file, grey in zip(files, greys):
        if grey.shape != video.shape[1:3]:
            raise InputError(f"{printable(str(file))}: is {list(grey.shape)}; the picture is {list(video.shape[1:3])}.")
    levels = sorted(set(np.unique(greys).tolist()) - {0})
    masks = np.searchsorted(np.array([0, *levels]), np.stack(greys)).astype(np.uint8)
    return masks, np.arange(1, len(levels) + 1)


class Files:
    """What there is to see of a case, read from its files when it is first asked for.

    Raises:
      InputError: (when made) the video is missing or broken; (later) a reference or the masks are.
    """

    def __init__(self, case: RunCase):
        self._case = case
        self.video = read_frames_of(case.video)

    @functools.cached_property
    def references(self) -> list[np.ndarray]:
        """The reference pictures, uint8 `[h, w, 3]` each."""
        return [read_image(reference.path) for reference in self._case.references]

    @functools.cached_property
    def reference_masks(self) -> list[np.ndarray | None]:
        """Where the subject is in each of them, bool `[h, w]`; None where that is not known."""
        return [reference_mask(*pair) for pair in zip(self._case.references, self.references)]

    @functools.cached_property
    def masks(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(instances uint8 `[f, h, w]`, the subject that each was found as), or None."""
        if self._case.masks is None:
            return masks_beside(self._case.video, self.video) if self._case.video.is_dir() else None
        return read_masks(self._case.masks, self.video)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What there is to see of a case that is in memory; fields as those of `Files`."""

    video: np.ndarray
    references: list[np.ndarray]
    reference_masks: list[np.ndarray | None]
    masks: tuple[np.ndarray, np.ndarray] | None


def reference_mask(reference: Reference, picture: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"] | None:
    """Where the subject is in its reference: from its mask, or what is not the plain white around it; None if unknown.

    White counts as surrounding where it reaches the picture's border and takes at least `BORDER` of the picture. A
    cut-out without white around it cannot be told from a picture with a background: it needs a mask.
    """
    if reference.mask is not None:
        mask = read_image(reference.mask)[..., 0] > 127
        if mask.shape != picture.shape[:2]:
            raise InputError(
                f"{printable(str(reference.mask))}: has {mask.shape[1]} x {mask.shape[0]} pixels; its picture has "
                f"{picture.shape[1]} x {picture.shape[0]}."
            )
        return mask
    return None if reference.subject == 0 else white_surrounding(picture)


def white_surrounding(picture: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"] | None:
    """What is inside the plain white around it, or None where there is too little white at the border."""
    white = (picture >= WHITE).all(-1)
    reached = np.zeros_like(white)
    reached[0], reached[-1], reached[:, 0], reached[:, -1] = white[0], white[-1], white[:, 0], white[:, -1]
    while True:  # a flood from the border, a run of rows and columns at a time
        before = reached.sum()
        for axis in (0, 1):
            for step in (1, -1):
                reached = _swept(reached, white, axis, step)
        if reached.sum() == before:
            break
    return None if reached.mean() < BORDER or reached.all() else ~reached


def _swept(reached: np.ndarray, white: np.ndarray, axis: int, step: int) -> np.ndarray:
    """What a flood reaches going one way: every white pixel after a reached one in its run of white."""
    lines, free = (np.moveaxis(x, axis, -1)[..., ::step] for x in (reached, white))
    place = np.arange(lines.shape[-1])
    last = np.maximum.accumulate(np.where(lines, place, -1), axis=-1)
    wall = np.maximum.accumulate(np.where(~free, place, -1), axis=-1)
    out = free & (last > wall)
    return np.moveaxis(out[..., ::step], -1, axis)
