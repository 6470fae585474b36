"""Faces: points to aligned pictures as scikit-image has it, and both networks against torch."""

import json
import warnings

import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from safetensors.torch import save_file
from skimage.transform import SimilarityTransform, warp
from torch import nn

from kaleido_jax.cli.main import main
from kaleido_jax.errors import InputError
from kaleido_jax.evaluation.faces import TEMPLATE, FaceFeatures, aligned, similarity
from kaleido_jax.models.faces import FaceConfig, FaceEncoder, params
from kaleido_jax.models.mapping import abstract_parameters, torch_shapes
from kaleido_jax.testing import randomise

SIZE = 16  # of a face in the small networks: three halvings and two pixels left


def convolution(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False)


class ArcBlock(nn.Module):
    """As the paper's figure and InsightFace's names have it."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(n_in), convolution(n_in, n_out, 3)
        self.bn2, self.prelu = nn.BatchNorm2d(n_out), nn.PReLU(n_out)
        self.conv2, self.bn3 = convolution(n_out, n_out, 3, stride), nn.BatchNorm2d(n_out)
        if stride > 1:
            self.downsample = nn.Sequential(convolution(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (self.downsample(x) if hasattr(self, "downsample") else x)


class ArcNetwork(nn.Module):
    def __init__(self, depths, channels, features, size):
        super().__init__()
        self.conv1, self.bn1, self.prelu = (
            convolution(3, channels[0], 3), nn.BatchNorm2d(channels[0]), nn.PReLU(channels[0])
        )  # fmt: skip
        for stage, depth in enumerate(depths):
            blocks = [ArcBlock(channels[stage], channels[stage + 1], 2)]
            blocks += [ArcBlock(channels[stage + 1], channels[stage + 1], 1) for _ in range(depth - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.bn2 = nn.BatchNorm2d(channels[-1])
        side = size // 2 ** len(depths)
        self.fc, self.features = nn.Linear(channels[-1] * side**2, features), nn.BatchNorm1d(features)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))


class CurricularBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride)
        if n_in != n_out:
            self.shortcut_layer = nn.Sequential(convolution(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(n_in), convolution(n_in, n_out, 3), nn.BatchNorm2d(n_out), nn.PReLU(n_out),
            convolution(n_out, n_out, 3, stride), nn.BatchNorm2d(n_out),
        )  # fmt: skip

    def forward(self, x):
        return self.shortcut_layer(x) + self.res_layer(x)


def curricular_network(depths, channels, features, size):
    first = channels[0]
    blocks = [
        CurricularBlock(channels[stage] if not block else channels[stage + 1], channels[stage + 1], 1 if block else 2)
        for stage, depth in enumerate(depths)
        for block in range(depth)
    ]
    side = size // 2 ** len(depths)
    network = nn.Sequential()
    network.add_module("input_layer", nn.Sequential(convolution(3, first, 3), nn.BatchNorm2d(first), nn.PReLU(first)))
    network.add_module("body", nn.Sequential(*blocks))
    network.add_module(
        "output_layer",
        nn.Sequential(
            nn.BatchNorm2d(channels[-1]), nn.Dropout(0.4), nn.Flatten(),
            nn.Linear(channels[-1] * side**2, features), nn.BatchNorm1d(features, affine=False),
        ),
    )  # fmt: skip
    return network


NETWORKS = {"arcface": ArcNetwork, "curricularface": curricular_network}
DEPTHS, CHANNELS, FEATURES = (2, 1, 3), (6, 6, 8, 10), 12


def peer(layout: str) -> nn.Module:
    """A network of random weights and statistics."""
    network = randomise(NETWORKS[layout](DEPTHS, CHANNELS, FEATURES, SIZE)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return network


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, tmp_path_factory):
    found = peer(request.param)
    path = tmp_path_factory.mktemp("faces") / "backbone.safetensors"
    save_file(found.state_dict(), path)  # with how many batches each norm has seen
    return request.param, found, path


def face_points(rng: np.random.Generator, size: int) -> np.ndarray:
    """The template turned, scaled and moved in a picture, with a little noise."""
    angle, scale = rng.uniform(-0.5, 0.5), rng.uniform(0.3, 0.5) * size / 112
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (TEMPLATE - 56) @ turn.T + size * rng.uniform(0.4, 0.6, 2) + rng.normal(0, size / 200, (5, 2))


def test_features_are_those_of_torch(network):
    layout, theirs, path = network
    ours = FaceFeatures(path)
    assert ours.size == SIZE and ours.name.startswith(f"{layout} 2-1-3; backbone.safetensors sha256 ")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (90, 80, 3), np.uint8) for _ in range(2)]
    points = np.stack([face_points(rng, 80) for _ in pictures])
    faces = np.stack([aligned(*pair, SIZE) for pair in zip(pictures, points)])
    pixels = torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        expected = theirs(pixels).numpy()
    # Measured 1e-6 of values of order 1; the project's limit for scores is 1e-4.
    np.testing.assert_allclose(ours(pictures, points), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layout", NETWORKS)
def test_released_sizes_are_told_by_the_shapes(layout):
    """Of r50, r100 and IR-101, by networks of torch that are not allocated."""
    releases = {
        "arcface": [FaceConfig.arcface_r50(), FaceConfig.arcface_r100()],
        "curricularface": [FaceConfig.curricularface_r101()],
    }
    for config in releases[layout]:
        with torch.device("meta"):
            network = NETWORKS[layout](config.depths, config.channels, config.features, config.image_size)
        shapes = {name: tuple(x.shape) for name, x in network.state_dict().items() if not params.ignored(name)}
        assert params.layout_of(shapes) == layout and params.config_from(shapes, layout) == config
        ours = abstract_parameters(lambda config=config: FaceEncoder(config, nnx.Rngs(0)))
        assert torch_shapes(params.mapping(config, layout), ours) == shapes


def test_faces_are_aligned_as_elsewhere():
    rng = np.random.default_rng(2)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).resize((150, 180)))
    for size in (150, 260):  # the second one reaches beyond the picture
        points = face_points(rng, size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-image's names change
            theirs = SimilarityTransform()
            theirs.estimate(points, TEMPLATE)
        matrix = similarity(points, TEMPLATE)
        np.testing.assert_allclose(matrix, theirs.params[:2], atol=1e-9)
        expected = warp(smooth, theirs.inverse, output_shape=(112, 112), order=1, preserve_range=True)
        apart = np.abs(aligned(smooth, points) - expected)
        assert np.percentile(apart, 99.9) <= 0.51  # it is rounded; on the picture's very edge more


def test_a_run_is_scored_by_networks_and_points(network, run_folder, tmp_path):
    layout, _, path = network
    faces = tmp_path / "points"
    faces.mkdir()
    points = np.array([[10, 10], [20, 10], [15, 15], [11, 19], [19, 19]], float)
    frames = np.repeat(points[None], 5, axis=0)
    frames[3] = np.nan  # nothing was found
    np.savez(faces / "right.npz", frames=frames, references=points[None])
    np.savez(faces / "wrong.npz", frames=frames[:2], references=points[None])
    score, out = {"arcface": "arcface", "curricularface": "holi_cur"}[layout], tmp_path / "out"
    options = ["--metric", score, "--encoder", f"{layout}={path}", "--faces", str(faces)]
    assert main(["evaluate", str(run_folder), "--out", str(out), *options]) == 0
    found = json.loads((out / "results.json").read_text())
    assert found["settings"]["encoders"][layout].startswith(layout)
    (right, wrong) = (item["values"][score] for item in found["videos"])
    assert right is not None and -1 <= right <= 1 and wrong is None
    assert "wrong.npz: frames are [2, 5, 2]; expected [5, 5, 2]" in found["unreadable"]["wrong"]
    # All but one of the frames show a face, and the one that does not counts 0.
    assert main(["evaluate", str(run_folder), "--out", str(tmp_path / "b"), *options, "--undetected", "skip"]) == 0
    skipped = json.loads((tmp_path / "b" / "results.json").read_text())["videos"][0]["values"][score]
    shift = (lambda x: x) if layout == "arcface" else (lambda x: 2 * x - 1)
    assert shift(right) == pytest.approx(0.8 * shift(skipped), abs=1e-9)


def test_other_weights_are_refused(tmp_path, run_folder, capsys):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"other.safetensors: the tensors are none of ArcFace's"):
        FaceFeatures(tmp_path / "other.safetensors")
    options = ["--metric", "arcface", "--out", str(tmp_path / "out")]
    for more, sentence in (
        (["--encoder", "arcface=world"], "--encoder is arcface=world; the world's own features are no arcface"),
        (["--faces", "nowhere"], "nowhere: there is no such folder of points of faces."),
    ):
        assert main(["evaluate", str(run_folder), *options, *more]) in (2, 65)
        assert sentence in capsys.readouterr().err
