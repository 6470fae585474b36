"""A tiny model, two pictures, and the command as a real process and in this one."""

import os
import subprocess
import sys

import jax
import jaxtyping
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from kaleido_jax.cli import main
from kaleido_jax.testing.tiny import save_tiny_bundle

COMMAND = [sys.executable, "-c", "from kaleido_jax.cli import program; program()"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_tiny_bundle(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Of a user's shell, with a compile cache of its own that all processes of the tests share."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("compiled"))
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with cat.png and dog.jpg in it."""
    random = np.random.default_rng(0)
    for name, shape in (("cat.png", (20, 30, 3)), ("dog.jpg", (40, 16, 3))):
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kaleido(monkeypatch, environment, capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", environment["JAX_COMPILATION_CACHE_DIR"])
    names = [
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}

    def run(*arguments) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    yield run
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def process(environment):
    """Runs the command as a process of its own, after the Python program `before`; gives returncode, stdout, stderr."""

    def run(*arguments, before: str = "", **options) -> subprocess.CompletedProcess:
        command = [*COMMAND[:2], before + COMMAND[2], *map(str, arguments)]
        options = {"env": environment, "timeout": 240} | options
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return run


@pytest.fixture
def start(environment):
    """Starts the command as a process of its own, its output in pipes; it is ended after the test."""
    started = []

    def run(*arguments, **options) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **({"env": environment} | options),
            )
        )
        return started[-1]

    yield run
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture
def as_users_run_it():
    """Run-time type checks, which only tests have, would answer before our own sentences do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
