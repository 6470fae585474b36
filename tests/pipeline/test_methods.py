"""Videos by methods other than Kaleido, from references to frames, on a tiny model with random weights."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.media.video import write_mp4
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle

PROMPT = "a red cat walks left"


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def clip(path, frames):
    write_mp4(path, np.stack([picture(9)] * frames), 8)
    return str(path)


@pytest.fixture(scope="module")
def anyid():
    return Pipeline(tiny_bundle(dataclasses.replace(TINY_CONFIG, method="anyid", scheme="concat-after")))


def test_anyid_takes_pictures_and_clips_and_a_primary_one(anyid, tmp_path):
    references = [picture(0), clip(tmp_path / "a.mp4", 5)]
    one = anyid(references=references, prompt=PROMPT)
    assert one.video.shape == (5, 32, 48, 3) and [len(r.pixels) for r in one.references] == [1, 5]
    other = anyid(references=references, prompt=PROMPT, primary=2)
    assert [len(r.pixels) for r in other.references] == [5, 1]
    np.testing.assert_array_equal(anyid(references=references[::-1], prompt=PROMPT).video, other.video)
    # Which of the two is the primary one matters, and so does guidance away from the empty condition.
    plain = anyid(references=references, prompt=PROMPT, guidance=1.0)
    for changed in (other, plain):
        assert np.abs(changed.video.astype(int) - one.video).mean() > 0.1


def test_kept_references_give_the_same_video():
    """Two bytes: rounding of another order of sums, over three steps."""
    config = dataclasses.replace(TINY_CONFIG, method="anyid", scheme="concat-after", options=("rule=unidirectional",))
    request = {"references": [picture(0), picture(1)], "prompt": PROMPT}
    pipeline = Pipeline(tiny_bundle(config))
    told = []
    kept = pipeline(**request, progress=lambda what, done, total: told.append(what)).video
    # 2 branches, 2 layers, 3 slots of 2 x 3 tokens, keys and values of 32 float32 numbers.
    assert f"keeping {2 * 2 * 18 * 2 * 32 * 4 / 1e9:.3g} GB of the references" in told
    anew = pipeline(**request, reference_cache="none").video.astype(int)
    assert np.abs(anew - kept).max() <= 2
    in_bytes = pipeline(**request, reference_cache="int8").video.astype(int)
    assert 0 < np.abs(anew - in_bytes).mean() < 2  # 1 in 127 of each head's largest value is lost
    # On a mesh every device has one of the two heads.
    pipeline.spread(MeshConfig.parse("fsdp=2,sequence=2,tensor=2"))
    assert np.abs(pipeline(**request).video.astype(int) - kept).max() <= 2


def test_branches_share_references_that_read_no_text():
    """Text alone is guided, so both branches have the same references: half of what is kept. Two bytes, as above."""
    options = ("rule=unidirectional", "reference_time=zero", "references_read_text=False")
    pipeline = Pipeline(tiny_bundle(dataclasses.replace(TINY_CONFIG, options=options)))
    told, request = [], {"references": [picture(0)], "prompt": PROMPT, "guidance": 3.0}
    kept = pipeline(**request, progress=lambda what, done, total: told.append(what)).video
    # 2 layers, 3 slots of 2 x 3 tokens, keys and values of 32 float32 numbers.
    assert f"keeping {2 * 18 * 2 * 32 * 4 / 1e9:.3g} GB of the references" in told
    anew = pipeline(**request, reference_cache="none").video.astype(int)
    assert np.abs(anew - kept).max() <= 2


def test_contextanyone_returns_the_reference_as_it_paints_it(tmp_path):
    transformer = dataclasses.replace(TINY_CONFIG.transformer, image_dim=16, emphasis=True)
    config = dataclasses.replace(TINY_CONFIG, method="contextanyone", scheme="gap", transformer=transformer)
    pipeline = Pipeline(tiny_bundle(config))
    result = pipeline(references=[picture(0)], prompt=PROMPT)
    assert [again.shape for again in result.reconstructions] == [(1, 32, 48, 3)]
    assert result.video.shape == (5, 32, 48, 3)
    # Beside the video it is on the contact sheet, after the reference.
    result.save(tmp_path / "with.mp4")
    dataclasses.replace(result, reconstructions=()).save(tmp_path / "without.mp4")
    assert Image.open(tmp_path / "with.sheet.png").tobytes() != Image.open(tmp_path / "without.sheet.png").tobytes()
    # It depends on the reference and not on the video's noise.
    np.testing.assert_array_equal(
        pipeline(references=[picture(0)], prompt=PROMPT, seed=1).reconstructions[0], result.reconstructions[0]
    )


def test_references_that_anyid_cannot_take(anyid, tmp_path):
    with pytest.raises(InputError, match="fewer than 5 frames at 8 a second"):
        anyid(references=[clip(tmp_path / "b.mp4", 3)], prompt=PROMPT)
    with pytest.raises(InputError, match="number 3, and there are 1"):
        anyid(references=[picture(0)], prompt=PROMPT, primary=3)
    with pytest.warns(UserWarning, match="no reference"), pytest.raises(UsageError, match="anyid takes 1 to 5"):
        anyid(references=[], prompt=PROMPT)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_scene_of_shots(attention, tmp_path):
    """All together, or one after the other: then a shot cannot know of those after it."""
    config = dataclasses.replace(TINY_CONFIG, method="lct", scheme="interleaved", options=(f"attention={attention}",))
    pipeline = Pipeline(tiny_bundle(config))
    scene = pipeline(references=[], prompt="a red cat || walks left || jumps right")
    assert scene.video.shape == (10, 32, 48, 3)
    scene.save(tmp_path / "scene.mp4")
    assert (tmp_path / "scene.sheet.png").stat().st_size > 1000
    other = pipeline(references=[], prompt="a red cat || walks left || a blue dog").video.astype(int)
    changed = np.abs(other - scene.video).reshape(2, -1).mean(axis=1)
    assert changed[1] > 0.1 and (changed[0] > 0) == (attention == "bidirectional")
    with pytest.raises(UsageError, match="Shot 1 has no prompt"):
        pipeline(references=[], prompt="a red cat || || walks")
    with pytest.raises(UsageError, match="There are 1 references, and lct takes none"):
        pipeline(references=[picture(0)], prompt="a red cat || walks")


def test_a_scene_for_another_network():
    options = ("global_prompt=dummy", "prompts_in=sequence")
    config = dataclasses.replace(TINY_CONFIG, method="lct", scheme="interleaved", options=options)
    with pytest.raises(InputError, match=r"tiny is a Wan, which reads no prompts in its sequence"):
        Pipeline(tiny_bundle(config))
