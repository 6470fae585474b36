"""Wan's own models through the pipeline: a first frame as channels and CLIP's tokens, and two experts.

The networks, the channels and the switch are compared with diffusers' pipelines in tests/models/wan/test_pipelines.py;
here is what the pipeline makes of them, from folders that `port` wrote.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.bundle import Experts, load_bundle, parameters, save_bundle
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.layout import patchify
from kaleido_jax.media.references import fill
from kaleido_jax.methods.method import Condition
from kaleido_jax.methods.registry import create
from kaleido_jax.models.vision import VisionConfig
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.pipeline.references import read_references
from kaleido_jax.porting import export, port
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle

VISION = dataclasses.replace(
    VisionConfig.clip_h14(), dim=24, ffn_dim=20, heads=2, layers=2, patch=112, projection=None
)  # fmt: skip
CONFIG = dataclasses.replace(
    TINY_CONFIG,
    method="wan",
    scheme="channel-concat",
    options=("frames=first",),
    transformer=dataclasses.replace(TINY_CONFIG.transformer, in_channels=12, image_dim=24),
    vision=VISION,
    experts=Experts(boundary=0.7, guidance=2.0),
    defaults=dataclasses.replace(TINY_CONFIG.defaults, references=0, negative_prompt="dog jumps"),
)
PROMPT = "a red cat walks left"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder whose networks came from a release's folders: transformer/, transformer_2/ and image_encoder/."""
    release, folder = tmp_path_factory.mktemp("release"), tmp_path_factory.mktemp("model") / "tiny"
    bundle = tiny_bundle(CONFIG)
    save_bundle(folder, bundle)
    for part, name in (("transformer", "transformer"), ("transformer_2", "transformer_2"), ("vision", "image_encoder")):
        sizes = VISION if part == "vision" else CONFIG.transformer
        export(parameters(bundle.networks[part]), sizes, release / name)
        (folder / f"{part}.safetensors").unlink()
        port(release / name, folder / f"{part}.safetensors", to="kaleido")
    for part, network in load_bundle(folder).networks.items():
        for name, value in parameters(bundle.networks[part]).items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(parameters(network)[name]), err_msg=name)
    return folder


def test_a_first_frame_and_two_experts(model, monkeypatch):
    pipeline = Pipeline.load(model, compile_cache=False)
    asked, original = [], pipeline.program

    def spy(what, *arguments):
        program = original(what, *arguments)

        def run(weights, *given):
            asked.append((next(name for name, own in pipeline.weights.items() if own is weights["transformer"]), given))
            return program(weights, *given)

        return run if what == "transformer" else program

    monkeypatch.setattr(pipeline, "program", spy)
    make = lambda seed, **fields: pipeline(references=[picture(seed)], prompt=PROMPT, **fields)
    video = make(0)
    assert video.video.shape == (5, 32, 48, 3) and video.settings.decode == "whole"
    # Times of 3 steps of shift 3: 1, 6 / 7 and 0.6, of which the first two are of high noise.
    assert [name for name, _ in asked] == ["transformer", "transformer", "transformer_2"]
    assert [given[3].tolist() for _, given in asked] == [[-2.0, 3.0], [-2.0, 3.0], [-1.0, 2.0]]
    condition = asked[0][1][2]
    assert condition.references[0].shape == (2, 2, 4, 6, 4) and condition.image.shape == (2, 1 + 4, 24)
    assert not np.array_equal(condition.text[0], condition.text[1])  # the negative prompt is a text of its own
    # Padding is zero, and is read: "a red cat walks left" has 5 words and an end.
    assert np.abs(condition.text[1]).max(axis=1).astype(bool).tolist() == [True] * 6 + [False] * 2
    asked.clear()
    assert not np.array_equal(make(1).video, video.video)  # another first frame
    make(0, guidance=4.0)
    assert [given[3].tolist() for _, given in asked[3:]] == [[-3.0, 4.0]] * 3  # one that is asked for is of both
    tiled = make(0, decode="tiled").video
    assert np.abs(tiled.astype(int) - video.video).max() <= 1  # the frame is one tile
    # Without the image encoder's part in it the video is another.
    weights = dict(pipeline.weights["vision"])
    pipeline.weights["vision"] = {name: value * 2 for name, value in weights.items()}
    assert not np.array_equal(make(0).latents, video.latents)
    pipeline.weights["vision"] = weights
    pipeline.weights["transformer_2"] = {name: 0 * value for name, value in pipeline.weights["transformer_2"].items()}
    assert not np.array_equal(make(0).latents, video.latents)

    with pytest.raises(UsageError, match="There are 0 pictures; this model takes one, the first frame"):
        pipeline(references=[], prompt=PROMPT)
    with pytest.raises(UsageError, match="decode is 'tile'; it must be one of auto, whole, tiled"):
        make(0, decode="tile")


