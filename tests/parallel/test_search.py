"""The search for a mesh: formulas against committed compiled plans, and a whole search on the devices that are here."""

import dataclasses
import json
import pathlib

import jax
import pytest

from kaleido_jax import config as configs
from kaleido_jax.cli import plan as command
from kaleido_jax.cli.main import parser_of
from kaleido_jax.errors import UsageError
from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.parallel.chips import CHIPS, Chip
from kaleido_jax.training.experiment import DataConfig, Experiment, TrainConfig
from kaleido_jax.training.search import Sizes, candidates, guess, search, sizes_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
CPU = Chip(peak=1e11, memory=1e9, bandwidth=1e10, link=1e9, network=1e9, reached=0.5, platform="cpu")
EXPERIMENT = Experiment(
    name="tiny",
    transformer=WanConfig(dim=32, ffn_dim=64, heads=4, layers=3, text_dim=16, freq_dim=16),
    text=UMT5Config.xxl(),
    data=DataConfig(size=64, frames=5, references=2, text_tokens=8, text_embeddings=True),
    train=TrainConfig(batch=4, keep="nothing"),
)


@pytest.mark.parametrize(("kind", "name"), [("v5p", "plan_kaleido_14b_v5p"), ("h100", "plan_kaleido_14b_h100")])
def test_formulas_against_compiled_plans(kind, name):
    """Within a third in memory and in time, which is enough to choose what is compiled."""
    compiled = json.loads((ROOT / "docs" / "bench" / f"{name}.json").read_text())
    experiment = configs.load(ROOT / "configs" / "kaleido_14b_pretrain.py")
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(fsdp=16, sequence=4))
    forward = compiled["model_flops"] // 3
    attention = int(compiled["attention_flops"] / 3.5)
    sizes = Sizes(14_290_000_000, compiled["tokens"], forward - attention, attention)
    found = guess(experiment, sizes, CHIPS[kind])
    assert found.memory == pytest.approx(sum(compiled["bytes"].values()), rel=0.34)
    assert found.seconds == pytest.approx(compiled["seconds"]["estimate"], rel=0.1)


def test_candidates_divide_everything():
    found = list(candidates(EXPERIMENT, 8))
    assert len({(c.mesh, c.train.accumulate, c.train.keep) for c in found}) == len(found) > 50
    for candidate in found:
        mesh, train = candidate.mesh, candidate.train
        assert mesh.size == 8 and 4 % (mesh.data * mesh.fsdp * train.accumulate) == 0 and 4 % mesh.tensor == 0
    assert any(c.mesh == MeshConfig(fsdp=4, sequence=2) and c.train.keep == "products" for c in found)


def test_more_is_kept_takes_memory_and_saves_time():
    sizes = Sizes(10**10, 40_000, 10**18, 10**18)
    chip = dataclasses.replace(CHIPS["v5p"], link=1e15)
    recipe = configs.load(ROOT / "configs" / "kaleido_14b_pretrain.py")
    by_keep = {}
    for keep in ("nothing", "attention", "products", "everything"):
        train = dataclasses.replace(recipe.train, keep=keep)
        made = dataclasses.replace(recipe, mesh=MeshConfig(fsdp=16, sequence=4), train=train)
        by_keep[keep] = guess(made, sizes, chip)
    memory = [found.memory for found in by_keep.values()]
    assert memory == sorted(memory)
    assert by_keep["products"].seconds < by_keep["attention"].seconds < by_keep["nothing"].seconds


def test_a_search_compiles_the_best_and_ranks_what_it_compiled(tmp_path, monkeypatch, capsys):
    lines = []
    found = search(EXPERIMENT, jax.devices(), CPU, target="cpu:8", compiled=2, report=lines.append)
    assert len(found) == 2 and len(lines) == 3 and "candidates" in lines[0]
    estimates = [plan.seconds["estimate"] for _, plan in found]
    assert estimates == sorted(estimates) and all(plan.fits for _, plan in found)
    assert len({plan.mesh for _, plan in found}) == 2
    best = found[0][0]
    assert configs.override(EXPERIMENT, best.words.split()) == best.experiment
    assert sizes_of(EXPERIMENT).tokens == found[0][1].tokens

    monkeypatch.setattr("kaleido_jax.parallel.target.devices_of", lambda target: [])
    monkeypatch.setattr("kaleido_jax.training.search.search", lambda *_, **__: found)
    recipe = str(ROOT / "configs" / "kaleido_14b_sft.py")
    words = [recipe, "--target", "v5p:2x2x1", "--search", "2", "--json", str(tmp_path / "plan.json")]
    assert command.run(parser_of("plan").parse_args(words)) == 0
    assert f"1. {best.words}" in capsys.readouterr().out
    document = json.loads((tmp_path / "plan.json").read_text())
    assert [entry["overrides"] for entry in document["ranking"]] == [pair[0].words for pair in found]


def test_what_no_mesh_divides():
    odd = dataclasses.replace(EXPERIMENT, train=TrainConfig(batch=1))
    odd = dataclasses.replace(odd, transformer=dataclasses.replace(odd.transformer, dim=30, heads=3))
    with pytest.raises(UsageError, match="No mesh of 49 devices divides a batch of 1 and 3 heads"):
        search(odd, [None] * 49, CPU, target="cpu:49")
