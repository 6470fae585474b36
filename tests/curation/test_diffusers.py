"""FLUX.1 Fill, Redux and Kontext of random weights, as their releases lie on a disk."""

import numpy as np
import pytest

from kaleido_jax.curation.models.diffusers import (
    FluxFill,
    FluxKontext,
    FluxRedux,
    before_white,
    fitting,
    on_white,
)
from kaleido_jax.curation.models.protocol import loaded
from kaleido_jax.errors import InputError, UsageError
from tests.curation.scenery import ball_video, colourful

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from tests.curation.test_models import words  # noqa: E402  (it needs both)

PICTURE = ball_video(0)[4]
BALL = colourful(PICTURE)


def transformer(channels: int):
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=channels, out_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("flux")
    words(place / "words", "[BOS]", "[EOS]")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = transformers.AutoTokenizer.from_pretrained(place / "words")
    shared = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": diffusers.AutoencoderKL(
            sample_size=32, block_out_channels=(4,), layers_per_block=1, latent_channels=2, norm_num_groups=1,
            use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035,
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**small, vocab_size=12, max_position_embeddings=32, projection_dim=32)
        ),
        "tokenizer": tokens,
        "text_encoder_2": transformers.T5EncoderModel(
            transformers.T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=12)
        ),
        "tokenizer_2": tokens,
    }  # fmt: skip
    diffusers.FluxFillPipeline(**shared, transformer=transformer(20)).save_pretrained(place / "fill")
    diffusers.FluxPipeline(**shared, transformer=transformer(8)).save_pretrained(place / "base")
    diffusers.FluxKontextPipeline(**shared, transformer=transformer(8)).save_pretrained(place / "kontext")
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder

    diffusers.FluxPriorReduxPipeline(
        image_encoder=transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**small, image_size=32, patch_size=8)
        ),
        feature_extractor=transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        image_embedder=ReduxImageEncoder(redux_dim=32, txt_in_features=32),
    ).save_pretrained(place / "prior")
    return place


def test_fill_paints_the_hole_and_nothing_else(folder):
    settings = FluxFill(path=str(folder / "fill"), dtype="float32", side=32, steps=2, tokens=16)
    painted = loaded(settings).paint(PICTURE, BALL)
    assert painted.shape == PICTURE.shape and painted.dtype == np.uint8
    np.testing.assert_array_equal(painted[~BALL], PICTURE[~BALL])
    assert (painted[BALL] != PICTURE[BALL]).any(-1).mean() > 0.9
    np.testing.assert_array_equal(painted, loaded(settings).paint(PICTURE, BALL))  # the seed is the picture's


def test_redux_varies_by_what_it_sees_and_by_the_seed(folder):
    settings = FluxRedux(
        path=str(folder / "base"), prior=str(folder / "prior"), dtype="float32", side=32, steps=2,
        prompt="a {phrase}",
    )  # fmt: skip
    vary = loaded(settings).vary
    picture, mask = vary(PICTURE, BALL, "ball", "s1")
    assert picture.shape[:2] == mask.shape == fitting(*on_white(PICTURE, BALL).shape[:2], 32) and mask.any()
    np.testing.assert_array_equal(picture, vary(PICTURE, BALL, "ball", "s1")[0])
    for other in ((PICTURE, BALL, "ball", "s2"), (255 - PICTURE, BALL, "ball", "s1"), (PICTURE, BALL, "dog", "s1")):
        assert not np.array_equal(picture, vary(*other)[0])


def test_kontext_edits_as_it_is_told(folder):
    settings = FluxKontext(path=str(folder / "kontext"), dtype="float32", side=32, steps=2, tokens=16)
    edited = loaded(settings).edit(PICTURE, "a red ball")
    assert edited.shape == PICTURE.shape and not np.array_equal(edited, loaded(settings).edit(PICTURE, "a dog"))
    picture, mask = loaded(settings).vary(PICTURE, BALL, "ball", "s")
    assert picture.shape[:2] == mask.shape and mask.any()


def test_folders_and_types_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(InputError, match=r"model_index\.json; give the folder of a FluxFillPipeline"):
        FluxFill(path=str(tmp_path)).load()
    with pytest.raises(UsageError, match="dtype is 'int8'"):
        FluxFill(path=str(folder / "fill"), dtype="int8").load()


def test_what_stands_before_white_is_the_subject():
    white = np.full((40, 40, 3), 250, np.uint8)
    assert before_white(white).all()  # nothing is left: everything
    white[10:30, 10:30] = 90
    white[15:20, 15:20] = 255  # white inside the subject is the subject's
    mask = before_white(white)
    assert mask[10:30, 10:30].all() and mask.sum() == 400
    shown = on_white(PICTURE, BALL)
    assert (shown[0] == 255).all() and colourful(shown).sum() == BALL.sum()
