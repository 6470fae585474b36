"""Plans: of a tiny step on the devices that are here, of the recipes' sizes, and of published runs."""

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
from kaleido_jax.parallel import MeshConfig, calibration
from kaleido_jax.parallel.chips import Chip, Target
from kaleido_jax.parallel.flops import forward_operations
from kaleido_jax.parallel.target import devices_of
from kaleido_jax.training.experiment import DataConfig, Experiment, TrainConfig
from kaleido_jax.training.plan import _advice, abstract_step, forward_flops, plan

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
CPU = Chip(peak=1e11, memory=1e9, bandwidth=1e10, link=1e9, network=1e9, reached=0.5, platform="cpu")
EXPERIMENT = Experiment(
    name="tiny",
    transformer=WanConfig(dim=32, ffn_dim=64, heads=4, layers=3, text_dim=16, freq_dim=16),
    text=UMT5Config.xxl(),
    data=DataConfig(size=64, frames=5, references=2, text_tokens=8, text_embeddings=True),
    train=TrainConfig(batch=4, keep="nothing"),
    mesh=MeshConfig(fsdp=4, sequence=-1),
)


@pytest.fixture(scope="module")
def tiny():
    return plan(EXPERIMENT, jax.devices(), CPU, target="cpu:8")


def test_memory_is_what_lies_on_a_device(tiny):
    numbers = sum(leaf.size for leaf in jax.tree.leaves(abstract_step(EXPERIMENT).state.parameters))
    assert tiny.devices == 8 and tiny.mesh == "fsdp=4,sequence=2" and tiny.fits
    # Four bytes a number, over four devices; a few biases are not divided by four.
    assert tiny.bytes["weights"] == pytest.approx(4 * numbers / 4, rel=0.01)
    assert tiny.bytes["moments"] == pytest.approx(2 * tiny.bytes["weights"], abs=8)
    assert tiny.bytes["temporary"] > 0


def test_traffic_is_that_of_the_mesh(tiny):
    """Weights are gathered along fsdp once a pass; tokens are exchanged for heads along sequence, in each layer."""
    assert tiny.traffic["fsdp"]["all-gather"] > 0.5 * 4 * tiny.bytes["weights"]
    layers, rows, share, width = 3, 1, tiny.tokens // 2, 32
    one = layers * rows * share * width * 4 / 2  # what a device receives of q, k, v or the result
    assert tiny.traffic["sequence"]["all-to-all"] >= 11 * one  # q, k, v and out; with nothing kept, q, k, v again; back


def test_time_follows_from_the_rates(tiny):
    peak = 8 * CPU.peak
    products = tiny.computed_flops - tiny.attention_flops
    bound = products / (peak * CPU.product) + tiny.attention_flops / (peak * CPU.attention)
    assert tiny.seconds["bound"] == pytest.approx(bound)
    assert tiny.seconds["estimate"] >= tiny.seconds["bound"]
    assert tiny.mfu["estimate"] == pytest.approx(tiny.model_flops / (peak * tiny.seconds["estimate"]))
    assert tiny.seconds["traffic along fsdp"] == pytest.approx(sum(tiny.traffic["fsdp"].values()) / CPU.link)


def test_what_does_not_fit_says_what_to_change(tiny):
    mesh = MeshConfig(fsdp=4)
    experiment = dataclasses.replace(EXPERIMENT, train=TrainConfig(batch=8, keep="products"), mesh=mesh)
    result = dataclasses.replace(tiny, memory=10_000)
    result = dataclasses.replace(result, advice=_advice(result, experiment, mesh))
    assert not result.fits
    first_words = [advice.split(" ")[0] for advice in result.advice[1:]]
    assert first_words == ["train.keep=nothing", "train.keep=offloaded", "train.accumulate=2"]
    assert "raise mesh.fsdp" in result.advice[0]
    lines = command.report(result)
    assert any("DOES NOT FIT" in line for line in lines) and lines[-1].startswith("to make it fit: train.accumulate=2")
    json.dumps(result.to_json())


RECIPES = {
    # Operations of a forward pass of one sample by the closed formula of test_flops: 2 x parameters x tokens for the
    # maps that tokens go through, and 4 layers tokens^2 width for self-attention.
    "kaleido_14b_pretrain": 37440,
    "kaleido_1_3b_sft": 37440,
    "kaleido_5b_sft": (31 + 3) * 22 * 40,
}


