"""The whole way from pictures and a prompt to frames, on a tiny model with random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from PIL import Image

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.media.references import fit_on_white, to_model_range
from kaleido_jax.media.video import write_mp4
from kaleido_jax.methods import kaleido
from kaleido_jax.pipeline.pipeline import Pipeline
from kaleido_jax.pipeline.references import read_references
from kaleido_jax.testing import relative_error
from kaleido_jax.testing.tiny import tiny_bundle

PROMPT = "a red cat walks left"


def picture(seed, height=20, width=30):
    """Noise around one strong colour, which differs from seed to seed."""
    random = np.random.default_rng(seed)
    colour = random.choice([0, 215], 3) if seed else np.array([215, 0, 0])
    return (colour + random.integers(0, 40, (height, width, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle()


@pytest.fixture(scope="module")
def pipeline(bundle):
    return Pipeline(bundle)


@pytest.fixture(scope="module")
def stages():
    """What the first video of `pipeline` reports."""
    return []


@pytest.fixture(scope="module")
def base(pipeline, stages):
    return pipeline(references=[picture(0)], prompt=PROMPT, progress=lambda *stage: stages.append(stage))


@pytest.fixture
def as_users_run_it():
    """Run-time type checks, which only tests have, would answer before our own sentences do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def differs(a, b) -> bool:
    return float(np.abs(a.video.astype(int) - b.video).mean()) > 0.1


def test_shape_and_bytes(base):
    assert base.video.shape == (5, 32, 48, 3) and base.video.dtype == np.uint8
    assert base.video.std() > 1  # not a plain picture


def test_equal_seeds_give_equal_bytes_and_others_do_not(pipeline, base):
    np.testing.assert_array_equal(pipeline(references=[picture(0)], prompt=PROMPT).video, base.video)
    assert differs(pipeline(references=[picture(0)], prompt=PROMPT, seed=2**32 - 1), base)


def test_everything_asked_for_reaches_the_video(pipeline, base):
    assert differs(pipeline(references=[picture(1)], prompt=PROMPT), base)
    assert differs(pipeline(references=[picture(0), picture(1)], prompt=PROMPT), base)
    assert differs(pipeline(references=[picture(0)], prompt="a blue dog jumps right"), base)
    for field in ({"guidance": 1.0}, {"guidance": 5.0}, {"steps": 5}, {"shift": 7.0}, {"sampler": "unipc_wan"}):
        assert differs(pipeline(references=[picture(0)], prompt=PROMPT, **field), base)


def test_two_pictures_of_one_subject_are_not_two_subjects(pipeline):
    together = pipeline(references=[[picture(0), picture(1)], picture(2)], prompt=PROMPT)
    apart = pipeline(references=[picture(0), picture(1), picture(2)], prompt=PROMPT)
    assert [r.subject for r in together.references] == [0, 0, 1]
    assert [r.subject for r in apart.references] == [0, 1, 2]
    assert relative_error(together.video, apart.video) >= 0  # whether it matters is the scheme's choice


def test_one_program_serves_one_two_and_three_references(pipeline, base):
    before = pipeline.compiled
    for count in (1, 2, 3):
        pipeline(references=[picture(i) for i in range(count)], prompt=PROMPT)
    pipeline(references=[[picture(0), picture(1)]], prompt="a dog", guidance=2.0, seed=5, steps=2)
    assert pipeline.compiled == before


def by_hand(bundle, pictures, prompt, scales, *, seed=0, steps=3, shift=3.0):
    """The same videos without the pipeline, one for each guidance scale.

    The exact layout with no empty slots, each branch of the guidance in a call of its own, texts at their true lengths,
    Euler and the shift in numpy, the clip decoded whole.
    """
    config = bundle.config
    encode = jax.jit(bundle.vae.encode)
    latents = [encode(jnp.asarray(to_model_range(fit_on_white(p, 32, 48)[None, None]))) for p in pictures]

    def branch(text):
        ids, lengths = bundle.tokenizer.encode([text], config.defaults.text_tokens)
        count = int(lengths[0])
        layout = kaleido.layout((2, 2, 3), [(1, 2, 3)] * len(pictures), text_tokens=count)
        context = jax.jit(bundle.text.__call__)(jnp.asarray(ids[:, :count]), jnp.asarray(lengths))

        def velocity(x, time):
            table = kaleido.table(
                layout,
                times=time[None],
                reference_counts=jnp.asarray([len(pictures)], jnp.int32),
                text_lengths=jnp.asarray(lengths),
                scheme=config.scheme,
            )
            out = bundle.transformer(kaleido.tokens(x, latents, (1, 2, 2)), table, context, layout=layout)
            # Tokens to latents, written out: 2 x 2 x 3 tokens of 2 x 2 latents each.
            return out.reshape(2, 2, 3, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5).reshape(1, 2, 4, 6, 4)

        return jax.jit(velocity)

    with_prompt, without = branch(prompt), branch("")
    times = np.linspace(1, 0, steps + 1)
    times = shift * times / (1 + (shift - 1) * times)
    videos = []
    for scale in scales:
        x = np.asarray(jax.random.normal(jax.random.key(seed), (1, 2, 4, 6, 4), jnp.float32))
        for now, following in zip(times[:-1].astype(np.float32), times[1:].astype(np.float32)):
            conditional, plain = (np.asarray(v(jnp.asarray(x), jnp.asarray(now))) for v in (with_prompt, without))
            x = x + (following - now) * (plain + np.float32(scale) * (conditional - plain))
        video = jax.jit(lambda z: bundle.vae.decode(z, chunk=None))(jnp.asarray(x))
        videos.append((np.asarray(video)[0] + 1) * 127.5)
    return videos


