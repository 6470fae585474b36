"""What a run starts from: every process of a mesh reads its own part of it."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from kaleido_jax import config as configs
from kaleido_jax.bundle import abstract, load_module, parameters, save_bundle
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.models.wan import WanConfig, WanTransformer
from kaleido_jax.parallel import MeshConfig, partition_spec
from kaleido_jax.porting import export
from kaleido_jax.porting.parameters import Checkpoint
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.frozen import first_weights
from kaleido_jax.training.low_rank import LoraConfig
from kaleido_jax.training.miniature import prepare

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = CONFIGS.parent / "kaleido_jax" / "weights" / "miniature"
EXPERIMENT = Experiment(name="tiny", transformer=TINY_CONFIG.transformer, text=TINY_CONFIG.text)


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle()


@pytest.mark.parametrize("kind", ["float32", "float16", "int8", "orbax"])
def test_a_start_is_read_by_shards(bundle, tmp_path, monkeypatch, kind):
    """A model folder, and one transformer as orbax; of whole numbers, which small models hold, all is read."""
    experiment, names, read = EXPERIMENT, ("transformer", "text"), []
    if kind == "orbax":
        export(parameters(bundle.transformer), TINY_CONFIG.transformer, tmp_path / "start", to="orbax")
        experiment = dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, text_embeddings=True), vae="x"
        )
        names = ("transformer",)
    else:
        save_bundle(tmp_path / "start", bundle, dtype=kind)
    experiment = dataclasses.replace(experiment, start_from=str(tmp_path / "start"))
    original = Checkpoint.close
    monkeypatch.setattr(Checkpoint, "close", lambda self: (read.append(self.weights.bytes_read), original(self))[1])
    mesh = MeshConfig(fsdp=8).make()
    found = first_weights(experiment, mesh)
    assert found.keys() == set(names)
    width = {"float32": 4, "float16": 2, "int8": None, "orbax": None}[kind]
    if width:
        assert len(read) == len(names)  # and of those, each byte once, but for the patches and the small
    for part, total in zip(names, read):
        expected = sum(width * x.size for x in parameters(getattr(bundle, part)).values())
        assert expected <= total < 1.5 * expected
    for part in names:
        for name, value in parameters(getattr(bundle, part)).items():
            ours = found[part][name]
            if kind != "int8":
                assert ours.sharding == NamedSharding(mesh, partition_spec(name, ours.shape, mesh))
            assert ours.dtype == jnp.float32
            tolerance = {"float32": 0, "orbax": 0, "float16": 1e-3, "int8": 2e-2}[kind] * np.abs(value).max()
            np.testing.assert_allclose(ours, value, rtol=0, atol=tolerance)


def test_a_start_that_does_not_fit(bundle, tmp_path):
    save_bundle(tmp_path / "start", bundle)
    start = dataclasses.replace(EXPERIMENT, start_from=str(tmp_path / "start"))
    wider = dataclasses.replace(start.transformer, layers=3)
    mesh = MeshConfig(fsdp=8).make()
    with pytest.raises(UsageError, match=r"start_from .* transformer .*layers=2.*layers=3"):
        first_weights(dataclasses.replace(start, transformer=wider), mesh)
    (tmp_path / "start" / "transformer.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"transformer\.safetensors"):
        first_weights(start, mesh)
    (tmp_path / "start" / "transformer.safetensors").unlink()
    with pytest.raises(InputError, match=r"transformer\.safetensors cannot be read"):
        first_weights(start, mesh)


@pytest.mark.parametrize("kind", ["model", "orbax"])
def test_a_start_without_contextanyones_branches(bundle, tmp_path, kind):
    """What is new is drawn on the mesh and adds nothing; all else is as it was read."""
    start, mesh = tmp_path / "start", MeshConfig(fsdp=8).make()
    wanted = dataclasses.replace(TINY_CONFIG.transformer, emphasis=True, image_dim=16)
    experiment = dataclasses.replace(EXPERIMENT, start_from=str(start), transformer=wanted)
    if kind == "model":
        save_bundle(start, bundle)
    else:
        export(parameters(bundle.transformer), TINY_CONFIG.transformer, start, to="orbax")
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, text_embeddings=True))
    found, old = first_weights(experiment, mesh)["transformer"], parameters(bundle.transformer)
    assert list(found) == list(abstract(lambda: WanTransformer(wanted, nnx.Rngs(0)))[1])
    for name, value in found.items():
        assert value.sharding == NamedSharding(mesh, partition_spec(name, value.shape, mesh))
        if name in old:
            np.testing.assert_array_equal(value, old[name])
    zero = lambda name: not np.asarray(found[f"blocks.{name}.kernel"]).any()
    assert zero("emphasis_attention.out") and zero("cross_attention.image_value")
    assert not zero("emphasis_attention.value") and not zero("cross_attention.image_key")
    with pytest.raises(UsageError, match=r"lora.rank is 2, but .*start lacks branches .*emphasis, image_dim.*rank=0"):
        first_weights(dataclasses.replace(experiment, lora=LoraConfig(rank=2)), mesh)
    # Without Emphasize-Attention the image branch would not start at nothing.
    alone = dataclasses.replace(experiment, transformer=dataclasses.replace(wanted, emphasis=False))
    with pytest.raises(UsageError, match="start, whose transformer has image_dim=None; the run's has image_dim=16"):
        first_weights(alone, mesh)


@pytest.fixture(scope="module")
def shipped():
    path = SHIPPED / "transformer.safetensors"
    return parameters(load_module(path, lambda: WanTransformer(WanConfig.miniature(), nnx.Rngs(0))))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*miniature*.py")))
def test_every_method_can_start_from_the_shipped_weights(name, shipped, tmp_path):
    words = (f"start_from={SHIPPED}", *(["preference.pairs="] if name.endswith("dpo") else []))
    experiment = configs.override(configs.load(CONFIGS / f"{name}.py"), words)
    if name == "miniature_smoke":
        with pytest.raises(UsageError, match=r"whose transformer has dim=160, .*data_std=.*; the run's has dim=32, "):
            prepare(experiment, tmp_path)
        return
    run = prepare(experiment, tmp_path)
    weights = (run.programs.frozen or run.initial.parameters)["transformer"]
    for leaf, value in shipped.items():
        np.testing.assert_array_equal(weights[leaf], value)
    assert (len(weights) > len(shipped)) == (name == "contextanyone_miniature")
