"""What others publish, as sources; and a curated data set in their forms, read back."""

import csv
import io
import json
import re
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kaleido_jax.cli.main import main
from kaleido_jax.curation import audit, rle, writers
from kaleido_jax.curation.audit import Result, read_votes, write_page
from kaleido_jax.curation.engine import curate
from kaleido_jax.curation.readers import READERS, read, tables
from kaleido_jax.curation.report import funnel, write_report
from kaleido_jax.data import folder
from kaleido_jax.data.buckets import VideoBucket
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.evaluation.intervals import Share
from tests.curation.scenery import FPS, FRAMES, SIZE, tiny, write_balls

# An ellipse as pycocotools 2.0.11 encodes it.
ELLIPSE = {
    "size": [40, 60],
    "counts": "T>7P12N2O0O2N2O000O2O000O2O00000000000000000000000000000001N10001N10001N2N101N2NU<",
}


def test_masks_are_those_of_pycocotools():
    y, x = np.mgrid[0:40, 0:60]
    mask = (x - 30) ** 2 / 400 + (y - 15) ** 2 / 100 < 1
    assert rle.encode(mask) == ELLIPSE
    np.testing.assert_array_equal(rle.decode(ELLIPSE), mask)
    for seed, share in enumerate((0.0, 0.02, 0.5, 0.98, 1.0)):
        mask = np.random.default_rng(seed).random((17, 23)) < share
        np.testing.assert_array_equal(rle.decode(rle.encode(mask)), mask)
    np.testing.assert_array_equal(rle.decode({"size": [2, 3], "counts": [1, 2, 3]}), [[0, 1, 0], [1, 0, 0]])


@pytest.mark.parametrize(
    "value",
    [{}, {"size": [2, 2], "counts": [5]}, {"size": [2, 2], "counts": "\x01"}, {"size": [2**20, 2**20], "counts": [1]},
     {"size": [2, 2], "counts": [-1, 5]}, {"size": [2, 2], "counts": "ooooooooooooooo"}],
)  # fmt: skip
def test_wrong_masks(value):
    with pytest.raises(InputError, match="mask"):
        rle.decode(value)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers")
    write_balls(folder / "in", 3)
    curate(tiny(), folder / "in", folder / "out", None)
    return folder


def test_kaleidos_folder_is_written_and_read(curated, tmp_path):
    assert writers.kaleido(curated / "out" / "dataset", tmp_path) == 3
    assert folder.weights(tmp_path, folder.identities(tmp_path)) == pytest.approx([1.0] * 3)
    sources = list(read(replace(tiny(), reader="kaleido", license="mine"), tmp_path))
    assert len(sources) == 3 and all(source.references and source.license == "mine" for source in sources)
    assert sorted(source.caption for source in sources)[-1] == "two balls"


def test_opens2v_is_written_read_and_curated(curated, tmp_path):
    assert writers.opens2v(curated / "out" / "dataset", tmp_path / "published") == 3
    sources = list(READERS["opens2v"](tmp_path / "published"))
    assert [source.marks[0].phrase for source in sources].count("balls") == 1
    assert all(source.span == (0.0, FRAMES / FPS) and source.crop == (0, SIZE, 0, SIZE) for source in sources)
    config = replace(tiny(), reader="opens2v", models=replace(tiny().models, detector=None, segmenter=None))
    counters = curate(config, tmp_path / "published", tmp_path / "out", None)
    assert counters["size: subjects kept"] == 3  # by the published masks alone


