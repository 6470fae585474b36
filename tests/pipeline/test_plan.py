"""The plan of a step of sampling, compiled for the devices that are here."""

import dataclasses

import jax
import pytest

from kaleido_jax import config as configs
from kaleido_jax.cli import plan as command
from kaleido_jax.cli.main import parser_of
from kaleido_jax.errors import UsageError
from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.parallel.chips import Chip
from kaleido_jax.pipeline.plan import _advice, sampling_plan
from kaleido_jax.training.experiment import DataConfig, Experiment, SamplingConfig
from kaleido_jax.training.plan import abstract_step, forward_flops

CPU = Chip(peak=1e11, memory=1e9, bandwidth=1e10, link=1e9, network=1e9, reached=0.5, platform="cpu")
EXPERIMENT = Experiment(
    name="tiny",
    transformer=WanConfig(dim=32, ffn_dim=64, heads=4, layers=2, text_dim=16, freq_dim=16),
    text=UMT5Config.xxl(),
    data=DataConfig(size=64, frames=5, references=2, text_tokens=8, text_embeddings=True),
    mesh=MeshConfig(data=2, sequence=-1),
    sampling=SamplingConfig(steps=20),
)


@pytest.fixture(scope="module")
def tiny():
    return sampling_plan(EXPERIMENT, jax.devices(), CPU, target="cpu:8")


def test_a_step_takes_a_forward_pass_of_each_branch(tiny):
    assert tiny.mesh == "data=2,sequence=4" and tiny.devices == 8 and tiny.fits and tiny.batch == 2
    two = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, batch=2))
    assert tiny.model_flops == pytest.approx(forward_flops(abstract_step(two))[0], rel=0.01)
    assert tiny.seconds["all 20 steps"] == pytest.approx(20 * tiny.seconds["estimate"])
    assert tiny.mfu["estimate"] == pytest.approx(tiny.model_flops / (8 * CPU.peak * tiny.seconds["estimate"]))


def test_memory_and_traffic_are_those_of_the_mesh(tiny):
    """Weights whole on every device; of a branch, tokens and heads are exchanged among four devices."""
    step = abstract_step(EXPERIMENT)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(step.state.parameters["transformer"]))
    assert tiny.bytes["weights"] == 4 * numbers
    assert tiny.traffic["sequence"]["all-to-all"] > 0 and "fsdp" not in tiny.traffic


def test_kernels_lie_in_the_dtype_that_they_are_multiplied_in(tiny, monkeypatch):
    monkeypatch.setattr("kaleido_jax.pipeline.plan.compile_for", lambda *_: ("ENTRY %main () -> f32[] {\n}\n", 7))
    half = dataclasses.replace(EXPERIMENT, transformer=dataclasses.replace(EXPERIMENT.transformer, dtype="bfloat16"))
    result = sampling_plan(half, jax.devices(), CPU, target="cpu:8")
    assert result.bytes["weights"] < 0.7 * tiny.bytes["weights"] and result.bytes["temporary"] == 7


def test_what_does_not_fit_says_what_to_change(tiny):
    small = dataclasses.replace(tiny, memory=1000)
    advice = _advice(small, EXPERIMENT.mesh.filled(8).make())
    assert "mesh.fsdp or mesh.tensor" in advice[0] and advice[1].startswith("mesh.sequence=8")
    assert _advice(tiny, EXPERIMENT.mesh.filled(8).make()) == []


def test_what_cannot_be_planned():
    with pytest.raises(UsageError, match=r"mesh.tensor is 8; it must divide the 4 heads"):
        sampling_plan(dataclasses.replace(EXPERIMENT, mesh=MeshConfig(tensor=8)), jax.devices(), CPU, target="cpu:8")
    scenes = dataclasses.replace(EXPERIMENT, method="lct")
    with pytest.raises(UsageError, match="method is lct"):
        sampling_plan(scenes, jax.devices(), CPU, target="cpu:8")


def test_the_command_plans_sampling(tiny, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr("kaleido_jax.parallel.target.devices_of", lambda target: [])
    monkeypatch.setattr("kaleido_jax.pipeline.plan.sampling_plan", lambda *_, **__: tiny)
    monkeypatch.setattr(configs, "load", lambda path: EXPERIMENT)
    words = ["configs/kaleido_14b_sft.py", "--target", "v5p:2x2x2", "--sample"]
    assert command.run(parser_of("plan").parse_args(words)) == 0
    assert "all 20 steps" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--search is for training steps"):
        command.run(parser_of("plan").parse_args([*words, "--search", "2"]))
