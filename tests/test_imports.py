"""Who may import whom (the arrows of BUILD.md), which packages may be imported at all, and what must never be called.

The source is read with `ast`, nothing is imported, so an import inside a function counts like one at the top.
"""

import ast
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kaleido_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# The layers, lowest first: a room may import itself, its own layer where that is marked, and every layer below.
VOCABULARY = {
    *("layout", "rope", "masks", "typing", "config", "errors", "tree", "names", "table", "packing", "manifest"),
}
ATTENTION = VOCABULARY | {"attention"}
METHODS = ATTENTION | {"models", "diffusion", "methods", "endpoints", "describers"}
WEIGHTS = METHODS | {"adapters", "porting", "parallel"}
MAY_IMPORT = {
    **dict.fromkeys(VOCABULARY, VOCABULARY),
    "attention": ATTENTION,
    "models": ATTENTION | {"models"},  # not diffusion: a model knows no noise schedule
    "diffusion": ATTENTION | {"diffusion"},  # not models: a sampler takes a function
    "methods": METHODS,
    "endpoints": VOCABULARY | {"endpoints"},
    "describers": METHODS,
    "adapters": WEIGHTS,
    "porting": WEIGHTS,
    "parallel": WEIGHTS,
    "drawing": VOCABULARY | {"drawing"},
    "media": VOCABULARY | {"media"},
    "data": VOCABULARY | {"media", "data"},  # not models: data is written once and read by any of them
    "bundle": WEIGHTS | {"bundle"},
    "testing": WEIGHTS | {"bundle", "testing"},
    **dict.fromkeys(
        ("training", "curation", "evaluation", "pipeline", "preference"),
        WEIGHTS | {"media", "data", "bundle", "training", "curation", "evaluation", "pipeline", "preference"},
    ),
    **dict.fromkeys(
        ("cli", "demo"),
        WEIGHTS
        | {
            "media",
            "data",
            "bundle",
            "training",
            "curation",
            "evaluation",
            "pipeline",
            "preference",
            "drawing",
            "cli",
            "demo",
        },
    ),
}
# Narrower than the arrows, as (files, what they must not import, why).
EXCEPTIONS = [
    (r"(adapters|porting|parallel)/.*", r"kaleido_jax\.models\..*\.modeling", "they see parameters by dotted name"),
    (r"methods/.*", r"kaleido_jax\.attention\..+", "a method never mentions kernels"),
    (r"(layout|rope|masks)\.py", r"(?!numpy|jax|jaxtyping|einops|kaleido_jax).*", "the vocabulary is numpy and jax"),
]
# The one file that may read PyTorch's pickled files, through the weights-only loader.
PICKLE_READER = "porting/torch_files.py"
# Import name -> distribution name, where they differ.
DISTRIBUTIONS = {"absl": "absl_py", "PIL": "pillow", "orbax": "orbax_checkpoint", "yaml": "pyyaml"}
DISTRIBUTIONS |= {"cv2": "opencv_python_headless", "scenedetect": "scenedetect_headless", "skimage": "scikit_image"}
# Extras that a room may count on, imported inside the functions that need them.
ROOM_EXTRAS = {"porting": {"torch"}, "describers": {"vlm"}, "data": {"data"}, "testing": {"test"}}
ROOM_EXTRAS |= {"evaluation": {"data"}, "curation": {"curation", "data", "editors", "transnet", "vlm"}}


