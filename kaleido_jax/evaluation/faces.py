"""From pictures and five points on each face to features that tell people apart.

The points come from any detector of faces (RetinaFace and SCRFD give them): the eye on the picture's left, the one on
its right, the tip of the nose, the corner of the mouth on the left, the one on the right, x and y in pixels. Each face
is turned, scaled and moved so that they lie as near as can be to fixed places in 112 x 112 pixels, as ArcFace and
CurricularFace were trained.
"""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, UInt8

from kaleido_jax.bundle import abstract, merge
from kaleido_jax.errors import InputError, printable
from kaleido_jax.evaluation.encoders import digest, existing
from kaleido_jax.media.images import read_bytes
from kaleido_jax.models import mapping
from kaleido_jax.models.faces import FaceEncoder, params
from kaleido_jax.porting.torch_files import TorchFile
from kaleido_jax.porting.weights import open_weights

ROLES = {"arcface": "ArcFace", "curricularface": "CurricularFace"}
BATCH = 16
MAX_BYTES = 100_000_000
# Where the five points lie in an aligned face of 112 x 112 pixels (InsightFace's template).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


def similarity(points: Float[np.ndarray, "n 2"], onto: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "2 3"]:
    """The turn, scale and shift that bring points nearest to others (Umeyama 1991, equations 40 to 42)."""
    middle, target = points.mean(0), onto.mean(0)
    left, sizes, right = np.linalg.svd((onto - target).T @ (points - middle) / len(points))
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])  # a turn, never a mirror image
    turn = left @ np.diag(signs) @ right
    scale = (sizes * signs).sum() / np.square(points - middle).sum(1).mean()
    return np.concatenate([scale * turn, (target - scale * turn @ middle)[:, None]], axis=1)


def aligned(
    picture: UInt8[np.ndarray, "h w 3"], points: Float[np.ndarray, "5 2"], size: int = 112
) -> UInt8[np.ndarray, "size size 3"]:
    """The face with its points at the template's, black beyond the picture, between pixels bilinear."""
    matrix = similarity(points.astype(np.float64), TEMPLATE * (size / 112))
    back = np.linalg.inv(np.concatenate([matrix, [[0.0, 0.0, 1.0]]]))[:2]
    y, x = np.mgrid[:size, :size].astype(np.float64)
    x, y = (row[0] * x + row[1] * y + row[2] for row in back)
    height, width = picture.shape[:2]
    edged = np.pad(picture.astype(np.float32), ((1, 1), (1, 1), (0, 0)))
    # Beyond a pixel outside everything is black.
    x, y = np.clip(x + 1, 0, width + 1 - 1e-6), np.clip(y + 1, 0, height + 1 - 1e-6)
    left, top = x.astype(int), y.astype(int)
    across, down = (x - left)[..., None], (y - top)[..., None]
    above = edged[top, left] * (1 - across) + edged[top, left + 1] * across
    below = edged[top + 1, left] * (1 - across) + edged[top + 1, left + 1] * across
    return np.round(above * (1 - down) + below * down).astype(np.uint8)


class FaceFeatures:
    """A face recognition network with its weights; `name` says which."""

    def __init__(self, path: str | Path):
        """From a .pth, .pt, .bin or .safetensors file of InsightFace's arcface_torch or of CurricularFace.

        Raises:
          InputError, UsageError: there are no such weights, or they are damaged.
        """
        source = Path(existing(path))
        weights = TorchFile(source) if source.suffix == ".bin" else open_weights(source)
        try:
            names = [name for name in weights.tensors if not params.ignored(name)]
            shapes = {name: tuple(weights.tensors[name].shape) for name in names}
            try:
                layout = params.layout_of(shapes)
                config = params.config_from(shapes, layout)
            except ValueError as error:
                raise InputError(f"{printable(str(path))}: {error}") from None
            read = {name: weights.read(name) for name in names}
        finally:
            weights.close()
        make = lambda: FaceEncoder(config, nnx.Rngs(0))
        found = mapping.from_torch(
            read, params.mapping(config, layout), mapping.abstract_parameters(make), f"the weights of {layout}"
        )
        self._parameters = jax.device_put({name: np.asarray(x, np.float32) for name, x in found.items()})
        graph, _ = abstract(make)
        self._encode = jax.jit(lambda parameters, x: merge(graph, parameters)(x))
        self.size = config.image_size
        self.name = f"{layout} {'-'.join(map(str, config.depths))}; {source.name} sha256 {digest(read)}"

    def __call__(self, pictures: Sequence[np.ndarray], points: Float[np.ndarray, "n 5 2"]) -> Float[np.ndarray, "n d"]:
        """Features of the faces in uint8 pictures `[h, w, 3]`, a row each."""
        faces = np.stack([aligned(*pair, self.size) for pair in zip(pictures, points)])
        pixels = (faces.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
        rows = []
        for start in range(0, len(pixels), BATCH):
            part = pixels[start : start + BATCH]
            whole = np.concatenate([part, np.zeros((BATCH - len(part), *part.shape[1:]), np.float32)])
            rows.append(np.asarray(self._encode(self._parameters, jnp.asarray(whole)))[: len(part)])
        return np.concatenate(rows)


def read_points(path: Path, frames: int, references: int) -> tuple[np.ndarray, np.ndarray]:
    """(points of the frames float `[f, 5, 2]`, of the references `[r, 5, 2]`) from an .npz; NaN where no face is.

    Raises:
      InputError: the file is missing or broken, or not of so many frames and references.
    """
    shown = printable(str(path))
    try:
        with np.load(io.BytesIO(read_bytes(path, MAX_BYTES, "points of faces")), allow_pickle=False) as file:
            found = [np.asarray(file[name], np.float64) for name in ("frames", "references")]
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{shown}: holds no points that can be read ({printable(str(error), 80)}).") from None
    for name, points, count in zip(("frames", "references"), found, (frames, references)):
        if points.shape != (count, 5, 2):
            raise InputError(f"{shown}: {name} are {list(points.shape)}; expected [{count}, 5, 2]: x and y of 5.")
    return found[0], found[1]
