"""From files to a data set: what is kept and why not, the same bytes however often a run is stopped, and by Beam."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kaleido_jax.curation.dataset import CuratedSource
from kaleido_jax.curation.engine import Runner, curate
from kaleido_jax.data.loader import batches
from kaleido_jax.errors import InputError, StorageError
from tests.curation.scenery import FRAMES, SIZE, colourful, tiny, write_balls

COUNT = 8


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Path:
    """The input folder `in` and what became of it, `out`, by the plain loop."""
    folder = tmp_path_factory.mktemp("curation")
    write_balls(folder / "in", COUNT)
    curate(tiny(), folder / "in", folder / "out", None)
    return folder


def audit(output: Path) -> list[dict]:
    import pyarrow.parquet as pq

    return [row for path in sorted((output / "dataset").glob("audit-*")) for row in pq.read_table(path).to_pylist()]


def content(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "dataset").iterdir()}


def test_every_candidate_has_a_row_with_why(curated):
    rows = audit(curated / "out")
    assert len(rows) == COUNT + 1 and len({row["id"] for row in rows}) == COUNT + 1
    dropped = [(row["level"], row["stage"], row["reason"]) for row in rows if not row["kept"]]
    assert dropped == [("file", "decoding", "cut off")]
    kept = [row for row in rows if row["kept"]]
    assert {row["category"] for row in kept} == {"ball"} and all(row["score_area"] > 0.05 for row in kept)
    assert all(row["weight"] == pytest.approx(1.0) for row in kept)


def test_cross_pairs_never_show_a_scene_of_their_own_source(curated):
    kept = [row for row in audit(curated / "out") if row["kept"]]
    donors = [(row["source"], row["donor"]) for row in kept if row["donor"]]
    assert donors and all(source != donor for source, donor in donors)


def test_records_of_training(curated):
    source = CuratedSource(curated / "out" / "dataset", frames=FRAMES, height=SIZE, width=SIZE)
    assert len(source) == COUNT and source.weights() == pytest.approx(np.ones(COUNT))
    batch = batches(source, COUNT, repeat=False)[0]
    assert batch["video"].shape == (COUNT, FRAMES, SIZE, SIZE, 3)
    assert (batch["reference_count"] >= 1).all() and (batch["reference_subjects"][:, 0] == 1).all()
    for video, masks, references in zip(batch["video"], batch["masks"], batch["references"]):
        marked = [frame for frame in range(FRAMES) if masks[frame].any()]
        assert len(marked) == 1
        seen, truth = masks[marked[0]] > 0, colourful(video[marked[0]])
        assert (seen & truth).sum() / (seen | truth).sum() > 0.9
        assert colourful(references[0]).mean() > 0.05  # the ball is in its reference
    assert "tensorflow" not in sys.modules


def test_running_again_changes_nothing(curated, tmp_path):
    before = content(curated / "out")
    counters = curate(tiny(), curated / "in", curated / "out", None)
    assert counters == {} and content(curated / "out") == before
    with pytest.raises(StorageError, match="another configuration"):
        curate(tiny(balance=1.0), curated / "in", curated / "out", None)
    with pytest.raises(InputError, match="finds no video"):
        curate(tiny(), tmp_path, tmp_path / "out", None)


def test_new_files_are_added(curated, tmp_path):
    shutil.copytree(curated, tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "in" / "02.mp4", tmp_path / "in" / "later.mp4")
    (tmp_path / "in" / "later.txt").write_text("a ball, and nobody else")
    counters = curate(tiny(), tmp_path / "in", tmp_path / "out", None)
    assert counters["size: subjects kept"] == 1  # the others are not looked at again
    assert Counter(row["kept"] for row in audit(tmp_path / "out")) == {True: COUNT + 1, False: 1}


def test_killed_at_any_moment_it_goes_on_to_the_same_content(curated, tmp_path):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\nfrom tests.curation.scenery import tiny\n"
        "from kaleido_jax.curation.engine import curate\n"
        f"curate(tiny(), Path({str(curated / 'in')!r}), Path({str(tmp_path)!r}), None)\n"
    )
    files = lambda: sum(path.is_file() for path in tmp_path.rglob("*"))
    # Files that are there when the run is killed: in slicing, in stages, in shards; CURATION_KILLS asks for more kills.
    kills = int(os.environ.get("CURATION_KILLS", "3"))
    moments = [4, 15, 22] if kills == 3 else sorted(random.Random(0).randint(1, 26) for _ in range(kills))
    for moment in moments:
        with subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.getcwd()
        ) as run:
            deadline = time.monotonic() + 120
            while run.poll() is None and files() < moment and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(0.0 if kills == 3 else random.Random(moment).random() / 10)
            run.send_signal(signal.SIGKILL)
            run.wait()
    curate(tiny(), curated / "in", tmp_path, None)
    assert content(tmp_path) == content(curated / "out")
    assert not list(tmp_path.rglob(".*.partial*"))


@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_beam_gives_the_same_bytes_and_counts(curated, tmp_path):
    pytest.importorskip("apache_beam")
    counters = curate(tiny(), curated / "in", tmp_path, Runner())
    assert content(tmp_path) == content(curated / "out")
    assert counters["size: subjects kept"] == COUNT and counters["taxonomy: clips kept"] == COUNT
    assert Counter(row["kept"] for row in audit(tmp_path)) == {True: COUNT, False: 1}
