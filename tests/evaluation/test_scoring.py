"""A run is scored whole: nothing is dropped in silence, what was scored is kept, and files say so."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from kaleido_jax.cli.main import main
from kaleido_jax.evaluation.runs import read_run
from kaleido_jax.evaluation.scoring import Scores, results
from kaleido_jax.evaluation.suites import METRICS, SUITES

WORLD = ["--encoder", "clip=world", "--encoder", "dino=world", "--encoder", "vbench-dino=world"]


def evaluate(run, out, *options: str) -> dict:
    assert main(["evaluate", str(run), "--out", str(out), *WORLD, *options]) == 0
    return json.loads((out / "results.json").read_text())


def values(out, metric: str) -> dict[str, float | None]:
    rows = parquet.read_table(out / "scores.parquet").to_pylist()
    return {row["case"]: row["value"] for row in rows if row["metric"] == metric}


def test_scores_tell_right_from_wrong(run_folder, tmp_path, capsys):
    out = tmp_path / "out"
    found = evaluate(run_folder, out, "--suite", "kaleido", "--suite", "leaks", "--metric", "clip_i")
    consistency, decoupling = values(out, "s2v_consistency"), values(out, "s2v_decoupling")
    assert consistency["right"] > 0.95 > 0.5 > consistency["wrong"]
    assert decoupling["right"] > 0.5 > 0.05 > decoupling["wrong"]
    assert values(out, "missing") == {"right": 0.0, "wrong": 1.0}
    assert found["metrics"]["s2v_consistency"]["count"] == 2
    assert found["metrics"]["s2v_consistency"]["categories"]["object"]["count"] == 2
    assert set(found["not_scored"]) == {
        "motion_smoothness", "aesthetic_quality", "imaging_quality", "overall_consistency",
    }  # fmt: skip
    assert found["references"] == {"least": 1, "most": 1, "mean": 1.0}
    assert (
        "motion_smoothness          not scored: there is no network for the role amt (--encoder"
        in capsys.readouterr().out
    )
    theirs = json.loads((out / "vbench.json").read_text())
    assert theirs["subject_consistency"][1][0]["video_results"] == values(out, "subject_consistency")["right"]


def test_missing_and_broken_videos_get_the_worst_value(run_folder, tmp_path):
    for file in (run_folder / "videos" / "right").iterdir():
        file.unlink()
    manifest = json.loads((run_folder / "manifest.json").read_text())
    manifest["cases"][1]["video"] = "videos/none.mp4"
    del manifest["cases"][1]["references"][0]["mask"]  # nothing tells this reference's background
    (run_folder / "manifest.json").write_text(json.dumps(manifest))
    (run_folder / "videos" / "extra.mp4").write_bytes(b"")
    found = evaluate(run_folder, tmp_path / "out", "--suite", "leaks", "--suite", "kaleido")
    assert values(tmp_path / "out", "s2v_decoupling") == {"right": 0.0, "wrong": None}
    assert found["failed"]["wrong"] == "missing video"
    assert found["failed"]["right"].startswith("broken video: ") and "holds no pictures" in found["failed"]["right"]
    assert found["metrics"]["s2v_consistency"]["mean"] == 0.0
    assert found["metrics"]["first_frame_leak"]["mean"] == 1.0
    assert found["metrics"]["s2v_consistency"]["failed"] == 2
    assert found["extra_videos"] == ["videos/extra.mp4"]


def test_what_a_video_is_compared_with_may_be_broken(run_folder, tmp_path, capsys):
    needing = ("s2v_consistency", "s2v_decoupling", "clip_i", "first_frame_leak")
    out, chosen = tmp_path / "out", [word for name in (*needing, "subject_consistency") for word in ("--metric", name)]
    whole = (run_folder / "wrong.png").read_bytes()
    (run_folder / "wrong.png").write_bytes(whole[:60])
    found = evaluate(run_folder, out, *chosen)
    assert found["metrics"]["subject_consistency"]["count"] == 2  # needs no reference
    for name in needing:
        assert found["metrics"][name]["count"] == 1 and values(out, name)["wrong"] is None
        (reason,) = found["metrics"][name]["left_out"]
        assert reason.startswith("unreadable: ") and "wrong.png" in reason
    assert list(found["unreadable"]) == ["wrong"] and not found["failed"]
    assert "unreadable: wrong: " in capsys.readouterr().out
    # Repaired, what has no value is scored, and what has a value of the same files is not scored again.
    (run_folder / "wrong.png").write_bytes(whole)
    assert evaluate(run_folder, out, *chosen)["unreadable"] == {}
    assert None not in values(out, "clip_i").values()
    lines = (out / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == ["right", "wrong", "wrong"]
    # A mask of another size, masks that are no masks, and a reference that is not there: each by its name.
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(run_folder / "wrong.mask.png")
    (run_folder / "right.npz").write_bytes(b"masks")
    found = evaluate(run_folder, out, *chosen)["unreadable"]
    assert "wrong.mask.png: has 9 x 8 pixels; its picture has 32 x 32" in found["wrong"]
    assert "right.npz: holds no masks that can be read" in found["right"]
    (run_folder / "right.png").unlink()
    (run_folder / "videos" / "right" / "000.png").write_bytes(b"")  # a broken video is not what is unreadable
    found = evaluate(run_folder, out, *chosen)
    assert "right.png: there is no such file" in found["unreadable"]["right"]
    assert values(out, "subject_consistency")["right"] == values(out, "first_frame_leak")["right"] - 1 == 0.0


def test_references_of_any_size_are_compared(run_folder, tmp_path):
    same = evaluate(run_folder, tmp_path / "same", "--metric", "s2v_consistency", "--metric", "reference_leak")
    for name in ("right.png", "right.mask.png"):
        with Image.open(run_folder / name) as picture:
            wide = picture.resize((96, 64), Image.Resampling.NEAREST)
        wide.save(run_folder / name)
    other = evaluate(run_folder, tmp_path / "other", "--metric", "s2v_consistency", "--metric", "reference_leak")
    assert not other["unreadable"]
    assert other["metrics"]["s2v_consistency"]["mean"] == pytest.approx(
        same["metrics"]["s2v_consistency"]["mean"], abs=0.1
    )


def test_what_was_scored_is_kept_and_what_changed_is_scored_again(run_folder, tmp_path):
    out = tmp_path / "out"
    evaluate(run_folder, out, "--suite", "leaks")
    lines = (out / "scores.jsonl").read_text()
    with (out / "scores.jsonl").open("a") as file:
        file.write('{"case": "wro')  # an interrupted run's last line
    evaluate(run_folder, out, "--suite", "leaks")
    assert (out / "scores.jsonl").read_text() == lines + '{"case": "wro\n'
    (run_folder / "videos" / "wrong" / "004.png").unlink()
    (run_folder / "wrong.npz").unlink()
    with np.load(run_folder / "right.npz") as masks:
        np.savez(run_folder / "wrong.npz", masks=masks["masks"][:4], subjects=masks["subjects"])
    evaluate(run_folder, out, "--suite", "leaks")
    added = (out / "scores.jsonl").read_text().splitlines()[3:]
    assert [json.loads(line)["case"] for line in added] == ["wrong"]
    # Another score is added to those that are there.
    evaluate(run_folder, out, "--suite", "leaks", "--metric", "temporal_flickering")
    assert list(json.loads((out / "scores.jsonl").read_text().splitlines()[-1])["values"]) == ["temporal_flickering"]


def test_a_killed_run_keeps_its_scores(run_folder, tmp_path):
    """SIGKILL in the middle: what was scored stands, and the same command goes on to the results of a whole run."""
    manifest = json.loads((run_folder / "manifest.json").read_text())
    cases = [case | {"id": f"{case['id']}_{number}"} for number in range(60) for case in manifest["cases"]]
    (run_folder / "manifest.json").write_text(json.dumps(manifest | {"cases": cases}))
    out, lines = tmp_path / "out", tmp_path / "out" / "scores.jsonl"
    program = "from kaleido_jax.cli import program; program()"
    command = [sys.executable, "-c", program, "evaluate", str(run_folder), "--out", str(out), *WORLD]
    process = subprocess.Popen([*command, "--suite", "leaks"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while not (lines.exists() and lines.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    before = lines.read_bytes()
    assert 3 <= before.count(b"\n") < len(cases) and not (out / "results.json").exists()
    resumed = evaluate(run_folder, out, "--suite", "leaks")
    assert lines.read_bytes().startswith(before)
    scored = [json.loads(line)["case"] for line in lines.read_bytes().splitlines() if line.endswith(b"}")]
    assert sorted(scored) == sorted(case["id"] for case in cases)  # none twice
    whole = evaluate(run_folder, tmp_path / "whole", "--suite", "leaks")
    assert resumed["metrics"] == whole["metrics"] and resumed["videos"] == whole["videos"]


def test_scores_of_other_settings_are_not_mixed(run_folder, tmp_path, capsys):
    evaluate(run_folder, tmp_path / "out", "--suite", "leaks")
    code = main(["evaluate", str(run_folder), "--out", str(tmp_path / "out"), *WORLD, "--undetected", "skip"])
    assert code == 2
    assert "holds scores of another run, encoder or option; give another --out." in capsys.readouterr().err


def test_shards_are_put_together(run_folder, tmp_path):
    out = tmp_path / "out"
    options = ["evaluate", str(run_folder), "--out", str(out), *WORLD, "--suite", "leaks"]
    assert main([*options, "--shard", "2/2"]) == 0
    run, names = read_run(run_folder), SUITES["leaks"]
    scores = Scores(out, json.loads((out / "settings.json").read_text()))
    with pytest.raises(ValueError, match="1 of 2 cases are not scored yet, 'right' first"):
        results(run, names, scores, as_published=False)
    assert main([*options, "--shard", "1/2"]) == 0
    before = sorted(path.name for path in out.glob("scores*.jsonl"))
    whole = evaluate(run_folder, out, "--suite", "leaks")
    assert before == ["scores-1-of-2.jsonl", "scores-2-of-2.jsonl"] == sorted(p.name for p in out.glob("scores*.jsonl"))
    alone = evaluate(run_folder, tmp_path / "alone", "--suite", "leaks")
    assert whole["metrics"] == alone["metrics"]


def test_other_programs_scores_and_features_are_taken(run_folder, tmp_path):
    faces = tmp_path / "faces"
    faces.mkdir()
    rng = np.random.default_rng(0)
    for name in ("right", "wrong"):
        reference = rng.standard_normal((2, 8))
        frames = np.repeat(reference[:1], 5, axis=0) if name == "right" else rng.standard_normal((5, 8))
        np.savez(faces / f"{name}.npz", frames=frames, references=reference, seen=np.arange(5) > 0)
    given = tmp_path / "given.json"
    rows = [{"video_path": "a/right", "video_results": 70.0}, {"video_path": "a/wrong", "video_results": 50.0}]
    given.write_text(json.dumps({"imaging_quality": [0.6, rows]}))
    options = ["--suite", "anyid", "--suite", "lct", "--features", f"arcface={faces}", "--scores", str(given)]
    found = evaluate(run_folder, tmp_path / "out", *options)
    assert found["metrics"]["imaging_quality"]["mean"] == pytest.approx(0.6)  # not VBench's 0 to 100 of a video
    theirs = json.loads((tmp_path / "out" / "vbench.json").read_text())["imaging_quality"]
    assert [theirs[0], *(row["video_results"] for row in theirs[1])] == pytest.approx([0.6, 70, 50])
    with np.load(faces / "right.npz") as file:
        a, b = file["references"] / np.linalg.norm(file["references"], axis=1, keepdims=True)
    right = values(tmp_path / "out", "holi_arc")["right"]
    assert right == pytest.approx((1 + 0.8 * (1 + a @ b) / 2) / 2)  # one of five frames shows no face and counts 0
    assert found["not_scored"]["holi_cur"].startswith("there are no curricularface features")
    published = evaluate(run_folder, tmp_path / "published", *options, "--as-published")
    assert published["metrics"]["imaging_quality"]["mean"] == pytest.approx(60)
    assert values(tmp_path / "published", "holi_arc")["right"] == pytest.approx((1 + (1 + a @ b) / 2) / 2)


def test_frames_weigh_equally_as_published(run_folder, tmp_path):
    (run_folder / "videos" / "right" / "004.png").unlink()
    (run_folder / "videos" / "right" / "003.png").unlink()
    options = ("--metric", "background_consistency")
    plain = evaluate(run_folder, tmp_path / "a", *options)["metrics"]["background_consistency"]["mean"]
    published = evaluate(run_folder, tmp_path / "b", *options, "--as-published")
    each = values(tmp_path / "a", "background_consistency")
    assert plain == pytest.approx((each["right"] + each["wrong"]) / 2)
    weighted = (2 * each["right"] + 4 * each["wrong"]) / 6
    assert published["metrics"]["background_consistency"]["mean"] == pytest.approx(weighted)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--suite", "none"], "There is no suite of scores 'none'"),
        (["--metric", "mising"], "There is no score 'mising'; did you mean 'missing'?"),
        (["--encoder", "clip"], "--encoder is 'clip'; write ROLE=PATH."),
        (["--encoder", "clap=world"], "There is no role of an encoder 'clap'; did you mean 'clip'?"),
        (["--encoder", "clip=nowhere"], "nowhere: there are no weights at this path"),
        (["--features", "arcface=nowhere"], "nowhere: there is no such folder of features"),
        (["--shard", "3/2"], "--shard is '3/2'; write I/N"),
        (["--scores", "nowhere.json"], "nowhere.json: there is no such file"),
    ],
)
def test_wrong_options_are_told_in_a_sentence(run_folder, tmp_path, capsys, options, sentence):
    assert main(["evaluate", str(run_folder), "--out", str(tmp_path / "out"), *options]) in (2, 65)
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("kaleido: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_given_scores_of_unknown_cases_are_refused(run_folder, tmp_path, capsys):
    given = tmp_path / "given.json"
    for document, sentence in [
        ({"app": [1, [{"video_path": "other.mp4", "video_results": 1}]]}, "app names the unknown case 'other.mp4'"),
        ({"apt": [1, []]}, "'apt' is no score"),
        ({"app": [1, [{"video_path": "right", "video_results": "good"}]]}, "app of 'right' is 'good'; not a number"),
    ]:
        given.write_text(json.dumps(document))
        assert main(["evaluate", str(run_folder), "--out", str(tmp_path / "o"), "--scores", str(given)]) == 65
        assert sentence in capsys.readouterr().err


def test_every_suite_names_scores_that_exist():
    assert {name for suite in SUITES.values() for name in suite} <= set(METRICS)
