"""The turn of a head from five points, and YuNet's decoder on a network of its form whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from kaleido_jax.curation.models.faces import POINTS, YuNet, head_turn
from kaleido_jax.errors import InputError


def turned(yaw: float, pitch: float, distance: float) -> np.ndarray:
    """POINTS [5, 2] of a head turned to the picture's right, then up, by a camera `distance` millimetres away."""
    a, b = np.radians((yaw, pitch))
    about_down = np.array([(np.cos(a), 0, -np.sin(a)), (0, 1, 0), (np.sin(a), 0, np.cos(a))])
    about_across = np.array([(1, 0, 0), (0, np.cos(b), np.sin(b)), (0, -np.sin(b), np.cos(b))])
    x, y, z = (about_across @ about_down @ POINTS.T) + np.array([[0], [0], [distance]])
    return 500 * np.stack([x / z, y / z], 1) + 90


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (40, 0), (-65, 0), (0, 30), (0, -40), (30, -20), (-50, 25)])
def test_the_turn_of_a_head(yaw, pitch):
    far = head_turn(turned(yaw, pitch, 1e6))
    # The yaw of a head that is turned, then raised, is that of where it looks.
    look = np.array([np.sin(np.radians(yaw)), np.cos(np.radians(yaw))])
    x, depth = look[0], look[1] * np.cos(np.radians(pitch))
    expected = np.degrees(np.arctan2(x, depth)), np.degrees(np.arcsin(look[1] * np.sin(np.radians(pitch))))
    assert far == pytest.approx(expected, abs=0.01)
    near = head_turn(turned(yaw, pitch, 700))  # at arm's length perspective bends what it says
    assert near == pytest.approx(expected, abs=5)


def varint(value: int) -> bytes:
    low = bytes([value & 127 | (128 if value > 127 else 0)])
    return low + varint(value >> 7) if value > 127 else low


def field(number: int, value: int | bytes | str) -> bytes:
    """A field of a protocol buffer: a whole number, or something with a length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, values: np.ndarray) -> bytes:
    kind = 7 if values.dtype == np.int64 else 1
    return (
        b"".join(field(1, size) for size in values.shape) + field(2, kind) + field(8, name) + field(9, values.tobytes())
    )


def node(kind: str, inputs: list[str], output: str, **attributes: list[int]) -> bytes:
    made = b"".join(field(1, one) for one in inputs) + field(2, output) + field(3, output) + field(4, kind)
    for name, values in attributes.items():
        made += field(5, field(1, name) + b"".join(field(8, value) for value in values) + field(20, 7))
    return made


def value(name: str, sizes: tuple[int, ...]) -> bytes:
    shape = b"".join(field(1, field(1, size)) for size in sizes)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, shape)))


def write_network(path: Path, box: np.ndarray, points: np.ndarray) -> None:
    """YuNet's inputs and outputs: a face in every white cell of 8 pixels, its box and points in cells from there."""
    nodes, weights, outputs = [], [], []
    for stride in (8, 16, 32):
        for name, channels in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            label = f"{name}_{stride}"
            kernel, bias = np.zeros((channels, 3, stride, stride), np.float32), np.zeros(channels, np.float32)
            if channels == 1:  # sigmoid(-9) for black, sigmoid(9) for white
                kernel += np.float32((18 if stride == 8 else 0) / (255 * 3 * stride * stride))
                bias -= np.float32(9)
            else:
                bias += (box if name == "bbox" else points).ravel().astype(np.float32)
            shape = np.array([1, -1, channels], np.int64)
            weights += [tensor(f"{label}.w", kernel), tensor(f"{label}.b", bias), tensor(f"{label}.s", shape)]
            sides = {"kernel_shape": [stride] * 2, "strides": [stride] * 2}
            nodes.append(node("Conv", ["input", f"{label}.w", f"{label}.b"], f"{label}.c", **sides))
            nodes.append(node("Transpose", [f"{label}.c"], f"{label}.t", perm=[0, 2, 3, 1]))
            flat = f"{label}.f" if channels == 1 else label
            nodes.append(node("Reshape", [f"{label}.t", f"{label}.s"], flat))
            if channels == 1:
                nodes.append(node("Sigmoid", [flat], label))
            outputs.append(value(label, (1, (64 // stride) ** 2, channels)))
    graph = b"".join(field(1, one) for one in nodes) + field(2, "faces") + b"".join(field(5, one) for one in weights)
    graph += field(11, value("input", (1, 3, 64, 64))) + b"".join(field(12, one) for one in outputs)
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 11)))


def test_yunet_by_opencv_classical(tmp_path):
    pytest.importorskip("cv2")
    path, points = tmp_path / "yunet.onnx", turned(30, -10, 1e6)
    points = (points - points.mean(0)) / 0.02 / 100
    write_network(path, np.array([0.5, 0.5, np.log(3), np.log(4)]), points)
    finder = YuNet(path=str(path)).load()
    picture = np.zeros((64, 64, 3), np.uint8)
    assert finder.find([picture]) == [[]]
    picture[24:32, 40:48] = 255  # the cell in row 3 and column 5
    (face,) = finder.find([picture])[0]
    assert face.box == pytest.approx((5.5 * 8 - 12, 3.5 * 8 - 16, 5.5 * 8 + 12, 3.5 * 8 + 16), abs=0.01)
    assert face.score == pytest.approx(1, abs=0.01)
    assert (face.yaw, face.pitch) == pytest.approx(head_turn(turned(30, -10, 1e6)), abs=0.01)
    # A larger picture is searched small, and its face told in its own pixels.
    large = np.repeat(np.repeat(picture, 2, 0), 2, 1)
    (other,) = YuNet(path=str(path), side=64).load().find([large])[0]
    assert other.box == pytest.approx(tuple(2 * side for side in face.box), abs=0.02)
    assert (other.yaw, other.pitch) == pytest.approx((face.yaw, face.pitch), abs=0.01)
    with pytest.raises(InputError, match="there is no such file"):
        YuNet(path=str(tmp_path / "none.onnx")).load()
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(InputError, match="cannot read it"):
        YuNet(path=str(tmp_path / "text.onnx")).load()
