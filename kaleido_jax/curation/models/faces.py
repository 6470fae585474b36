"""Faces of any turn by YuNet (Wu et al., 2023): OpenCV (extra `curation`), and weights in a file that the user gives.

The network marks both eyes, the tip of the nose and both corners of the mouth; the head's turn is that of an average
face whose five points, seen from far away, fit best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from kaleido_jax.curation.models.classical import opencv
from kaleido_jax.curation.models.protocol import Face
from kaleido_jax.curation.models.transformers import scaled
from kaleido_jax.errors import InputError

# Millimetres from the middle between the eyes: to the right, down, away from who looks. The first is the eye on the
# left of the picture. Eyes are 63 apart, as they are of adults in the mean; the others follow the usual templates of
# aligned faces, their depths are rounded.
POINTS = np.array([(-31.5, 0, 0), (31.5, 0, 0), (0, 36, -35), (-26, 73, -10), (26, 73, -10)], np.float64)


def head_turn(points: Float[np.ndarray, "5 2"]) -> tuple[float, float]:
    """(yaw, pitch) in degrees of a face whose eyes, nose and corners of the mouth lie there, x and y down.

    0, 0 looks into the camera; yaw is positive towards the picture's right, pitch upwards. The five points are taken
    for a scaled orthographic view of POINTS: its 2 x 3 matrix by least squares, and the nearest two rows of a rotation.
    """
    seen = points - points.mean(0)
    matrix = np.linalg.lstsq(POINTS - POINTS.mean(0), seen, rcond=None)[0].T
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    across, down = left @ right
    away = np.cross(across, down)
    x, y, z = -across[2], -down[2], -away[2]  # where the face looks
    return float(np.degrees(np.arctan2(x, -z))), float(np.degrees(np.arcsin(np.clip(-y, -1, 1))))


@dataclass(frozen=True, kw_only=True)
class YuNet:
    """path: of the network as ONNX (face_detection_yunet, MIT). score: the least of a face. side: the longest side at
    which pictures are searched. overlap: of two boxes above this intersection over union one is kept."""

    path: str
    score: float = 0.5
    side: int = 640
    overlap: float = 0.3

    def load(self) -> "_YuNet":
        if not Path(self.path).is_file():
            raise InputError(f"{self.path}: there is no such file; give YuNet's weights as ONNX.")
        cv2 = opencv()
        try:
            found = cv2.FaceDetectorYN.create(self.path, "", (32, 32), self.score, self.overlap)
        except cv2.error as error:
            raise InputError(f"{self.path}: OpenCV cannot read it as YuNet's weights in ONNX: {error}") from None
        return _YuNet(self, found)


class _YuNet:
    def __init__(self, settings: YuNet, detector: Any):
        self._settings, self._detector = settings, detector

    def find(self, pictures: Sequence[np.ndarray]) -> list[list[Face]]:
        """The faces in each picture, the surest first."""
        return [self._faces(picture) for picture in pictures]

    def _faces(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Face]:
        opencv()  # one thread, so that the same picture gives the same numbers
        height, width = picture.shape[:2]
        scale = min(1.0, self._settings.side / max(height, width))
        high, wide = max(1, round(height * scale)), max(1, round(width * scale))
        self._detector.setInputSize((wide, high))
        _, rows = self._detector.detect(np.ascontiguousarray(scaled(picture, high, wide)[..., ::-1]))
        faces = []
        for row in () if rows is None else rows.astype(np.float64):
            row[:14:2] *= width / wide
            row[1:14:2] *= height / high
            x, y, across, down = (float(value) for value in row[:4])
            yaw, pitch = head_turn(row[4:14].reshape(5, 2))
            faces.append(Face(box=(x, y, x + across, y + down), score=float(row[14]), yaw=yaw, pitch=pitch))
        return sorted(faces, key=lambda face: (-face.score, face.box))