def test_channels_of_given_frames():
    """The noisy latents, the mask's four channels, the latents of the clip."""
    random = np.random.default_rng(0)
    video, clip = (jnp.asarray(random.standard_normal((2, 3, 2, 2, 4)), jnp.float32) for _ in range(2))
    absent = np.zeros((2, 0), np.int32)
    condition = Condition(
        text=jnp.zeros((2, 8, 16)), text_lengths=np.full((2, 1), 3), references=[clip], reference_frames=absent,
        subjects=absent,
    )  # fmt: skip
    mask = np.zeros((2, 3, 2, 2, 4), np.float32)
    mask[:, 0] = 1
    for frames, last in (("first", 0), ("first-last", 1)):
        mask[:, 2, :, :, 3] = last
        method = create("wan", "", (f"frames={frames}",))
        expected = patchify(jnp.concatenate([video, mask, clip], axis=4), (1, 1, 1))
        np.testing.assert_array_equal(method.tokens(video, condition, (1, 1, 1)), expected)
        assert method.in_channels(16, 0) == 36
    method = create("wan")
    assert (method.in_channels(16, 3), method.tokens(video, condition, (1, 1, 1)).shape) == (16, (2, 12, 4))
    layout = method.layout((3, 2, 2), [], texts=(8,))
    table = method.table(layout, np.full((2, 1), 0.5, np.float32), condition)
    assert table.self_mask is None and table.text_mask is None
    np.testing.assert_array_equal(table.positions[0, -1], [2, 1, 1])
    np.testing.assert_array_equal(table.lengths, [[12, 8]] * 2)


def test_frames_fill_the_video(tmp_path):
    wide = np.repeat(np.arange(0, 100, dtype=np.uint8)[None, :, None], 10, axis=0).repeat(3, axis=2)
    filled = fill(wide, 20, 40)  # twice as large, and 80 columns too many on either side
    assert (
        filled.shape == (20, 40, 3) and abs(int(filled[10, 0, 0]) - 40) <= 1 and abs(int(filled[10, -1, 0]) - 59) <= 1
    )
    (reference,) = read_references([wide], height=20, width=40, frames=5, frames_per_second=8, show="frames")
    np.testing.assert_array_equal(reference.pixels[0], filled)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(24))
    with pytest.raises(InputError, match="is a clip; give pictures of the frames"):
        read_references([tmp_path / "clip.mp4"], height=20, width=40, frames=5, frames_per_second=8, show="frames")


def test_experts_are_for_methods_that_know_them():
    with pytest.raises(InputError, match=r"experts\.boundary is 1\.5; expected a time between 0 and 1"):
        Experts(boundary=1.5, guidance=1.0)
    config = dataclasses.replace(CONFIG, method="lct", scheme="interleaved", options=())
    with pytest.raises(InputError, match="tiny has two transformers, which lct does not know"):
        Pipeline(dataclasses.replace(tiny_bundle(CONFIG), config=config))
