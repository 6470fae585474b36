"""Which shots of a scene are made together and what each of them sees, from what is asked for alone."""

import pytest

from kaleido_jax.errors import InputError, KaleidoError, UsageError
from kaleido_jax.methods.scene import Part, Scene, Shot, parts, relevant


def scene(count, **fields):
    return Scene.of(["a film", *(f"shot {number}" for number in range(1, count + 1))], **fields)


def made(found):
    return [part.made for part in found]


def test_a_joint_scene_is_one_context_up_to_nine_shots():
    assert parts(scene(9), "joint") == [Part(tuple(range(1, 10)))]


def test_longer_scenes_are_made_in_segments_that_see_some_of_the_pool():
    first, second, third = parts(scene(17, carried=3), "joint")
    assert made([first, second, third]) == [tuple(range(1, 10)), tuple(range(10, 16)), (16, 17)]
    # Prompts with nothing in common but the word that all have: the latest are taken.
    assert (first.seen, second.seen, third.seen) == ((), (7, 8, 9), (13, 14, 15))


def test_with_segments_off_the_sentence_says_how_it_would_be_split():
    with pytest.raises(UsageError, match=r"There are 17 shots.*at most 9.*9 and 6 and 2, each .* 3 of the earlier"):
        scene(17, segments=False)


def test_shots_that_are_given_take_room_and_are_not_made():
    shots = (Shot(prompt="a"), Shot(prompt="b", clip="b.mp4"), Shot(prompt="c", references=("cat.png", "beach.png")))
    given = Scene(shots=shots)
    assert given.sampled(causal=False) == "conditioned"
    assert parts(given, "conditioned") == [Part((1, 3), (2,), ((3, 0), (3, 1)))]
    assert given.files == (("b.mp4",), ("cat.png", "beach.png"))
    clips = (*(Shot(prompt=f"clip {n}", clip="x.mp4") for n in range(9)), Shot(prompt="new"))
    assert parts(Scene(shots=clips), "conditioned") == [Part((10,), (7, 8, 9))]


def test_shots_one_by_one_see_what_the_user_chose_or_all_that_fits():
    shots = (
        Shot(prompt="a"),
        Shot(prompt="b"),
        Shot(prompt="c", condition_on=(1,)),
        Shot(prompt="d", condition_on=()),
        Shot(extends=2),
    )
    chosen = Scene(shots=shots)
    assert chosen.sampled(causal=False) == "autoregressive" and chosen.prompts == ("", "a", "b", "c", "d", "b")
    assert [part.seen for part in parts(chosen, "autoregressive")] == [(), (1,), (1,), (), (1, 2, 3, 4)]
    long = parts(scene(12), "autoregressive")
    assert made(long) == [(number,) for number in range(1, 13)]
    assert long[11].seen == tuple(range(4, 12))
    assert scene(2).sampled(causal=True) == "autoregressive" and scene(2).sampled(causal=False) == "joint"


def test_relevance_is_in_the_rare_words():
    """The knight comes back after shots without her; what every prompt says ("film", "night") decides nothing."""
    prompts = ["", "film night knight rides", "film night sea", "film night sea storm", "film night knight sleeps"]
    story = Scene.of(prompts)
    assert relevant(story, 4, (1, 2, 3), 1) == (1,)
    assert relevant(Scene.of(["", "a", "b", "b", "b c"]), 4, (1, 2, 3), 1) == (3,)
    assert relevant(story, 3, (1, 2), 2) == (1, 2)


@pytest.mark.parametrize(
    ("shots", "fields", "words"),
    [
        ((), {}, "The scene has no shot"),
        ((Shot(prompt="a"), Shot(prompt=" ")), {}, "Shot 2 has no prompt"),
        ((Shot(prompt="a"), Shot(prompt="b", condition_on=(3,))), {}, "condition_on of shot 2 names shot 3"),
        ((Shot(prompt="a", condition_on=(2,)), Shot(prompt="b")), {}, "shot 1 names shot 2, which is made later"),
        ((Shot(prompt="a"), Shot(prompt="b", extends=2)), {}, "extends of shot 2 names shot 2"),
        ((Shot(prompt="a", clip="a.mp4", references=("b.png",)), Shot(prompt="b")), {}, "Shot 1 has a clip"),
        ((Shot(prompt="a"), Shot(prompt="b", clip="b.mp4", extends=1)), {}, "Shot 2 extends shot 1 and has a clip"),
        ((Shot(prompt="a", clip="a.mp4"),), {}, "Every shot has a clip already"),
        ((Shot(prompt="a"),), {"sampling": "jiont"}, "did you mean 'joint'"),
        ((Shot(prompt="a"),), {"sampling": "conditioned"}, "no shot has a clip or references"),
        ((Shot(prompt="a", references=("b.png",)),), {"sampling": "joint"}, "choose conditioned"),
        ((Shot(prompt="a"), Shot(prompt="b", extends=1)), {"sampling": "joint"}, "only autoregressive sampling"),
        ((Shot(prompt="a"),), {"carried": 9}, "carried is 9"),
        ((Shot(prompt="a", references=("b.png",) * 9),), {}, "made from 9 references and 0 other shots"),
        (
            (Shot(prompt="a"), Shot(prompt="b", references=("b.png",) * 8, extends=1)),
            {},
            "made from 8 references and 1 other",
        ),
    ],
)
def test_scenes_that_cannot_be_made(shots, fields, words):
    with pytest.raises(KaleidoError, match=words) as caught:
        Scene(shots=shots, **fields)
    assert isinstance(caught.value, InputError | UsageError)
