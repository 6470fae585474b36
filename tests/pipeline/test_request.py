"""Numbers and prompts: what is right passes unchanged, all else is one sentence that says what would be right."""

import math

import jaxtyping
import pytest

from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.pipeline.request import MAX_PROMPT_CHARACTERS, Settings, check_prompt, check_reference_count
from kaleido_jax.testing.tiny import TINY_CONFIG


@pytest.fixture
def as_users_run_it():
    """Run-time type checks, which only tests have, would answer before our own sentences do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def message(error: type[Exception], function, *args, **kwargs) -> str:
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert text.isprintable() and text.endswith(".") and len(text) < 400, text
    return text


@pytest.mark.parametrize("name", ["seed", "height", "width", "frames", "steps"])
@pytest.mark.parametrize(
    "value",
    [-1, 2**32, pytest.param(10**5000, id="huge"), 1.0, math.nan, math.inf, 1e308, True, "1e9", "3", [1], "\x1b[2J"],
)
def test_whole_numbers(as_users_run_it, name, value):
    text = message(UsageError, Settings, **{name: value})
    assert text.startswith(f"{name} is ") and "whole number from" in text


@pytest.mark.parametrize("value", [-0.1, 101, math.nan, math.inf, -math.inf, 1e308, True, "6", [6.0]])
def test_real_numbers(as_users_run_it, value):
    assert "guidance is" in message(UsageError, Settings, guidance=value)


def test_what_is_right_passes():
    Settings(seed=2**32 - 1, height=2048, width=16, frames=401, steps=100, guidance=0.0, shift=7.0)


def test_defaults_are_the_models():
    assert Settings(seed=3).resolved(TINY_CONFIG) == Settings(
        seed=3, height=32, width=48, frames=5, steps=3, guidance=3.0, shift=3.0, sampler="euler", decode="whole"
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"height": 40}, "height is 40; for this model it must be a multiple of 16, nearest: 32 and 48."),
        ({"width": 7}, "width is 7; for this model it must be a multiple of 16, nearest: 16."),
        ({"frames": 8}, "frames is 8; for this model it must be 4 n + 1, nearest: 5 and 9."),
        ({"frames": 2}, "nearest: 1 and 5."),
    ],
)
def test_sizes_that_the_model_cannot_make(fields, words):
    assert words in message(UsageError, Settings(**fields).resolved, TINY_CONFIG)


def test_unknown_sampler():
    assert "did you mean 'euler'?" in message(UsageError, Settings(sampler="eular").resolved, TINY_CONFIG)


def test_a_sampler_may_be_written_with_hyphens():
    assert Settings(sampler="unipc-wan").resolved(TINY_CONFIG).sampler == "unipc_wan"


def test_another_size_than_trained_is_warned_of():
    with pytest.warns(UserWarning, match=r"trained at 48 x 32 pixels and 5 frames; 64 x 32 and 5"):
        Settings(width=64).resolved(TINY_CONFIG)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red cat", "a red cat"),
        ("  a\t red\n\n cat ", "a red cat"),
        ("cafe\u0301", "café"),  # composed
        ("%s {} ${IFS} $(x) ../ <script>", "%s {} ${IFS} $(x) ../ <script>"),  # only text
        ("一只猫 🐈", "一只猫 🐈"),
        ("x" * MAX_PROMPT_CHARACTERS, "x" * MAX_PROMPT_CHARACTERS),
        ("a\u200bb", "a\u200bb"),
    ],
)
def test_prompts(prompt, expected):
    assert check_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("\u200b\u200f", "empty"),
        ("x" * 2001, "2001 characters, and at most 2000"),
        ("x" * 10**6, "1000000 characters"),
        ("a\0b", "control character U+0000"),
        ("a\x1b[31mb", "control character U+001B"),
        ("a\ud800b", "not valid Unicode"),
        (None, "must be a text"),
        (b"cat", "must be a text"),
        (3, "must be a text"),
    ],
)
def test_prompts_that_are_refused(prompt, words):
    assert words in message(InputError, check_prompt, prompt)


def test_reference_counts():
    check_reference_count(3, trained=3)
    with pytest.warns(UserWarning, match="4 reference pictures, and the model was trained with at most 3"):
        check_reference_count(4, trained=3)
    with pytest.warns(UserWarning, match="no reference picture"):
        check_reference_count(0, trained=3)
    message(UsageError, check_reference_count, 17, trained=3)
