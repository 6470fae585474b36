"""The programs that study the methods, on problems so small that they take seconds."""

import importlib
import json
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from kaleido_jax.data.world import World
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.evaluation.fidelity import Verdict
from kaleido_jax.training import plan as training_plan

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


def test_failures_of_references_go_on_where_they_were_stopped(tool, tmp_path):
    tool = tool("reference_failures")
    world, asked = World(32, 2, photographs=False), []

    def make(reference, prompt):
        if len(asked) == 10:
            raise KeyboardInterrupt
        asked.append(reference)
        return reference

    def judge(video, case):
        return Verdict(candidate=0, motion="", scene="", right={"identity": video is case.reference})

    folder, settings = tmp_path / "plain", {"model": "a"}
    with pytest.raises(KeyboardInterrupt):
        tool.study(folder, world, make, judge, 1, settings)
    lines = folder / tool.LINES
    lines.write_text(lines.read_text() + '{"case": 0, "fau')  # the power went
    with pytest.raises(UsageError, match="results of another model"):
        tool.study(folder, world, make, judge, 1, {"model": "b"})
    done, asked[:] = len(asked), []
    tool.study(folder, world, lambda reference, prompt: reference, judge, 1, settings)
    assert done == 10 and len(tool.read(folder)) == 25
    rows = tool.table([folder]).splitlines()
    assert len(rows) == 2 + 25 and "1 of 1" in rows[2] and "0 of 1" in rows[3]
    assert rows[3].startswith("| jpeg, 1 |") and rows[0] == "| reference | plain |"
    with pytest.raises(InputError, match="holds no verdicts"):
        tool.table([tmp_path])
    assert tool.main(["--model", "x"]) == 2


def test_what_the_parts_of_contextanyone_cost(tool, tmp_path):
    """Against sums written out by hand, for a network of 4 layers of width 12."""
    tool = tool("overhead")
    base = tool.WanConfig(dim=12, ffn_dim=20, heads=2, layers=4, text_dim=8, freq_dim=8)
    made = tool.variants(base)
    numbers = {name: tool.parameters(variant) for name, variant in made.items()}
    plain = numbers[tool.PLAIN]
    assert numbers[tool.PHANTOM] == numbers[tool.LATENT] == plain
    # A layer norm, four projections of 12 x 12 with biases, two norms of queries and keys.
    assert numbers[tool.EMPHASIS] - plain == 4 * (2 * 12 + 4 * (12 * 12 + 12) + 2 * 12)
    # Keys, values and a norm in each layer; two norms and two layers of the embedding.
    embedding = 2 * 1280 + 1280 * 1280 + 1280 + 1280 * 12 + 12 + 2 * 12
    assert numbers[tool.CLIP] - plain == 4 * (2 * (12 * 12 + 12) + 12) + embedding
    assert numbers[tool.ALL] - plain == numbers[tool.EMPHASIS] + numbers[tool.CLIP] - 2 * plain
    cost = {}
    for name, variant in made.items():
        layout = tool.layout_of(variant, 32, 48, 5)
        assert layout.tokens("visual") == 12 + 6 * (name != tool.PLAIN)
        cost[name] = tool.operations(variant, layout)
    attention = {name: pair[1] for name, pair in cost.items()}
    assert attention[tool.PLAIN] == 4 * 12 * 4 * 12 * 12 and attention[tool.PHANTOM] == 4 * 12 * 4 * 18 * 18
    assert attention[tool.LATENT] == 4 * 12 * 4 * (12 * 18 + 6 * 6)
    assert attention[tool.EMPHASIS] - attention[tool.LATENT] == 4 * 12 * 4 * 12 * 6
    assert attention[tool.ADAPTER] == attention[tool.PHANTOM] * 6 // 4  # two blocks more
    # Emphasize-Attention projects every token four times.
    assert cost[tool.EMPHASIS][0] - cost[tool.LATENT][0] == 4 * 4 * 2 * 18 * 12 * 12
    assert cost[tool.PHANTOM][0] < cost[tool.ADAPTER][0] < 2 * cost[tool.PHANTOM][0]


