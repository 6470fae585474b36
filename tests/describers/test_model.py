"""What a model is asked, and which of its answers count; models are scripted."""

import itertools
import json

import numpy as np
import pytest

from kaleido_jax.data.groups import Shown, TruthDescriber
from kaleido_jax.data.lexicon import SCENE_PHRASES
from kaleido_jax.data.motions import MOTIONS
from kaleido_jax.describers import ModelDescriber, create, template
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.methods import differential

ELEMENTS = {"action": "what it does", "background": "where it is"}
CLIP = np.zeros((20, 4, 6, 3), np.uint8)


class Scripted:
    """Gives its replies in turn, asking again where the check refuses one; the last refusal is raised."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def ask(self, question, check):
        self.asked.append(question)
        for reply in self.replies[:-1]:
            try:
                return check(reply)
            except InputError:
                continue
        return check(self.replies[-1])


class Stages:
    def describe(self, shown, elements):
        return elements


def describer(*replies):
    return ModelDescriber(Scripted(*(r if isinstance(r, str) else json.dumps(r) for r in replies)))


def test_two_stages():
    """Eight frames of a clip are shown, every element is asked for, and what is alike is dropped."""
    made = describer({"action": "runs", "background": "a beach"})
    assert differential.described(made, CLIP, ELEMENTS) == {"action": "runs", "background": "a beach"}
    *frames, text = made.model.asked[0]
    assert len(frames) == 8 and frames[0].shape == (4, 6, 3)
    assert "- action: what it does\n- background: where it is\n" in text and "$" not in text
    rating = describer('Here it is: ```{"similarity": 0.9}```')
    assert rating.similarity("action", "runs", "is running") == 0.9
    assert differential.changes({"action": "runs"}, {"action": "is running"}, rating) == {}


def test_one_call_says_only_what_differs():
    made = describer({"action": "sleeps"})
    assert differential.differing(CLIP, CLIP[0], ELEMENTS, made) == {"action": "sleeps"}
    question = made.model.asked[0]
    assert question[0] == "Reference:" and question[9] == "Target:" and len(question) == 12
    assert differential.differing(CLIP, "it sleeps", ELEMENTS, describer({})) == {}
    with pytest.raises(InputError, match="cannot compare in one call"):
        differential.differing(CLIP, CLIP, ELEMENTS, Stages())


def test_one_call_and_two_stages_on_known_changes():
    """All pairs of the world's motions and of its places: the truth in one call, common words in two stages.

    Words call 10 x 9 + 17 x 16 changes; those that they miss are told by name, and nothing unchanged is ever said.
    """
    truth, elements = TruthDescriber(), differential.load_elements("miniature")
    missed = set()
    made = {
        "action": lambda name: Shown(motion=name, scene="plain"),
        "background": lambda name: Shown(motion="up", scene=name),
    }
    for kind, names in (("action", MOTIONS), ("background", tuple(SCENE_PHRASES))):
        make = made[kind]
        for one, other in itertools.product(names, repeat=2):
            known = differential.differing(make(one), make(other), elements, truth)
            assert set(known) == ({kind} if one != other else set())
            found = differential.differing(make(one), make(other), elements, truth, differential.Words())
            assert set(found) <= set(known)
            missed |= {(one, other)} if set(found) != set(known) else set()
    assert missed == set()


def test_the_two_prompts_of_contextanyone():
    made = describer({"first_frame": "a  cat\n on white", "later_frames": "the cat runs"})
    assert made.two_prompts(CLIP[0], "it runs") == ("a cat on white", "the cat runs")
    assert "that shows: it runs\n" in made.model.asked[0][-1]


def test_a_judge_that_favours_a_place_says_nothing():
    class Reads:
        def __init__(self, rule):
            self.rule, self.asked = rule, []

        def ask(self, question, check):
            self.asked.append(question)
            first = question[question.index("Clip A:") + 1] if isinstance(question[0], str) else question[2]
            return check(json.dumps({"better": self.rule(first)}))

    dark, light = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 9, np.uint8)
    likes_light = ModelDescriber(Reads(lambda first: "A" if first.any() else "B"))
    assert likes_light.better("identity", [dark], light, dark, "") == "a"
    assert likes_light.better("control", [dark], dark, light, "it runs") == "b"
    assert "it runs" in likes_light.model.asked[-1][-1]
    assert ModelDescriber(Reads(lambda first: "A")).better("control", [dark], dark, light, "") == "same"


@pytest.mark.parametrize(
    ("ask", "reply", "words"),
    [
        (lambda d: d.describe(CLIP, ELEMENTS), "I see a cat.", "holds no JSON"),
        (lambda d: d.describe(CLIP, ELEMENTS), {"action": "runs"}, "nothing of the background"),
        (lambda d: d.describe(CLIP, ELEMENTS), {"action": "runs", "hair": "x"}, "no element 'hair'"),
        (lambda d: d.describe(CLIP, ELEMENTS), [1], "must name each element"),
        (lambda d: d.differences(CLIP, CLIP, ELEMENTS), {"action": 3}, "nothing of the action"),
        (lambda d: d.similarity("a", "b", "c"), {"similarity": 2}, "similarity is 2; it must be a number from 0 to 1"),
        (lambda d: d.similarity("a", "b", "c"), {"similarity": True}, "similarity is True"),
        (lambda d: d.similarity("a", "b", "c"), "[1]", "similarity is None"),
        (lambda d: d.better("identity", [], CLIP, CLIP, ""), {"better": "C"}, "better is 'C'; it must be A, B or same"),
        (lambda d: d.two_prompts(CLIP, "x"), {"first_frame": "a"}, "later_frames is missing"),
        (
            lambda d: d.two_prompts(CLIP, "x"),
            {"first_frame": " ", "later_frames": "b"},
            "first_frame is missing",
        ),
    ],
)
def test_answers_that_do_not_count(ask, reply, words):
    with pytest.raises(InputError, match=words):
        ask(describer(reply))


def test_a_refused_answer_is_asked_for_again():
    assert describer("nonsense", {"similarity": 1}).similarity("a", "b", "b") == 1.0


def test_templates_name_all_that_they_are_given():
    assert "$" not in template("similarity", element="a", one="b", other="c")
    with pytest.raises(KeyError):
        template("similarity", element="a")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("http://localhost:1/v1", "name its model with --describer-model"),
        ("nowhere", "neither the folder of a"),
    ],
)
def test_describers_that_there_are_not(where, words):
    with pytest.raises(UsageError, match=words):
        create(where)
