"""Files are whole or absent, whatever happens while they are written."""

import errno
import os
import subprocess
import sys

import pytest

from kaleido_jax.errors import StorageError
from kaleido_jax.media.storage import make_writable_folder, remove_temporaries, written_whole


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.txt"
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and temporary.suffix == ".txt" and not path.exists()
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_a_block_that_fails(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), written_whole(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EIO, "Input/output")],
)
def test_errors_of_the_system_become_one_sentence(tmp_path, code, words):
    with pytest.raises(StorageError, match=words), written_whole(tmp_path / "a.txt"):
        raise OSError(code, os.strerror(code))
    assert os.listdir(tmp_path) == []


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(StorageError), written_whole(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_remove_temporaries(tmp_path):
    with pytest.raises(StorageError), written_whole(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        remove_temporaries()
        assert not temporary.exists()


def test_long_names_stay_short_enough(tmp_path):
    path = tmp_path / ("n" * 250 + ".mp4")
    with written_whole(path) as temporary:
        temporary.write_text("x")
    assert path.exists()


def test_folders_are_made_and_tried(tmp_path):
    make_writable_folder(tmp_path / "a" / "b", 3_000_000)
    assert os.listdir(tmp_path / "a" / "b") == []


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="is a file, not a folder"):
            make_writable_folder(folder, 1)
    with pytest.raises(StorageError, match=r"MB are needed and .* MB are free"):
        make_writable_folder(tmp_path, 1 << 60)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="no permission"):
        make_writable_folder(tmp_path / "closed", 1)


def test_a_disk_that_refuses_the_bytes(tmp_path):
    # A limit on the size of files stands for a full disk: the write itself fails, whatever the free space.
    program = (
        "import pathlib, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "from kaleido_jax.errors import StorageError\n"
        "from kaleido_jax.media.storage import make_writable_folder\n"
        "try: make_writable_folder(pathlib.Path(sys.argv[1]), 3_000_000)\n"
        "except StorageError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "files of this size are not allowed" in result.stdout
    assert os.listdir(tmp_path) == []
