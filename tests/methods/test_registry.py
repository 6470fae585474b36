"""Methods by name: their options, and the sentences for what does not exist."""

import pytest

from kaleido_jax import rope
from kaleido_jax.cli import layout as layout_command
from kaleido_jax.errors import UsageError
from kaleido_jax.methods.method import as_options
from kaleido_jax.methods.registry import METHODS, create
from kaleido_jax.pipeline import models


def test_every_method_is_known_to_the_command_line_and_can_be_drawn():
    assert set(models.METHODS) == set(METHODS)
    for name in METHODS:
        drawn = layout_command.METHODS[name]
        assert create(name).scheme == drawn.scheme and drawn.scheme in rope.SCHEMES


def test_options_are_read_and_written_as_words():
    made = create("kaleido", "gap", ("rule=unidirectional", "reference_time=zero", "references_read_text=false"))
    assert (made.scheme, made.rule, made.reference_time, made.references_read_text) == (
        "gap",
        "unidirectional",
        "zero",
        False,
    )
    assert made.pinned and not create("kaleido").pinned
    assert create("kaleido", made.scheme, as_options(made)) == made
    assert as_options(create("kaleido")) == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("kaleide",), "no method 'kaleide'; did you mean 'kaleido'"),
        (("kaleido", "shift-hw"), "no position scheme 'shift-hw'; did you mean 'shift-w'"),
        (("kaleido", "", ("rules=bidirectional",)), "no option of kaleido 'rules'; did you mean 'rule'"),
        (("kaleido", "", ("rule=unidirectonal",)), "did you mean 'unidirectional'"),
        (("kaleido", "", ("rule",)), "has no value; write name=value"),
        (("kaleido", "", ("references_read_text=maybe",)), "must be True or False"),
    ],
)
def test_what_does_not_exist_is_one_sentence(arguments, words):
    with pytest.raises(UsageError, match=words):
        create(*arguments)
