"""Checkpoints: bitwise restore, and damage of any file is noticed."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kaleido_jax.errors import StorageError
from kaleido_jax.manifest import DamagedCheckpoint
from kaleido_jax.training.checkpoint import Checkpoints


def state(seed: float):
    return {
        "weights": {"blocks.0.kernel": jnp.full((3, 5), seed), "bias": jnp.arange(4, dtype=jnp.float32) * seed},
        "count": jnp.asarray(7, jnp.int32),
        "moments": (jnp.full((2,), -seed), jnp.asarray([True, False])),
    }


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with steps 5 and 9."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(5, state(0.5), {"note": "five"})
    checkpoints.save(9, state(0.9), {"note": "nine"})
    return folder


@pytest.fixture
def copied(written, tmp_path):
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


def test_restore_is_bitwise_and_takes_the_newest_or_the_one_asked_for(written):
    step, restored, metadata = Checkpoints(written).restore(state(0.0))
    assert (step, metadata) == (9, {"note": "nine"})
    equal(restored, state(0.9))
    step, restored, _ = Checkpoints(written).restore(state(0.0), step=5)
    assert step == 5
    equal(restored, state(0.5))


def test_an_empty_folder_restores_nothing(tmp_path):
    assert Checkpoints(tmp_path / "none").restore(state(0.0)) is None


def test_only_the_newest_are_kept_and_saving_a_step_twice_writes_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    assert checkpoints.steps() == [2]
    before = (tmp_path / "00000002" / "manifest.json").stat().st_mtime_ns
    checkpoints.save(2, state(3.0), {})
    assert (tmp_path / "00000002" / "manifest.json").stat().st_mtime_ns == before


def test_those_of_every_so_many_steps_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, keep_every=4)
    for step in (4, 5, 6):
        checkpoints.save(step, {"a": jnp.zeros(())}, {})
    assert checkpoints.steps() == [4, 6]


def test_damage_of_every_file_is_noticed_and_named(copied):
    """A flipped bit, a lost byte, and a missing file, for each file in turn."""
    folder = copied / "00000009"
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json" and p.stat().st_size]
    assert len(files) >= 5
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damage in (flipped, content[:-1], None):
            file.unlink() if damage is None else file.write_bytes(damage)
            with pytest.raises(DamagedCheckpoint, match=file.name):
                Checkpoints(copied).restore(state(0.0), step=9)
        file.write_bytes(content)
    Checkpoints(copied).restore(state(0.0), step=9)


def test_an_extra_file_or_another_steps_manifest_is_damage(copied):
    (copied / "00000005" / "extra").write_text("x")
    with pytest.raises(DamagedCheckpoint, match="extra is not in the manifest"):
        Checkpoints(copied).restore(state(0.0), step=5)
    manifest = copied / "00000009" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 9', '"step": 8'))
    with pytest.raises(DamagedCheckpoint, match="is of step 8, not 9"):
        Checkpoints(copied).restore(state(0.0), step=9)


def test_without_a_step_it_falls_back_with_a_warning_and_sets_the_bad_one_aside(copied):
    (copied / "00000009" / "metadata.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"set aside as 00000009\.corrupt"):
        step, restored, _ = Checkpoints(copied).restore(state(0.0))
    assert step == 5
    equal(restored, state(0.5))
    assert (copied / "00000009.corrupt").is_dir()
    assert Checkpoints(copied).steps() == [5]


def test_when_all_are_damaged_nothing_starts_from_scratch(copied):
    for step in (5, 9):
        (copied / f"{step:08d}" / "metadata.json").write_text("{}")
    with pytest.warns(UserWarning), pytest.raises(StorageError, match=r"no checkpoint .* can be read"):
        Checkpoints(copied).restore(state(0.0))
    with pytest.raises(StorageError, match=r"00000005\.corrupt, 00000009\.corrupt"):
        Checkpoints(copied).restore(state(0.0))


def test_a_folder_without_a_manifest_is_no_checkpoint(copied):
    (copied / "00000009" / "manifest.json").unlink()
    (copied / "00000011").write_text("not even a folder")
    assert Checkpoints(copied).steps() == [5]
    with pytest.raises(StorageError, match=r"manifest\.json is missing"):
        Checkpoints(copied).restore(state(0.0), step=9)
    Checkpoints(copied).save(9, state(0.1), {})  # what is left of it is in nobody's way
    assert Checkpoints(copied).steps() == [5, 9]


def test_a_folder_that_looks_like_a_step_is_set_aside_and_never_means_a_fresh_start(tmp_path):
    (tmp_path / "00000007" / "arrays").mkdir(parents=True)
    aside = pytest.warns(UserWarning, match=r"manifest\.json is missing; it was set aside as 00000007\.corrupt")
    with aside, pytest.raises(StorageError, match=r"no checkpoint .* can be read"):
        Checkpoints(tmp_path).restore(state(0.0))


def test_a_checkpoint_is_written_while_others_go_on(tmp_path):
    """What is saved is what was there when saving began, though its memory is used again at once."""
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + x.dtype.type(1), tree), donate_argnums=0)
    numbers = {"a": jnp.arange(1_000_000, dtype=jnp.float32), "n": jnp.int32(3)}
    wanted = jax.tree.map(np.array, numbers)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.begin(1, numbers, {})
    for _ in range(3):
        numbers = add(numbers)
    checkpoints.finish()
    assert checkpoints.steps() == [1] and not checkpoints.failed
    equal(checkpoints.restore(numbers)[1], wanted)


def test_an_error_of_the_background_is_told_and_loses_nothing_else(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(0.1), {})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("kaleido_jax.training.checkpoint.write_manifest", full)
        checkpoints.begin(2, state(0.2), {})
        checkpoints._background._thread.join()
        assert checkpoints.failed
        with pytest.raises(StorageError, match=r"checkpoint 2 could not be written .* No space left"):
            checkpoints.begin(3, state(0.3), {})
    assert checkpoints.steps() == [1] and not list(tmp_path.glob("*.partial"))
    checkpoints.save(3, state(0.3), {})
    assert checkpoints.steps() == [1, 3]


def test_a_state_of_another_config_is_refused_with_all_differences(written):
    other = state(0.0)
    other["weights"]["bias"] = jnp.zeros((5,))
    other["extra"] = jnp.zeros(())
    del other["count"]
    with pytest.raises(StorageError) as error:
        Checkpoints(written).restore(other)
    for words in ("3 leaves", "weights/bias has shape (4,), not (5,)", "extra is missing", "count is not part"):
        assert words in str(error.value)


def test_metadata_is_plain_json(written):
    assert json.loads((written / "00000005" / "metadata.json").read_text()) == {"note": "five"}
