"""Groups of pictures with a whole tiny FLUX.1, from prompts to pixels, and a given identity picture."""

import numpy as np
import pytest

from kaleido_jax.errors import UsageError
from kaleido_jax.methods.characonsist import CharaConsist
from kaleido_jax.pipeline.characonsist import ConsistentCharacters
from kaleido_jax.pipeline.group_file import Group, Picture
from kaleido_jax.pipeline.text_to_image import TextToImage, load_flux
from kaleido_jax.testing.tiny_flux import save_tiny_flux

SIZE = {"height": 40, "width": 48, "steps": 5, "seed": 3}


def picture(background, action):
    return Picture(background=background, characters=("a red cat",), action=action)


GROUP = Group(
    identity=picture("in the forest", "walks"),
    frames=tuple(picture(place, "sleeps") for place in ("on the beach", "in the forest", "the beach")),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return TextToImage(load_flux(save_tiny_flux(tmp_path_factory.mktemp("flux")), dtype="float32"))


@pytest.fixture(scope="module")
def maker(model):
    return ConsistentCharacters(model, CharaConsist.released(match_at=20, threshold=-1.0, erode=1))


@pytest.fixture(scope="module")
def made(maker):
    return maker(GROUP, at_once=3, **SIZE)


def test_the_identity_picture_is_that_of_its_prompt_alone(model, made):
    alone = model([GROUP.identity.prompt], **SIZE)[0]
    assert made.pixels.shape == (4, 40, 48, 3) and made.characters.shape == (4, 5, 6)
    assert np.abs(made.pixels[0].astype(int) - alone).max() <= 1  # a batch of four may round otherwise than one of one


def test_frames_are_the_same_however_many_are_made_at_once(maker, made):
    done = []
    fewer = maker(GROUP, at_once=2, progress=lambda *at: done.append(at), **SIZE)
    assert np.abs(fewer.pixels.astype(int) - made.pixels).max() <= 1
    np.testing.assert_array_equal(fewer.characters, made.characters)
    assert done[0] == (0, 16) and done[-1] == (16, 16)  # twice: 3 steps ahead, 5 steps
    assert maker.compiled == 2  # one for three frames, one for two, whatever the step


def test_a_given_identity_picture_comes_back(model, maker, made):
    given = made.pixels[2]
    with_given = maker(GROUP, at_once=3, identity=given, **SIZE)
    again = model.decode(model.latents(given[None]))[0]
    assert np.abs(with_given.pixels[0].astype(int) - again).max() <= 1
    assert (with_given.pixels[1] != made.pixels[1]).any()


def test_wrong_requests(maker):
    with pytest.raises(UsageError, match="number of frames at once is 0"):
        maker(GROUP, at_once=0, **SIZE)
    with pytest.raises(UsageError, match=r"identity picture has shape \(8, 8, 3\); it must be 40 x 48 pixels"):
        maker(GROUP, identity=np.zeros((8, 8, 3), np.uint8), **SIZE)
