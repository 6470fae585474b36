"""What a run starts from: every process of a mesh reads its own part of it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from kaleido_jax.bundle import parameters, save_bundle
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.parallel import MeshConfig, partition_spec
from kaleido_jax.porting import export
from kaleido_jax.porting.parameters import Checkpoint
from kaleido_jax.testing.tiny import TINY_CONFIG, tiny_bundle
from kaleido_jax.training.experiment import Experiment
from kaleido_jax.training.frozen import first_weights

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