def test_the_tables_of_what_they_cost(tool, tmp_path, monkeypatch, capsys):
    """Small passes compiled for this machine in a TPU's place; what is in the file is not compiled again."""
    tool = tool("overhead")
    base = tool.WanConfig(dim=12, ffn_dim=20, heads=2, layers=2, text_dim=8, freq_dim=8)
    few = {name: variant for name, variant in tool.variants(base).items() if name in (tool.PLAIN, tool.ADAPTER)}
    monkeypatch.setattr(tool, "variants", lambda base: few)
    monkeypatch.setattr(tool, "SIZES", {"480p": (32, 48), "720p": (32, 48), "1080p": (32, 48)})
    monkeypatch.setattr(tool, "devices_of", lambda target: jax.devices())
    cpu = SimpleNamespace(chip=SimpleNamespace(platform="cpu"))
    held = tool.memory(cpu, "480p, 17 frames", base)
    assert held[tool.PLAIN]["weights"] == round(2 * tool.parameters(few[tool.PLAIN]) / 1e9, 3)
    out, one, more = tmp_path / "cost.json", {"weights": 1.0, "temporary": 1.0}, {"weights": 1.5, "temporary": 1.5}
    known = {point: {tool.PLAIN: one, tool.ADAPTER: more} for point in tool.CHOSEN}
    known.pop("480p, 81 frames")
    asked, _ = [], capsys.readouterr()
    monkeypatch.setattr(tool, "memory", lambda target, point: asked.append(point) or known["480p, 17 frames"])
    passes = lambda flop: {point: {"TFLOP": flop, "ms a frame, v5p": 1, "ms a frame, h100": 2} for point in tool.CHOSEN}
    counted = {name: {"parameters": 7e6, "passes": passes(flop)} for name, flop in ((tool.PLAIN, 2), (tool.ADAPTER, 3))}
    out.write_text(json.dumps({"counted": counted, "GB": {"v5p:2x2x1": known}}))
    assert tool.main(["--out", str(out), "--memory", "v5p:2x2x1"]) == 0 and asked == ["480p, 81 frames"]
    assert json.loads(out.read_text())["GB"]["v5p:2x2x1"].keys() == set(tool.CHOSEN)
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| operations of a pass, and more than the plain backbone's | parameters | 480p, 17 fr")
    assert rows[1] == "| --- | --- | --- | --- | --- | --- |" and rows[5].startswith("| ms a frame of a pass, v5p")
    assert rows[3].startswith(f"| {tool.ADAPTER} | 7 M | 3 T (+50.0%) |")
    assert rows[-1] == f"| {tool.ADAPTER} | {' | '.join(['3.00 (+50.0%)'] * 4)} |"


def test_describers_on_known_changes(tool):
    """Of 10 motions and 17 places: the truth in one call; words in two stages miss more the lower gamma is."""
    tool = tool("describers")
    pairs = tool.known_pairs()
    assert len(pairs) == 10 * 10 + 17 * 17
    scores = {name: tool.score(find, pairs) for name, find in tool.by_truth().items()}
    assert scores.pop("truth, one call") == (90 + 272, 90 + 272, 0, 0, len(pairs))
    found = [score[0] for score in scores.values()]
    assert found == sorted(found) and found[0] < found[-1] == 90 + 272  # by rising gamma
    assert all(score[2] == 0 for score in scores.values())

    def refuses(pair):
        raise tool.InputError("nonsense")

    assert tool.score(refuses, pairs[:3]) == (0, 2, 0, 3, 3)
    rows = tool.table({"a | b": refuses}, pairs[:1])
    assert rows.splitlines()[-1].endswith("| 0 of 0 | 0 in 1 pairs | 1 |")

    class Blind:
        """Says the same of every clip."""

        def describe(self, shown, elements):
            assert shown.shape == (2, 32, 32, 3)
            return dict.fromkeys(elements, "something")

        def differences(self, reference, target, elements):
            return dict.fromkeys(elements, "something")

        def similarity(self, element, one, other):
            return float(one == other)

    ways = tool.by_model(Blind(), World(32, 2, photographs=False))
    assert [tool.score(find, pairs[:2])[:3] for find in ways.values()] == [(1, 1, 3), (0, 1, 0), (0, 1, 0)]
    assert tool.main(["--pairs", "2", "--describer", "nowhere"]) == 2


