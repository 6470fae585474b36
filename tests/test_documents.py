"""Prose must not drift: every command in the documents is one that exists, every link leads somewhere.

`.ci/run` executes the README's commands as they stand; here each command of every document is parsed.
"""

import ast
import importlib.util
import inspect
import pathlib
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from kaleido_jax.cli.main import COMMANDS, parser_of
from kaleido_jax.errors import KaleidoError

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROGRAMS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "configs").glob("*.py")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {path.stem: path for path in sorted((ROOT / "requirements").glob("*.txt"))}
BLOCK = re.compile(r"^ *```(?:bash|sh)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def docstring_commands(path: pathlib.Path) -> list[list[str]]:
    """The commands in the docstring of a program or configuration: paragraphs of their own, as in tools/lock.py."""
    docstring = inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text())) or "")
    paragraphs = [textwrap.dedent(paragraph) for paragraph in docstring.split("\n\n")]
    shown = [paragraph for paragraph in paragraphs if re.match(r"(kaleido|python) ", paragraph)]
    return commands("```bash\n" + "\n".join(shown) + "\n```\n")


def commands(text: str) -> list[list[str]]:
    """The commands of the shell blocks of a Markdown text, as lists of words."""
    found = []
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                found.append(words[:end])
                words = words[end + 1 :]
    return found


def check_pip(words: list[str]) -> None:
    assert words[0] == "install", f"pip {words[0]}"
    for word, following in zip(words, [*words[1:], ""]):
        if word == "-c":
            assert (ROOT / following).is_file(), f"there is no {following}"
        for extra in re.findall(r"^\.\[(.*)\]$", word):
            assert set(extra.split(",")) <= set(PROJECT["optional-dependencies"]), f"there is no extra {extra}"


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert words[1] in ("venv", "pytest"), f"python -m {words[1]}"
        return
    path = ROOT / words[0]
    assert path.is_file(), f"there is no {words[0]}"
    source = path.read_text()
    for option in (word.partition("=")[0] for word in words[1:] if word.startswith("--")):
        assert f'"{option}"' in source, f"{words[0]} has no option {option}"


def check_paths(words: list[str]) -> None:
    for word in words:
        if "/" in word:
            assert (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


def check_kaleido(words: list[str]) -> None:
    if words[0].startswith("-"):
        parser_of(None).parse_args(words)
        return
    assert words[0] in COMMANDS, f"kaleido has no command {words[0]}"
    arguments = vars(parser_of(words[0]).parse_args(words[1:]))
    experiment = arguments.get("config")
    if experiment is not None:
        assert (ROOT / experiment).is_file(), f"there is no {experiment}"


CHECKS = {
    "pip": check_pip,
    "python": check_python,
    "python3": check_python,
    "pytest": check_paths,
    "kaleido": check_kaleido,
    "bash": check_paths,
    "ruff": lambda words: None,
    "pyright": lambda words: None,
    "pre-commit": lambda words: None,
}


def check(words: list[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # a variable set for this command
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/")
    assert program in CHECKS, f"{program} is not a command that this test knows how to check"
    CHECKS[program](words[1:])


def wrong_commands(found: list[list[str]]) -> Iterator[str]:
    for words in found:
        try:
            check(words)
        except SystemExit as end:
            if end.code:  # --help ends with 0
                yield shlex.join(words)
        except (AssertionError, KaleidoError) as problem:
            yield f"{shlex.join(words)}: {problem}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(path: pathlib.Path):
    problems = list(wrong_commands(commands(path.read_text())))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_commands_in_docstrings_exist(path: pathlib.Path):
    found = docstring_commands(path)
    problems = list(wrong_commands(found))
    assert found, f"{path.name}: its docstring gives no command that runs it"
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "line",
    [
        "pip install -c requirements/none.txt .",
        "pip install .[none]",
        "python tools/none.py",
        "python tools/lock.py --none",
        "pytest tests/none.py",
        "kaleido none",
        "kaleido generate --none",
        "kaleido train configs/none.py --workdir runs/none",
        "curl none",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str):
    assert len(list(wrong_commands(commands(f"```bash\n{line}\n```\n")))) == 1


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: pathlib.Path):
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text()) + re.findall(r'(?:src|href)="([^"#]+)"', path.read_text())
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing, f"{path.name} points at {missing}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_are_named_exist(path: pathlib.Path):
    """What the README's tables call proof is there, under that name."""
    named = set(re.findall(r"\b(test_\w+)", path.read_text()))
    files = list((ROOT / "tests").rglob("test_*.py"))
    there = {file.stem for file in files} | {
        name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    assert named <= there, f"{path.name} names {sorted(named - there)}"


def test_the_map_names_every_room():
    text = (ROOT / "BUILD.md").read_text()
    rooms = [path.name for path in (ROOT / "kaleido_jax").iterdir() if path.suffix == ".py" or path.is_dir()]
    missing = [
        room for room in rooms if not room.startswith(("__", ".")) and f"`{room.removesuffix('.py')}" not in text
    ]
    assert not missing, f"BUILD.md's map of the rooms lacks {missing}"


def test_every_dependency_has_its_reason():
    text = (ROOT / "BUILD.md").read_text()
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    missing = [name for name in (Requirement(line).name for line in lines) if f"`{name}`" not in text]
    assert not missing, f"BUILD.md's table of dependencies lacks {missing}"


def locked(path: pathlib.Path) -> dict[str, Version]:
    pairs = (line.split("==") for line in path.read_text().splitlines() if not line.startswith("#"))
    return {name: Version(version) for name, version in pairs}


@pytest.mark.parametrize("name", LOCKS)
def test_the_locks_satisfy_pyproject(name: str):
    versions, core = locked(LOCKS[name]), locked(LOCKS["core"])
    script = importlib.util.spec_from_file_location("lock", ROOT / "tools" / "lock.py")
    lock = importlib.util.module_from_spec(script)
    script.loader.exec_module(lock)
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in lock.ENVIRONMENTS[name] for line in extras[extra])]
    problems = []
    for requirement in map(Requirement, lines):
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            problems.append(f"{requirement} is locked at {version}")
    if name in lock.APART:
        core = {}
    problems += [f"{key} is {versions.get(key)}, in core {core[key]}" for key in core if versions.get(key) != core[key]]
    assert not problems, f"run tools/lock.py {name}: {'; '.join(problems)}"


def test_pre_commit_runs_programs_of_the_test_extra():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].split() for repository in hooks for hook in repository["hooks"]]
    assert {repository["repo"] for repository in hooks} == {"local"}
    assert {words[0] for words in entries} <= {"ruff", "pyright", "pytest", "python"}
    for words in entries:
        check_paths(words[1:])


def test_documents_hold_no_path_of_one_machine():
    for path in DOCUMENTS:
        assert not re.search(r"/(work|root|home)/", path.read_text()), f"{path.name} holds a path of one machine"