def test_opens2v_survives_what_is_published(tmp_path):
    entry = {
        "metadata": {"path": "a.mp4", "cut": [8, 24], "fps": 8, "cap": ["a dog"]},
        "annotation": {
            "ann_frame_data": {"ann_frame_idx": 8, "annotations": [{"class_name": "dog", "bbox": [0, 0, 1, 1]}]}
        },
    }
    (tmp_path / "a.json").write_text(json.dumps({"b": entry, "other": 3}))
    (source,) = READERS["opens2v"](tmp_path)
    assert source.marks[0].mask is None and source.span == (1.0, 3.0) and source.caption == "a dog"
    for path in ("../../etc/passwd", "/etc/passwd"):
        (tmp_path / "a.json").write_text(json.dumps({"b": {"metadata": {**entry["metadata"], "path": path}}}))
        with pytest.raises(InputError, match="leads out of"):
            list(READERS["opens2v"](tmp_path))
    (tmp_path / "a.json").write_text(json.dumps({"b": {"metadata": {"path": "a.mp4"}}}))
    with pytest.raises(InputError, match="entry 'b'"):
        list(READERS["opens2v"](tmp_path))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        list(READERS["opens2v"](tmp_path))


def test_openvid(tmp_path):
    with open(tmp_path / "OpenVid-1M.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["video", "caption", "aesthetic score"], ["a.mp4", "a dog, asleep", "5.1"]])
    (tmp_path / "part1").mkdir()
    (tmp_path / "part1" / "a.mp4").write_bytes(b"x")
    (source,) = READERS["openvid"](tmp_path)
    assert source.path == str(tmp_path / "part1" / "a.mp4") and source.caption == "a dog, asleep"
    assert source.extra == {"aesthetic score": "5.1"}
    (tmp_path / "b.csv").write_text("name\nx\n")
    with pytest.raises(InputError, match="video and caption"):
        list(READERS["openvid"](tmp_path))


def test_webdataset_never_writes_outside_its_folder(tmp_path):
    with tarfile.open(tmp_path / "shard-0.tar", "w") as archive:
        for name, content in (
            ("../evil.mp4", b"video"), ("../evil.txt", b"a cat"), ("b.mp4", b"other"),
            ("b.json", json.dumps({"caption": "a dog", "license": "CC0"}).encode()), ("c.txt", b"no video"),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("d.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    sources = list(READERS["webdataset"](tmp_path))
    assert [(source.caption, source.license) for source in sources] == [("a cat", ""), ("a dog", "CC0")]
    assert all(re.fullmatch(r"[0-9a-f]{20}\.mp4", source.path.rpartition("/")[2]) for source in sources)
    assert {path.name for path in tmp_path.iterdir()} == {"shard-0.tar", ".shard-0.unpacked"}
    assert [source.id for source in READERS["webdataset"](tmp_path)] == [source.id for source in sources]


def test_identities(tmp_path):
    for name in ("ann/1.mp4", "ann/2.mp4", "bob/x/1.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [source.identity for source in READERS["identities"](tmp_path)] == ["ann", "ann", "bob"]
    (tmp_path / "stray.mp4").write_bytes(b"x")
    with pytest.raises(InputError, match="no identity"):
        list(READERS["identities"](tmp_path))


def test_subject200k_becomes_pairs_of_pictures(tmp_path, capsys):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = lambda n: np.random.default_rng(n).integers(0, 200, (5, 4, 3), dtype=np.uint8)
    left, right = (cells(n).repeat(4, 0).repeat(4, 1) for n in (0, 1))
    whole = np.full((24, 40, 3), 255, np.uint8)
    whole[2:22, 2:18], whole[2:22, 22:38] = left, right
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "PNG")
    said = {"item": "a cup", "description_0": "A cup\non a desk.", "description_1": "A cup in snow."}
    good = {
        "image": {"bytes": buffer.getvalue(), "path": None},
        "description": {**said, "description_valid": True},
        "quality_assessment": {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5},
    }
    poor = {**good, "quality_assessment": {**good["quality_assessment"], "imageQuality": 4}}
    wrong = {**good, "description": {**said, "description_valid": False}}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist([good, poor, wrong]), tmp_path / "in" / "train-00000.parquet")
    one, *_ = tables.subject200k(tmp_path / "in")
    assert one.item == "a cup"
    np.testing.assert_array_equal(one.views[0], left)
    np.testing.assert_array_equal(one.views[1], right)
    for _ in range(2):  # the second time, it is there already
        assert main(["curate", "subject200k", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 0
        counted = capsys.readouterr().out.split("\n")
        assert [line.split(maxsplit=1) for line in counted if line] == [
            ["1", "kept"], ["1", "rated below 5"], ["1", "captions found wrong"],
        ]  # fmt: skip
    names = folder.identities(tmp_path / "out")
    assert names == [f"{one.id}-0", f"{one.id}-1"]
    buckets = [VideoBucket(height=20, width=16, frames=1)]
    read_sample = lambda name: folder.read_sample(
        tmp_path / "out", name, buckets=buckets, frames_per_second=16, most_references=3
    )
    for name, caption, view, other in zip(names, ("A cup on a desk.", "A cup in snow."), one.views, one.views[::-1]):
        sample = read_sample(name)
        assert sample.prompt == caption and sample.video.shape == (1, 20, 16, 3)
        # H.264 keeps the brightness of cells, and of their colours less.
        assert np.corrcoef(sample.video[0].mean(-1).ravel(), view.mean(-1).ravel())[0, 1] > 0.9
        np.testing.assert_array_equal(sample.references[0][0], other)
    assert main(["curate", "subject200k", "--input", str(tmp_path / "out"), "--output", str(tmp_path / "x")]) == 65
    assert "holds no *.parquet" in capsys.readouterr().err


def test_a_reader_that_does_not_exist(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'folder'"):
        list(read(replace(tiny(), reader="folders"), tmp_path))


def test_report_and_votes(curated):
    text = write_report(curated / "out").read_text()
    assert "4 candidates, 3 kept (75.0 %)" in text and "Dropped: decoding" in text and "cut off 1" in text
    assert text == (curated / "out" / "report.html").read_text()
    page = write_page(curated / "out", 2, 0).read_text()
    assert page.count("<figure") == 2 and "<b>ball</b>" in page and "face:" not in page  # a ball has none
    assert funnel(
        [{"kept": False, "stage": "b", "reason": "x"}, {"kept": True, "stage": "", "reason": ""}], ("a", "b", "c")
    ) == [("a", 2, {}), ("b", 2, {"x": 1}), ("c", 1, {})]


def test_votes_are_read_back_with_intervals_and_bars(curated, tmp_path):
    page = write_page(curated / "out", 3, 0).read_text()
    names = re.findall(r'data-id="([^"]+)"', page)
    assert len(names) == 3 and all(name.endswith("/category") for name in names)
    votes = tmp_path / "votes.json"
    votes.write_text(json.dumps(dict(zip(names, (1, 1, 0)))))
    (result,) = read_votes(curated / "out", votes)
    assert (result.share.right, result.share.total, result.bar) == (2, 3, 0.92)
    assert "2 of 3" in str(result) and "92 % is undecided" in str(result)
    for text, said in (
        ("{}", "holds no votes"), ("[", "cannot be read"), ('{"x/category": 1}', "no subject"),
        (json.dumps({names[0]: 2}), "must be 1"), (json.dumps({names[0].replace("category", "face"): 1}), "no subject"),
    ):  # fmt: skip
        votes.write_text(text)
        with pytest.raises(InputError, match=said):
            read_votes(curated / "out", votes)
    # 100 of 100 have the interval 96.3 to 100 %, 40 of 50 66.9 to 88.8 %.
    verdict = lambda right, total: Result(question="category", share=Share(right, total), bar=0.92).verdict
    assert verdict(100, 100) == "met" and verdict(40, 50) == "missed" and verdict(93, 100).startswith("undecided")


def test_people_are_asked_for_their_face_and_drawn_ones_are_not(monkeypatch, tmp_path):
    sample = lambda caption: {"id": b"a", "caption": caption, "categories": [b"woman", b"dog"]}
    both = [sample(b"a woman and a dog"), sample(b"a cartoon woman and a dog")]
    monkeypatch.setattr(audit, "stored_source", lambda *_: both)
    assert [questions for _, _, questions, _ in audit.asked(tmp_path)] == [
        ("category", "face"), ("category",), ("category",), ("category",)
    ]  # fmt: skip