def test_leaks_into_the_first_frame(tool):
    """The real videos of other motions and places hold no reference; one that begins with a reference is found."""
    tool = tool("leaks")
    world = World(32, 3, photographs=False)
    groups = [tool.draw_group(world, seed, "heldout", most=2, clip=3) for seed in range(4)]

    def pasted(group, prompt):
        assert prompt.startswith("the subject")
        video = group.video.copy()
        video[0] = group.references[-1][0]
        return video

    real = tool.measured(lambda group, prompt: group.video, groups)
    leaked = tool.measured(pasted, groups)
    assert all(one.leaked for one in leaked) and not all(one.leaked for one in real)
    cells = tool.row("a", "concat-after", leaked).split("|")
    assert "4 of 4" in cells[3] and float(cells[4]) == 1.0 > float(cells[5])
    assert tool.main(["no-such-model", "--cases", "1"]) != 0


def test_pictures_of_methods_have_their_places(tool):
    """Each method's picture goes where docs/methods.md has room for it; the document is written with them."""
    tool = tool("method_pictures")
    text = "a\n<!-- picture: made-by-lct, a scene -->\n<!-- picture: made-by-anyid, a dance -->\n"
    assert tool.with_links(text, ["made-by-lct"]) == text.replace(
        "<!-- picture: made-by-lct, a scene -->", "![a scene](pictures/made-by-lct.png)"
    )
    document = tool.DOCUMENT.read_text()
    for name in (*tool.NAMES, "characonsist"):
        assert f"<!-- picture: made-by-{name}, " in document or f"](pictures/made-by-{name}.png)" in document
    world = World(32, 9, photographs=False)
    for name in tool.NAMES:
        references, prompt = tool.request(name, world)
        assert len(references) == {"lct": 0, "anyid": 2}.get(name, 1) and prompt
        assert all(picture.shape == (32, 32, 3) for picture in references)


def test_recipes_are_compiled_for_one_chip(tool, monkeypatch, capsys):
    """With the planner and the compiler's target stood in for: which sizes, and what is reported and refused."""
    tool = tool("compile_methods")
    seen = {}

    def plan(experiment, devices, chip, *, target, quick):
        made = training_plan.abstract_step(experiment)
        seen[experiment.name] = made.layout.tokens("visual")
        fits = experiment.method != "lct"
        return SimpleNamespace(total=3e9, bytes={"temporary": 1e9}, fits=fits, tokens=1, compile_seconds=0.0)

    small = jax.ShapeDtypeStruct((64,), jnp.float32)
    recipe = SimpleNamespace(
        abstract_pass=lambda: (lambda weights, x: weights["a"] + x, ({"a": small}, small)),
        transformer=SimpleNamespace(double_layers=1, single_layers=2),
        at_once=4,
    )
    load = tool.configs.load
    monkeypatch.setattr(tool, "plan", plan)
    monkeypatch.setattr(tool, "devices_of", lambda target: jax.devices())
    monkeypatch.setattr(tool.configs, "load", lambda path: recipe if "flux" in path else load(path))
    cpu = SimpleNamespace(chip=SimpleNamespace(platform="cpu", memory=1e9))
    monkeypatch.setattr(tool, "Target", SimpleNamespace(parse=lambda text: cpu))
    assert tool.main(["cpu"]) == 1  # the one that does not fit
    assert "lct_14b" in next(line for line in capsys.readouterr().out.splitlines() if "DOES NOT FIT" in line)
    # Six clips of 31 x 22 x 40; a picture and 21 x 30 x 52; nine shots of 21 x 30 x 30.
    assert seen == {"anyid-5b": 6 * 27_280, "contextanyone-1.3b": 34_320, "lct-14b": 170_100}
    assert tool.main(["cpu", "--only", tool.PICTURES]) == 0
    monkeypatch.setattr(tool, "MOST", 100)
    assert tool.main(["cpu", "--only", tool.PICTURES]) == 1
