"""`kaleido generate` as a real process: signals, a full disk, broken compile caches."""

import os
import signal
import time

import pytest

from kaleido_jax.pipeline.record import file_sha256

REQUEST = ["generate", "--reference", "cat.png", "--prompt", "a red cat walks left"]


def left_over(folder):
    return sorted(name for name in os.listdir(folder) if name not in ("cat.png", "dog.jpg", "cache"))


def wait_for(child, words: str) -> str:
    """Reads the standard error of a process until `words` stand in it."""
    text = ""
    while words not in text:
        character = child.stderr.read(1)
        assert character, text
        text += character
    return text


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")], ids=["INT", "TERM"]
)
def test_a_signal_while_sampling(start, folder, model, number, code, name):
    child = start(*REQUEST, "--model", model, "--steps", "100", "--size", "160", "--frames", "41", cwd=folder)
    wait_for(child, "2/100")
    child.send_signal(number)
    _, rest = child.communicate(timeout=30)
    assert child.returncode == code
    assert rest.rstrip().endswith(f"kaleido: stopped by {name}.") and "Traceback" not in rest
    assert left_over(folder) == []


def test_ctrl_c_while_compiling(start, folder, model, environment):
    # Nothing is in this cache, so the compiler, which does not let Python run, holds the main thread for seconds.
    own = environment | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    child = start(*REQUEST, "--model", model, "--size", "96x32", cwd=folder, env=own)
    wait_for(child, "compiling the decoder")
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, rest = child.communicate(timeout=60)
    assert child.returncode == 130 and time.monotonic() - began < 10
    assert "kaleido: stopped by Ctrl-C." in rest and "Traceback" not in rest
    assert left_over(folder) == []


def test_ctrl_c_at_any_moment_leaves_nothing(start, folder, model):
    for delay in (0.1, 0.6, 1.2, 2.0):
        child = start(*REQUEST, "--model", model, "--steps", "100", cwd=folder)
        time.sleep(delay)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
        finished = os.path.exists(folder / "out.json")
        assert child.returncode in ((0, 130) if finished else (130,)), err
        assert left_over(folder) == (["out.json", "out.mp4", "out.sheet.png"] if finished else [])


def test_a_disk_that_takes_no_more(process, folder, model):
    # A limit on the size of files stands for a full disk; it is found before the model is loaded.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); "
    result = process(*REQUEST, "--model", model, cwd=folder, before=limit)
    assert result.returncode == 74 and "files of this size are not allowed" in result.stderr
    assert "loading" not in result.stderr and "Traceback" not in result.stderr
    assert left_over(folder) == []


def test_equal_bytes_in_every_process_and_with_any_compile_cache(process, folder, model, environment):
    """Truncated, damaged and foreign entries, and a folder that cannot be used: a note, and the same video."""
    cache = folder / "cache"
    own = environment | {"JAX_COMPILATION_CACHE_DIR": str(cache)}

    def run(name, environment):
        result = process(*REQUEST, "--model", model, "--out", f"{name}.mp4", cwd=folder, env=environment)
        assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
        return file_sha256(folder / f"{name}.mp4"), result.stderr

    (folder / "file").write_bytes(b"")
    without, notes = run("without", environment | {"JAX_COMPILATION_CACHE_DIR": str(folder / "file" / "cache")})
    assert "cannot be used" in notes
    cold, _ = run("cold", own)
    entries = sorted(path for path in cache.iterdir() if path.name.endswith("-cache"))
    assert len(entries) >= 4
    for number, path in enumerate(entries):  # every fourth is left as it is, and read
        content = path.read_bytes()
        path.write_bytes([b"", content[: len(content) // 2], bytes(len(content)), content][number % 4])
    (cache / "foreign").write_bytes(b"x")
    (cache / "foreign-atime").write_bytes(b"x")
    damaged, notes = run("damaged", own)
    assert "note:" in notes
    assert without == cold == damaged