def test_against_sampling_written_out_by_hand(bundle, pipeline):
    pictures = [picture(0), picture(1)]  # and one empty slot
    scales = [3.0, 1.0]
    for scale, expected in zip(scales, by_hand(bundle, pictures, PROMPT, scales)):
        actual = pipeline(references=pictures, prompt=PROMPT, guidance=scale).video
        # Half a byte of rounding, and float32 sums in another order over three steps.
        assert np.abs(actual - expected).max() < 0.6


def test_a_clip_as_reference(pipeline, base, tmp_path):
    frames = np.stack([fit_on_white(picture(0), 32, 48)] * 5)
    write_mp4(tmp_path / "clip.mp4", frames, 8)
    result = pipeline(references=[str(tmp_path / "clip.mp4"), picture(1)], prompt=PROMPT)
    assert [len(r.pixels) for r in result.references] == [5, 1]
    assert differs(result, base)


def test_paths_pillow_pictures_and_arrays_are_the_same(tmp_path):
    pixels = picture(0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    options = {"height": 32, "width": 48, "frames": 5, "frames_per_second": 8}
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), pixels]
    hashes = {reference.sha256 for reference in read_references(sources, **options)}
    assert len(hashes) == 1
    see_through = Image.fromarray(np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)]))
    assert (read_references([see_through], **options)[0].pixels == 255).all()


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ("a.png", "give a list"),
        (np.zeros((4, 4, 3), np.uint8), "give a list"),
        ([[]], "empty list"),
        ([None], "a NoneType"),
        ([b"a.png"], "a bytes"),
        ([3.5], "a float"),
        ([np.zeros((4, 4), np.uint8)], r"uint8 array \[h, w, 3\]"),
        ([np.zeros((4, 4, 3), np.float32)], r"array of float32"),
        ([np.zeros((0, 4, 3), np.uint8)], "4 x 0 pixels"),
        ([np.zeros((1, 9000, 3), np.uint8)], "9000 x 1 pixels"),
    ],
)
def test_references_that_cannot_be_used(as_users_run_it, pipeline, references, words):
    with pytest.raises(InputError, match=words):
        pipeline(references=references, prompt=PROMPT)


def test_settings_that_cannot_be_used(pipeline):
    with pytest.raises(UsageError, match="multiple of 16"):
        pipeline(references=[picture(0)], prompt=PROMPT, height=33)
    with pytest.raises(InputError, match="prompt is empty"):
        pipeline(references=[picture(0)], prompt=" ")


def test_other_sizes_and_more_references_than_trained(pipeline):
    four = [picture(i) for i in range(4)]
    with pytest.warns(UserWarning, match="trained at"), pytest.warns(UserWarning, match="trained with at most 3"):
        result = pipeline(references=four, prompt=PROMPT, height=16, width=32, frames=9, steps=1)
    assert result.video.shape == (9, 16, 32, 3)


def test_no_reference_at_all(pipeline, base):
    with pytest.warns(UserWarning, match="no reference picture"):
        assert differs(pipeline(references=[], prompt=PROMPT), base)


def test_progress_is_told(base, stages):
    assert [stage for stage in stages if stage[0] == "sampling"] == [("sampling", k, 3) for k in range(4)]
    compiled = [what for what, done, _ in stages if what.startswith("compiling") and done == 0]
    assert compiled == [
        f"compiling the {what}" for what in ("text encoder", "picture encoder", "transformer", "decoder")
    ]


def test_words_that_the_model_does_not_know_are_told(pipeline):
    with pytest.warns(UserWarning, match="zebra"):
        pipeline(references=[picture(0)], prompt="a zebra walks", steps=1)
    with pytest.warns(UserWarning, match=r"10 tokens, of which the first 8 are kept"):
        pipeline(references=[picture(0)], prompt="a red cat walks left a red cat walks", steps=1)


def test_real_pictures(pipeline):
    data = pytest.importorskip("skimage.data")
    photograph, cut_out = data.chelsea(), Image.fromarray(data.logo())
    result = pipeline(references=[photograph, cut_out], prompt=PROMPT, steps=1)
    assert (result.references[1].pixels[0, 0, 0] == 255).all()
    assert dataclasses.asdict(result.settings)["steps"] == 1
