"""Pairs from a tiny model, and judges of pairs."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.data.groups import draw_group
from kaleido_jax.data.world import World
from kaleido_jax.describers import ModelDescriber
from kaleido_jax.errors import InputError
from kaleido_jax.media.video import write_mp4
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.preference.files import PAIRS, Pair, append, dominating, read_pairs, read_votes
from kaleido_jax.preference.judges import ModelJudge, WorldJudge, judge
from kaleido_jax.preference.sampling import Request, sample_pairs, world_requests
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle


def test_two_clips_of_each_request(tmp_path):
    """A picture and a clip as references; going on makes only what is missing."""
    random = np.random.default_rng(0)
    picture, clip = (random.integers(0, 256, (n, 32, 48, 3), dtype=np.uint8) for n in (1, 5))
    Image.fromarray(picture[0]).save(tmp_path / "cat.png")
    defaults = dataclasses.replace(TINY_CONFIG.defaults, references=2)
    config = dataclasses.replace(TINY_CONFIG, method="anyid", scheme="concat-after", defaults=defaults)
    pipeline = Pipeline(tiny_bundle(config))
    requests = [Request(prompt="a cat", references=[tmp_path / "cat.png", clip], group=[clip], truth={"motion": "up"})]
    folder, settings = tmp_path / "pairs", Settings(seed=4, steps=1)
    assert sample_pairs(pipeline, requests, folder, settings=settings) == 1
    (pair,) = read_pairs(folder).values()
    assert pair.seeds == (4, 5) and pair.truth == {"motion": "up"}
    assert pair.references == ("000000/reference-1.png", "000000/reference-2.mp4")
    assert pair.group == (*pair.references, "000000/group-1.mp4")
    assert all((folder / file).is_file() for file in pair.files)
    with np.load(folder / pair.latents) as arrays:
        assert arrays["a"].shape == (2, 4, 6, 4) and np.abs(arrays["a"] - arrays["b"]).max() > 0.1
        assert arrays["references"].shape == (2, 2, 4, 6, 4) and not arrays["references"][0, 1].any()
        assert arrays["reference_frames"].tolist() == [1, 2]
        again = pipeline(
            references=[tmp_path / "cat.png", str(folder / pair.references[1])], prompt="a cat", seed=5, steps=1
        )
        np.testing.assert_allclose(arrays["b"], again.latents, atol=1e-2)
    assert sample_pairs(pipeline, requests * 2, folder, settings=settings) == 1
    assert list(read_pairs(folder)) == ["000000", "000001"]


def test_the_worlds_requests():
    requests = world_requests(World(32, 5, photographs=False), references=2, clip=5, photographs=False)
    one, other = next(requests), next(requests)
    assert one.prompt.startswith("the subject") and one.truth["identity"] != other.truth["identity"]
    assert 1 <= len(one.references) <= 2 and one.group[0].shape == (5, 32, 32, 3)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A pair of which a is the truth, and b another subject that does something else somewhere else."""
    folder, world = tmp_path_factory.mktemp("real"), World(96, 17, photographs=False)
    request = next(world_requests(world, references=1, clip=5, photographs=False))
    other = draw_group(world, 11).video
    write_mp4(folder / "a.mp4", request.group[0], 8)
    write_mp4(folder / "b.mp4", other, 8)
    Image.fromarray(request.references[0][0]).save(folder / "r.png")
    files = {"references": ("r.png",), "group": ("r.png", "a.mp4"), "a": "a.mp4", "b": "b.mp4"}
    pair = Pair(id="0", prompt=request.prompt, latents="0.npz", seeds=(0, 1), truth=request.truth, **files)
    append(folder, PAIRS, pair)
    return folder


def test_the_world_knows_which_clip_is_better(real):
    assert judge(real, WorldJudge()) == 2
    pairs = read_pairs(real)
    assert dominating(pairs, read_votes(real, pairs)) == {"0": "a"}
    assert judge(real, WorldJudge()) == 0  # has voted on all


def test_a_model_as_a_judge(real):
    """It sees the group for the identity and the reference with the prompt for control; a dark first clip is worse."""

    class Sees:
        asked = []

        def ask(self, question, check):
            self.asked.append(question)
            place = (
                question.index("Clip A:")
                if isinstance(question[0], str)
                else next(i for i, part in enumerate(question) if isinstance(part, str))
            )
            first = question[place + 1].astype(int)
            return check(json.dumps({"better": "A" if abs(first - self.best).mean() < 8 else "B"}))

    from kaleido_jax.preference.judges import pixels

    model = Sees()
    model.best = pixels(real / "b.mp4")[0].astype(int)
    who = ModelJudge(ModelDescriber(model), "sees")
    (pair,) = read_pairs(real).values()
    assert [who.better(real, pair, track) for track in ("identity", "control")] == ["b", "b"]
    assert len(model.asked) == 4 and pair.prompt in model.asked[-1][-1] and pair.prompt not in model.asked[0][-1]
    assert len(model.asked[0]) - len(model.asked[-1]) == 8  # the clip of the group


def test_a_pair_that_is_not_of_the_world(real):
    (pair,) = read_pairs(real).values()
    with pytest.raises(InputError, match="is not of the procedural world"):
        WorldJudge().better(real, dataclasses.replace(pair, truth={}), "identity")
