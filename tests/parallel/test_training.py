"""The training step on meshes of eight devices against the same step on one.

Tolerances are relative, for float32 sums made in another order: 1e-5 for gradients (L2 of a leaf) and the first loss,
1e-6 for the losses of a run that goes on with its state on other meshes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from kaleido_jax import config as configs
from kaleido_jax.bundle import abstract
from kaleido_jax.errors import UsageError
from kaleido_jax.methods import registry
from kaleido_jax.models.text import UMT5Config
from kaleido_jax.models.wan import WanConfig
from kaleido_jax.parallel import MeshConfig, place, shardings
from kaleido_jax.parallel.partition import bytes_per_device
from kaleido_jax.testing.tiny import tiny_bundle
from kaleido_jax.training import run as training_run
from kaleido_jax.training import step as step_functions
from kaleido_jax.training.checkpoint import Checkpoints
from kaleido_jax.training.experiment import DataConfig, Experiment, TrainConfig
from kaleido_jax.training.optimizer import OptimizerConfig
from kaleido_jax.training.programs import Programs
from kaleido_jax.training.state import Batch, create
from kaleido_jax.training.step import Networks


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """What is compared does not depend on the compiler's effort, and compiling is nearly all of these tests' time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


BATCH = 8
EXPERIMENT = Experiment(
    name="test",
    transformer=WanConfig(
        dim=32, ffn_dim=48, heads=4, layers=2, in_channels=4, out_channels=4, text_dim=16, freq_dim=16
    ),
    text=UMT5Config(vocab_size=64, dim=16, heads=4, head_dim=8, ffn_dim=32, layers=1),
    data=DataConfig(references=2, text_tokens=8),
    # Nothing is clipped, so that the first moments after a step are a tenth of the gradient.
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, clip_norm=1e9),
    train=TrainConfig(batch=BATCH, keep="attention"),
)
METHOD = registry.create("kaleido")
NETWORKS = functools.partial(training_run._networks, EXPERIMENT)


@functools.cache
def programs(mesh):
    graphs = {name: abstract(lambda name=name: NETWORKS()[name])[0] for name in ("transformer", "text")}
    return Programs(dataclasses.replace(EXPERIMENT, mesh=mesh), METHOD, Networks(**graphs), tiny_bundle().vae)


@functools.cache
def initial():
    """Random numbers in every parameter: the head starts at zero, which would hide what comes before it."""
    random = np.random.default_rng(0)
    weights = {}
    for name in ("transformer", "text"):
        shapes = abstract(lambda name=name: NETWORKS()[name])[1]
        weights[name] = {k: jnp.asarray(0.2 * random.standard_normal(x.shape), jnp.float32) for k, x in shapes.items()}
    return create(EXPERIMENT.optimizer, weights)


def batch(seed=0):
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    return Batch(
        video=normal(BATCH, 2, 6, 6, 4),  # 18 tokens, and 9 for each reference: 4 and 8 do not divide them
        references=normal(BATCH, 2, 6, 6, 4),
        reference_counts=np.array([0, 1, 2, 2] * 2, np.int32),
        subject_share=np.abs(normal(BATCH, 2, 6, 6)),
        subjects=np.array([[0, 1]] * BATCH, np.int32),
        text=random.integers(0, 64, (BATCH, 8)).astype(np.int32),
        text_lengths=np.array([8, 3, 1, 5] * 2, np.int32),
        indices=np.arange(BATCH, dtype=np.int32),
    )


def state_on(mesh):
    """A copy of the initial state, because a step donates it."""
    placed = jax.tree.map(jnp.copy, initial())
    made = programs(mesh).mesh
    return placed if made is None else place(placed, shardings(placed, made))


def step(mesh, state, number):
    state, values = programs(mesh).train(state, batch(number), jnp.zeros((), jnp.float32))
    return state, float(values["loss"])


@functools.cache
def undisturbed():
    """Losses of six steps on one device, and the gradient of the first."""
    state, losses, gradient = state_on(MeshConfig()), [], None
    for number in range(6):
        state, loss = step(MeshConfig(), state, number)
        losses.append(loss)
        gradient = gradient or jax.device_get(state.moments[1].mu)
    return losses, gradient


def assert_same_gradient(found, wanted):
    def compare(path, found, wanted):
        error = np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-8)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error:.2e}"

    jax.tree_util.tree_map_with_path(compare, jax.device_get(found), wanted)


MESHES = ["data=8", "fsdp=8", "data=2,fsdp=2,sequence=2", "sequence=4,ulysses=1", "fsdp=2,sequence=2,tensor=2"]


