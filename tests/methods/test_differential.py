"""Differential prompts: which elements are dropped, the lists, and describers and comparers that answer nonsense."""

import pytest

from kaleido_jax.data.groups import Shown, TruthDescriber
from kaleido_jax.errors import InputError
from kaleido_jax.methods import differential

PORTRAIT = ("camera shot", "hairstyle", "clothing", "accessories", "expression", "action", "background")


class Fixed:
    def __init__(self, answer):
        self.answer = answer

    def describe(self, shown, elements):
        return self.answer


class Rating:
    def __init__(self, value):
        self.value = value

    def similarity(self, element, one, other):
        return self.value


def test_the_lists():
    """Portraits have the paper's seven elements (section 3.3)."""
    assert set(differential.element_lists()) == {"animal", "miniature", "object", "portrait", "scene"}
    assert tuple(differential.load_elements("portrait")) == PORTRAIT
    for name in differential.element_lists():
        assert all(text and key for key, text in differential.load_elements(name).items())
    with pytest.raises(InputError, match="did you mean 'portrait'"):
        differential.load_elements("portraits")


def test_what_is_unchanged_is_dropped():
    reference = {"hairstyle": "long red hair", "clothing": "a blue coat", "background": "a beach at noon"}
    target = {"hairstyle": "long red hair", "clothing": "a green coat", "background": "a city street at night"}
    kept = differential.changes(reference, target, differential.Words())
    assert kept == {name: target[name] for name in ("clothing", "background")}
    assert differential.prompt(kept, "she") == "she a green coat, a city street at night"
    assert differential.prompt({}) == "the subject"


def test_gamma_is_the_rating_above_which_an_element_is_unchanged():
    one, other = {"action": "walks"}, {"action": "runs"}
    assert differential.changes(one, other, Rating(0.6), gamma=0.6) == other
    assert differential.changes(one, other, Rating(0.61), gamma=0.6) == {}
    with pytest.raises(InputError, match="gamma is 2"):
        differential.changes(one, other, Rating(0.5), gamma=2.0)
    with pytest.raises(InputError, match="rated the action nan"):
        differential.changes(one, other, Rating(float("nan")))


def test_words_in_common():
    rate = differential.Words().similarity
    assert rate("x", "a b", "A B") == 1 and rate("x", "a b", "c") == 0
    assert rate("x", "a b c", "a b d") == pytest.approx(2 / 3)


def test_the_miniatures_ground_truth():
    elements, describer = differential.load_elements("miniature"), TruthDescriber()
    one = differential.described(describer, Shown(motion="still", scene="plain"), elements)
    other = differential.described(describer, Shown(motion="left", scene="plain"), elements)
    assert other == {"action": "moving to the left", "background": "on a plain background"}
    kept = differential.changes(one, other, differential.Words())
    assert differential.prompt(kept, separator=" ") == "the subject moving to the left"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("a man", "must name each element"),
        ({"action": "runs"}, "said nothing of the background of the video"),
        ({"action": "runs", "background": " "}, "said nothing of the background"),
        ({"action": "runs", "background": 3}, "said nothing of the background"),
        ({"action": "runs", "backgroud": "x"}, "no element 'backgroud'; did you mean 'background'"),
        ({"action": "runs", "background": "x" * 501}, "501 characters"),
    ],
)
def test_a_describer_that_answers_nonsense(answer, words):
    with pytest.raises(InputError, match=words):
        differential.described(Fixed(answer), None, differential.load_elements("miniature"), "the video")