@pytest.mark.parametrize("name", RECIPES)
def test_operations_of_the_recipes(name):
    experiment = configs.load(FOLDER / f"{name}.py")
    assert experiment.train.batch == 256
    rate, steps = (5e-6, 5_000) if "sft" in name else (1e-5, 10_000)
    assert (experiment.optimizer.learning_rate, experiment.train.steps) == (rate, steps)
    assert experiment.start_from.startswith("runs/" if "sft" in name else "Wan2.")
    made, wan = abstract_step(experiment), experiment.transformer
    tokens = made.layout.tokens("visual")
    assert tokens == RECIPES[name]
    products, attention = (count / 256 for count in forward_flops(made))
    per_token = 2 * wan.layers * (6 * wan.dim**2 + 2 * wan.dim * wan.ffn_dim) + 4 * wan.layers * 512 * wan.dim
    assert attention == pytest.approx(4 * wan.layers * tokens**2 * wan.dim, rel=1e-6)
    assert products - attention == pytest.approx(per_token * tokens, rel=0.02)  # text and ends are 1.2 % of it


@pytest.mark.parametrize(
    ("name", "tokens", "texts"),
    [
        ("anyid_5b", 6 * 27280, 1),  # the video and five clips as long, of 31 x 22 x 40 tokens each
        ("contextanyone_1_3b", 22 * 30 * 52, 1),
        ("lct_14b", 9 * 21 * 30 * 30, 10),
    ],
)
def test_recipes_of_other_methods_are_laid_out(name, tokens, texts):
    experiment = configs.load(FOLDER / f"{name}.py")
    made = abstract_step(experiment)
    assert experiment.start_from.startswith("Wan2.") and made.layout.tokens("visual") == tokens
    assert len(made.layout.select("text")) == texts == made.batch.text_lengths.shape[1]


@pytest.mark.parametrize("run", calibration.RUNS, ids=lambda run: run.chip)
def test_estimates_of_published_runs_within_a_quarter(run):
    assert run.estimate == pytest.approx(run.seconds, rel=0.25)
    # Three forward passes of 81 frames at 720p are 19.6 PFLOP, as its trainer counts them.
    assert 3 * forward_operations(WanConfig.t2v_14b(), run.tokens, 512) == pytest.approx(19.6e15, rel=0.02)


def test_the_committed_table_of_published_runs_is_the_printed_one():
    committed = (FOLDER.parent / "docs" / "bench" / "plans.md").read_text()
    assert "\n".join(calibration.table()) in committed


def test_command_prints_and_writes_the_plan(tiny, tmp_path, monkeypatch, capsys):
    asked = {}

    def planned(experiment, devices, chip, **options):
        asked.update(options, mesh=experiment.mesh, devices=devices)
        return tiny

    monkeypatch.setattr("kaleido_jax.parallel.target.devices_of", lambda target: [str(target)])
    monkeypatch.setattr("kaleido_jax.training.plan.plan", planned)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    words = [
        str(FOLDER / "kaleido_14b_sft.py"),
        "--target",
        "v5p:2x2x1",
        "--json",
        str(tmp_path / "plan.json"),
        "--quick",
    ]
    assert command.run(parser_of("plan").parse_args([*words, "mesh.fsdp=2"])) == 0
    wanted = {"target": "v5p:2x2x1", "quick": True, "mesh": MeshConfig(fsdp=2, sequence=4), "devices": ["v5p:2x2x1"]}
    assert asked == wanted
    printed = capsys.readouterr().out
    assert "tiny on 8 devices of cpu:8, mesh fsdp=4,sequence=2" in printed and "MFU" in printed
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(json.dumps(tiny.to_json()))
    small = dataclasses.replace(tiny, memory=1)
    monkeypatch.setattr("kaleido_jax.training.plan.plan", lambda *_, **__: small)
    assert command.run(parser_of("plan").parse_args(words)) == 65


def test_targets():
    assert Target.parse("v5p:4x4x4") == Target("v5p", (4, 4, 4)) and str(Target("h100", (8, 8))) == "h100:8x8"
    with pytest.raises(UsageError, match="no chip 'v5'; did you mean"):
        Target.parse("v5:2x2")
    with pytest.raises(UsageError, match="has no shape"):
        Target.parse("v5p:4xx4")


def test_a_compiler_that_is_not_installed_says_which_extra_brings_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'kaleido_jax\[cuda\]'"):
        devices_of(Target("h100", (8, 8)))


def test_bad_experiments_are_errors():
    with pytest.raises(UsageError, match=r"train.batch is 4; .* must divide it"):
        plan(dataclasses.replace(EXPERIMENT, mesh=MeshConfig(data=8)), jax.devices(), CPU, target="cpu:8")
