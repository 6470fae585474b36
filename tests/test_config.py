"""Configs: reading, overriding by dotted name, JSON."""

from dataclasses import dataclass, field

import pytest

from kaleido_jax import config
from kaleido_jax.errors import InputError, UsageError


@dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int = 3
    minutes: float | None = None
    name: str = "a"
    even: bool = False
    size: tuple[int, int] = (4, 4)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.even and self.steps % 2:
            raise ValueError(f"steps must be even, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    seed: int = 0
    train: Inner = field(default_factory=Inner)
    other: Inner | None = None


def test_override_changes_only_what_is_named_and_parses_to_the_fields_type():
    changed = config.override(
        Outer(seed=7), ["train.steps=40", "train.minutes=1.5", "train.size=8,16", "train.name=x=y,z"]
    )
    assert changed == Outer(seed=7, train=Inner(steps=40, minutes=1.5, size=(8, 16), name="x=y,z"))
    assert config.override(Outer(seed=7), []) == Outer(seed=7)
    assert config.override(Outer(train=Inner(minutes=2.0)), ["train.minutes=None"]).train.minutes is None


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.stepss=4", ["train.stepss", "train.steps"]),
        ("trian.steps=4", ["trian.steps", "train.steps"]),
        ("train.steps=many", ["train.steps=many", "3"]),
        ("train.steps=1.5", ["train.steps=1.5"]),
        ("train.size=4", ["train.size=4"]),
        ("train.steps", ["train.steps", "section.field=value"]),
    ],
)
def test_a_wrong_override_is_one_sentence_that_names_the_field(assignment, words):
    with pytest.raises(UsageError) as error:
        config.override(Outer(), ["seed=1", assignment])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_truth_value_and_values_that_only_go_together():
    assert config.override(Outer(), ["train.even=True", "train.steps=4"]).train == Inner(even=True, steps=4)
    assert not config.override(Outer(train=Inner(even=True, steps=4)), ["train.even=False"]).train.even
    with pytest.raises(UsageError, match=r"^seed=a is refused"):  # not train.even=True, which would be wrong alone
        config.override(Outer(), ["train.even=True", "train.steps=4", "seed=a"])
    with pytest.raises(UsageError, match=r"^seed=a is refused"):
        config.override(Outer(), ["seed=a", "train.steps=b"])


def test_a_value_that_the_dataclass_refuses_keeps_its_own_message():
    with pytest.raises(UsageError, match="steps must be at least 1, got 0"):
        config.override(Outer(), ["train.steps=0"])


def test_json_round_trip_and_unknown_fields():
    original = Outer(seed=3, train=Inner(size=(1, 2), minutes=0.5), other=Inner(name="b"))
    assert config.from_json(Outer, config.to_json(original)) == original
    values = config.to_json(original)
    values["train"]["stesp"] = 1
    with pytest.raises(InputError, match=r"train has no field stesp; did you mean steps"):
        config.from_json(Outer, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"steps": "many"}}, "config.train cannot be read as Inner"),
        ({"other": {"size": [1, 2], "widht": 3}}, "config.other has no field widht$"),
    ],
)
def test_json_that_cannot_be_read_names_the_place(values, message):
    with pytest.raises(InputError, match=message):
        config.from_json(Outer, values)


def test_json_without_a_field_that_has_no_default():
    @dataclass(frozen=True, kw_only=True)
    class Needed:
        width: int

    with pytest.raises(InputError, match=r"model cannot be read as Needed: .*'width'"):
        config.from_json(Needed, {}, "model")


def test_dotted_fields_are_the_names_that_override_takes():
    fields = dict(config.dotted_fields(Outer(train=Inner(steps=9))))
    assert list(fields) == ["seed", "train.steps", "train.minutes", "train.name", "train.even", "train.size", "other"]
    assert fields["train.steps"] == 9 and fields["other"] is None


def test_nearest_says_nothing_when_nothing_is_near():
    assert config.nearest("stpes", ["steps", "batch"]) == "; did you mean steps?"
    assert config.nearest("zzz", ["steps", "batch"]) == ""


def test_load_reads_config_and_names_what_is_missing(tmp_path):
    (tmp_path / "small.py").write_text("def config():\n    return 5\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert config.load(tmp_path / "small.py") == 5
    with pytest.raises(UsageError, match=r"no function config\(\)"):
        config.load(tmp_path / "empty.py")
    with pytest.raises(UsageError, match=r"smal\.py; did you mean .*small\.py"):
        config.load(tmp_path / "smal.py")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"notes\.txt is not a Python file"):
        config.load(tmp_path / "notes.txt")