@pytest.mark.parametrize("text", MESHES)
def test_loss_and_gradients_are_those_of_one_device_and_the_state_is_written_in_place(text):
    mesh = MeshConfig.parse(text)
    before = state_on(mesh)
    places = jax.tree.map(lambda leaf: leaf.sharding, before)
    after, loss = step(mesh, before, 0)
    losses, gradient = undisturbed()
    assert loss == pytest.approx(losses[0], rel=1e-5)

    assert_same_gradient(after.moments[1].mu, gradient)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert jax.tree.map(lambda leaf: leaf.sharding, after) == places
    (compiled,) = (program for key, program in programs(mesh)._compiled.items() if key[0] == "train")
    assert compiled.memory_analysis().alias_size_in_bytes == bytes_per_device(after, places)


def test_held_out_losses_are_those_of_one_device():
    mesh = MeshConfig.parse("fsdp=2,sequence=2,tensor=2")
    few = jax.tree.map(lambda x: x[:1], batch())  # one sample, which nothing divides
    found = programs(mesh).evaluate(state_on(mesh).parameters, few)
    np.testing.assert_allclose(found, programs(MeshConfig()).evaluate(initial().parameters, few), rtol=1e-5)


def test_a_batch_in_parts_that_were_encoded_before():
    """Two parts, and the text encoder's output in place of ids: the transformer's gradient is the same."""
    mesh = MeshConfig(fsdp=4)
    train = dataclasses.replace(EXPERIMENT.train, accumulate=2)
    experiment = dataclasses.replace(EXPERIMENT, mesh=mesh, train=train)
    alone = programs(MeshConfig())
    made = Programs(experiment, METHOD, Networks(alone._networks.transformer), tiny_bundle().vae)
    ids, whole = batch(), initial()
    encoder = step_functions.encoder_of(alone._networks, whole.parameters)
    text = np.asarray(jax.jit(encoder)(ids.text, ids.text_lengths))
    state = create(EXPERIMENT.optimizer, {"transformer": whole.parameters["transformer"]})
    state = place(state, shardings(state, made.mesh))
    state, values = made.train(state, dataclasses.replace(ids, text=text), jnp.zeros((), jnp.float32))
    losses, gradient = undisturbed()
    assert float(values["loss"]) == pytest.approx(losses[0], rel=1e-5)
    assert_same_gradient(state.moments[1].mu["transformer"], gradient["transformer"])


def test_a_run_goes_on_with_its_state_on_other_meshes(tmp_path):
    checkpoints, losses = Checkpoints(tmp_path, keep=1), []
    for first, text in ((0, "fsdp=8"), (2, "data=2,fsdp=2,sequence=2"), (4, "data=1")):
        mesh = MeshConfig.parse(text)
        state = state_on(mesh)
        if first:
            _, state, _ = checkpoints.restore(state)
        for number in (first, first + 1):
            state, loss = step(mesh, state, number)
            losses.append(loss)
        checkpoints.save(first + 2, state, {})
    np.testing.assert_allclose(losses, undisturbed()[0], rtol=1e-6)


def test_every_device_makes_its_own_part_of_the_first_state():
    """Equal to the state of one device up to rounding: compiled as one program, initialisers round otherwise."""
    mesh = MeshConfig(fsdp=8).make()
    state, _ = training_run._initial(EXPERIMENT, NETWORKS, mesh)
    alone, _ = training_run._initial(EXPERIMENT, NETWORKS, None)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == shardings(alone, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state, alone)
    kernel = state.parameters["transformer"]["blocks.mlp.first.kernel"]
    assert isinstance(kernel.sharding, NamedSharding)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 32, 6)}


def test_command_line_sets_the_mesh():
    changed = configs.override(EXPERIMENT, ["mesh.fsdp=4", "mesh.ulysses=1", "train.keep=nothing"])
    assert changed.mesh == MeshConfig(fsdp=4, ulysses=1)
    with pytest.raises(UsageError, match=r"mesh.fsdp=0 is refused: .*expected a positive number"):
        configs.override(EXPERIMENT, ["mesh.fsdp=0"])


def test_what_the_mesh_does_not_divide_is_an_error():
    odd = dataclasses.replace(EXPERIMENT, train=TrainConfig(batch=6))
    make = lambda experiment: Programs(experiment, METHOD, programs(MeshConfig())._networks, tiny_bundle().vae)
    with pytest.raises(
        UsageError, match=r"train.batch is 6; mesh.data times .* times train.accumulate, 4, must divide it"
    ):
        make(dataclasses.replace(odd, mesh=MeshConfig(data=2, fsdp=2)))
    with pytest.raises(UsageError, match=r"mesh.tensor is 8; it must divide the 4 heads"):
        make(dataclasses.replace(EXPERIMENT, mesh=MeshConfig(tensor=8)))
