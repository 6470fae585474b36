"""What a video takes of a mesh before weights are read: counted bytes, and what would fit where it does not."""

import dataclasses
import pathlib
from types import SimpleNamespace

import jax
import pytest

from kaleido_jax.bundle import parameters
from kaleido_jax.cli import generate
from kaleido_jax.cli.jobs import Job
from kaleido_jax.errors import UsageError
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.pipeline import capacity
from kaleido_jax.pipeline.request import Settings
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle

SETTINGS = Settings().resolved(TINY_CONFIG)


def asked(mesh, **changes):
    options = {"memory": 10**9, "rate": 1e9, "references": [1]} | changes
    return capacity.needs(TINY_CONFIG, SETTINGS, MeshConfig.parse(mesh), **options)


def test_weights_are_counted_as_they_lie():
    bundle, one, four = tiny_bundle(), asked("data=1"), asked("fsdp=4")
    sizes = {name: sum(leaf.nbytes for leaf in parameters(net).values()) for name, net in bundle.networks.items()}
    kinds = {"transformer": "transformer", "text": "text encoder", "vae": "VAE"}
    assert {name: one.bytes[kind] for name, kind in kinds.items()} == sizes
    # A few biases are not divided by four; the VAE is whole on the first device.
    assert four.bytes["transformer"] == pytest.approx(sizes["transformer"] / 4, rel=0.1)
    assert four.bytes["VAE"] == sizes["vae"]
    # The text encoder is gone before sampling.
    assert one.total == sizes["transformer"] + sizes["vae"] + max(sizes["text"], one.bytes["activations"])


def test_tokens_and_branches_are_divided():
    one, many = asked("data=1"), asked("data=2,sequence=4")
    assert many.bytes["activations"] == pytest.approx(one.bytes["activations"] / 8, rel=0.01)
    assert one.operations == many.operations and one.seconds == pytest.approx(one.operations / 1e9)
    # A clip of five frames has a reference's tokens twice.
    assert asked("data=1", references=[5]).bytes["activations"] > one.bytes["activations"]


@pytest.fixture
def devices(monkeypatch):
    """Eight devices of so many bytes."""

    def of(memory):
        monkeypatch.setattr(capacity, "memory_of", lambda devices: memory)
        monkeypatch.setattr(capacity, "rate_of", lambda devices: 1e9)
        return jax.devices()

    return of


def test_what_cannot_fit_says_what_would(devices):
    """Weights on a device alone, then a mesh that divides them; then more devices; then a smaller video."""
    whole = asked("data=1")
    small = whole.total - whole.bytes["transformer"] // 2
    with pytest.raises(UsageError, match=r"This cannot fit: .*; --mesh (\S+) would") as error:
        capacity.check(TINY_CONFIG, SETTINGS, MeshConfig(data=2), devices(small), [1])
    mesh = MeshConfig.parse(str(error.value).split("--mesh ")[1].split(" ")[0])
    assert capacity.check(TINY_CONFIG, SETTINGS, mesh, devices(small), [1]).fits
    enough = asked("fsdp=8,tensor=2").total
    with pytest.raises(UsageError, match=r"--mesh \S+ would, on 16 devices"):
        capacity.check(TINY_CONFIG, SETTINGS, MeshConfig(fsdp=8), devices(enough), [1])
    with pytest.raises(UsageError, match="no mesh of so many devices would"):
        capacity.check(TINY_CONFIG, SETTINGS, MeshConfig(fsdp=8), devices(1000), [1])


def test_the_14b_model_takes_what_it_should():
    """57 GB of float32 weights, on eight devices that divide them; and its time on eight v5p chips, by their rate."""
    wan = dataclasses.replace(WanConfig.t2v_14b(), dtype="bfloat16")
    config = dataclasses.replace(TINY_CONFIG, transformer=wan)
    settings = dataclasses.replace(SETTINGS, steps=50)
    found = capacity.needs(config, settings, MeshConfig(fsdp=8), memory=2**36, rate=8 * 459e12 * 0.45, references=[])
    assert found.bytes["transformer"] == pytest.approx(14.29e9 * 4 / 8, rel=0.01)


def test_the_command_says_it_before_the_model_is_loaded(devices, monkeypatch, capsys):
    job = Job(prompt="a", references=(), settings=SETTINGS, out=pathlib.Path("o.mp4"))
    monkeypatch.setattr(generate, "_references", lambda job, config: [SimpleNamespace(pixels=[0])])
    devices(10**9)
    generate._check_needs(job, TINY_CONFIG, MeshConfig(data=2, sequence=4))
    told = capsys.readouterr().err
    assert "a device of the mesh data=2,sequence=4 holds" in told and "sampling takes about" in told
    devices(1000)
    with pytest.raises(UsageError, match="This cannot fit"):
        generate._check_needs(job, TINY_CONFIG, MeshConfig(data=2, sequence=4))
