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

from kaleido_jax.curation import writers
from kaleido_jax.curation.dataset import SPLITS, Balanced, CuratedSource
from kaleido_jax.curation.engine import Runner, curate
from kaleido_jax.curation.settings import Tier
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
    assert len(Balanced(source)) == COUNT  # of one category: each once
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


def test_weights_are_those_of_the_samples(curated, tmp_path):
    """In the order of the shards, of both splits, where categories differ in number and one clip is not strict."""
    shutil.copytree(curated / "in", tmp_path / "in")
    for number in (3, 4, 5):
        (tmp_path / "in" / f"{number:02d}.txt").write_text("A striped balloon rolls along.")
    config = tiny(tier=Tier(brightness=(100.0, 215.0)))
    curate(config, tmp_path / "in", tmp_path / "out", None)
    lengths = []
    for split in SPLITS:
        source = CuratedSource(tmp_path / "out" / "dataset", split, frames=FRAMES, height=SIZE, width=SIZE)
        stored = [float(sample["weight"]) for sample in writers.samples(tmp_path / "out" / "dataset", split)]
        np.testing.assert_array_equal(source.weights(), np.float32(stored))
        lengths.append(len(stored))
    assert lengths[0] == COUNT and 0 < lengths[1] < COUNT and len(set(stored)) == 2


def test_rare_samples_come_more_often():
    weights = np.array([0.5, 0.5, 1.25, 3.0, 0.5])
    balanced = Balanced("abcde", weights)
    drawn = Counter(balanced[number] for number in range(len(balanced)))
    assert drawn["a"] == drawn["b"] == drawn["e"] == 1 and drawn["c"] in (2, 3) and drawn["d"] == 6
    with pytest.raises(InputError, match="5 numbers above 0"):
        Balanced("abcde", weights[:4])


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


def started(folder: Path, output: Path) -> subprocess.Popen:
    """A process that curates `folder` by the plain loop; it has said "begun" when its libraries were loaded."""
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from pathlib import Path\nfrom tests.curation.scenery import tiny\n"
        "from kaleido_jax.curation.engine import curate\nprint('begun', flush=True)\n"
        f"curate(tiny(), Path({str(folder)!r}), Path({str(output)!r}), None)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=os.getcwd())
    assert run.stdout.readline() == b"begun\n"
    return run


def test_killed_at_any_stage_it_goes_on_to_the_same_content(curated, tmp_path):
    files = lambda: sum(path.is_file() for path in tmp_path.rglob("*"))
    for moment in (4, 15, 22):  # files that are there when the run is killed: in slicing, in stages, in shards
        with started(curated / "in", tmp_path) as run:
            deadline = time.monotonic() + 120
            while run.poll() is None and files() < moment and time.monotonic() < deadline:
                time.sleep(0.002)
            run.kill()
    curate(tiny(), curated / "in", tmp_path, None)
    assert content(tmp_path) == content(curated / "out")
    assert not list(tmp_path.rglob(".*.partial*"))


def test_killed_at_random_moments_it_goes_on_to_the_same_content(curated, tmp_path):
    """CURATION_KILLS: so many kills, each at any time of a run; one that ends before has to be right, and is redone."""
    draw, killed, ended = random.Random(0), 0, [0]
    with started(curated / "in", tmp_path / "out") as run:
        begun = time.monotonic()
        assert run.wait(300) == 0
    usual = time.monotonic() - begun
    while killed < int(os.environ.get("CURATION_KILLS", "1")):
        if ended[-1] == 0:
            assert content(tmp_path / "out") == content(curated / "out")
            shutil.rmtree(tmp_path / "out")
        with started(curated / "in", tmp_path / "out") as run:
            time.sleep(usual * draw.random())
            run.kill()
            ended.append(run.wait(60))
        assert ended[-1] in (0, -signal.SIGKILL)
        killed += ended[-1] != 0
    print(f"{killed} kills, {ended[1:].count(0)} runs that ended before, {usual:.1f} s a run")
    curate(tiny(), curated / "in", tmp_path / "out", None)
    assert content(tmp_path / "out") == content(curated / "out")


@pytest.mark.filterwarnings("ignore")  # Beam's own
def test_beam_gives_the_same_bytes_and_counts(curated, tmp_path):
    pytest.importorskip("apache_beam")
    counters = curate(tiny(), curated / "in", tmp_path, Runner())
    assert content(tmp_path) == content(curated / "out")
    assert counters["size: subjects kept"] == COUNT and counters["taxonomy: clips kept"] == COUNT
    assert Counter(row["kept"] for row in audit(tmp_path)) == {True: COUNT, False: 1}
