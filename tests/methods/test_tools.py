"""The programs that study the methods, on problems so small that they take seconds."""

import importlib
import pathlib

import pytest

from kaleido_jax.data.world import World
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.evaluation.fidelity import Verdict

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