def imports(source: str, package: tuple[str, ...] = ()) -> Iterator[str]:
    """Dotted names imported by a module of `package`; `from a import b` gives a.b: a module or something inside one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_of_file(path: pathlib.Path) -> list[str]:
    return list(imports(path.read_text(), path.relative_to(ROOT).parent.parts))


def room(path: pathlib.Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def wrong_imports(path: pathlib.Path) -> Iterator[str]:
    here, relative = room(path), path.relative_to(PACKAGE).as_posix()
    if here not in MAY_IMPORT:
        yield f"{relative}: place the new room {here!r} in MAY_IMPORT and in BUILD.md's map"
        return
    for name in imports_of_file(path):
        top, _, rest = name.partition(".")
        if top in ("configs", "tools", "tests"):
            yield f"{relative}: the package must not import {name}"
        if top == "kaleido_jax" and rest.split(".")[0] not in MAY_IMPORT[here] | {here, "__version__"}:
            yield f"{relative}: {here} must not import {name}"
        if top in sys.stdlib_module_names:
            continue
        for files, forbidden, reason in EXCEPTIONS:
            if re.fullmatch(files, relative) and re.fullmatch(forbidden, name):
                yield f"{relative}: must not import {name}, because {reason}"


def test_imports_follow_the_arrows():
    # The package's own __init__.py lists the public names of every room.
    problems = [problem for path in FILES if path != PACKAGE / "__init__.py" for problem in wrong_imports(path)]
    assert not problems, "\n".join(problems)


def distribution_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("-", "_") for line in requirements}


def third_party(path: pathlib.Path) -> set[str]:
    roots = {name.split(".")[0] for name in imports_of_file(path)} - set(sys.stdlib_module_names) - {"kaleido_jax"}
    return {DISTRIBUTIONS.get(root, root) for root in roots}


def test_dependencies_are_those_that_the_package_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = distribution_names(project["dependencies"])
    extras = {name: distribution_names(lines) for name, lines in project["optional-dependencies"].items()}
    problems, used = [], set()
    for path in FILES:
        allowed = core.union(*(extras[extra] for extra in ROOM_EXTRAS.get(room(path), ())))
        names = third_party(path)
        used |= names
        if names - allowed:
            problems.append(f"{path.relative_to(ROOT)} imports {sorted(names - allowed)}, which is not installed")
    if core - used:
        problems.append(f"nothing imports {sorted(core - used)}: take it out of pyproject.toml's dependencies")
    assert not problems, "\n".join(problems)


def forbidden_calls(source: str) -> Iterator[str]:
    for name in imports(source):
        if name.split(".")[0] in ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"):
            yield f"import of {name}"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"):
            yield f"line {node.lineno}: {name}()"
        if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            yield f"line {node.lineno}: {name}(), use yaml.safe_load"
        for keyword in node.keywords:
            if keyword.arg in ("shell", "allow_pickle", "trust_remote_code") and ast.unparse(keyword.value) != "False":
                yield f"line {node.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"


def unsafe_torch_loads(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            if not any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in node.keywords):
                yield f"line {node.lineno}: torch.load() without weights_only=True"


def test_nothing_that_can_run_code_from_a_file_is_called():
    problems = []
    for path in FILES:
        source, relative = path.read_text(), path.relative_to(PACKAGE).as_posix()
        found = list(forbidden_calls(source))
        if relative == PICKLE_READER:
            found = [entry for entry in found if not entry.endswith("torch.load()")] + list(unsafe_torch_loads(source))
        problems += [f"{relative}: {entry}" for entry in found]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from marshal import loads",
        "def f():\n    import dill",
        "eval('1')",
        "exec('a = 1')",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(file)",
        "torch.load(file, weights_only=True)",
    ],
)
def test_the_lint_finds_what_it_forbids(code: str):
    assert len(list(forbidden_calls(code))) == 1


def test_the_exempt_file_may_only_load_weights():
    assert not list(unsafe_torch_loads("torch.load(file, weights_only=True)"))
    assert list(unsafe_torch_loads("torch.load(file)"))
    assert list(unsafe_torch_loads("torch.load(file, weights_only=False)"))


def test_relative_imports_are_resolved():
    source = "from . import blocks\nfrom ..vae import layers\nfrom ...masks import TokenMask"
    inside = ("kaleido_jax", "models", "wan")
    expected = ["kaleido_jax.models.wan.blocks", "kaleido_jax.models.vae.layers", "kaleido_jax.masks.TokenMask"]
    assert list(imports(source, inside)) == expected
