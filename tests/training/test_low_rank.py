"""LoRA training and preference tuning: what is trained, what is not even differentiated, and what comes out."""

import dataclasses
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kaleido_jax import config as configs
from kaleido_jax.bundle import load_bundle, merge, parameters
from kaleido_jax.errors import InputError, UsageError
from kaleido_jax.models.layers import MLP
from kaleido_jax.parallel import MeshConfig
from kaleido_jax.parallel.flops import count
from kaleido_jax.porting import lora as lora_files
from kaleido_jax.training import plan
from kaleido_jax.training.experiment import PreferenceConfig
from kaleido_jax.training.low_rank import LoraConfig, changed_kernels, factors, unrounded
from kaleido_jax.training.miniature import prepare
from kaleido_jax.training.pairs import PairSource

# Of the feed-forward layer: what no other product of the network has the shape of.
KERNEL = r"f32\[(2,)?24,32\]\S* dot\("


@pytest.fixture(scope="module")
def start(prepared, tmp_path_factory):
    """A model of random weights that LoRAs are trained on."""
    folder = tmp_path_factory.mktemp("start") / "model"
    random = np.random.default_rng(0)
    head = {"head.projection.kernel": jnp.asarray(0.1 * random.normal(size=(24, 16)), jnp.float32)}  # starts at zero
    average = prepared.initial.average | {"transformer": prepared.initial.average["transformer"] | head}
    prepared.export(dataclasses.replace(prepared.initial, average=average), folder, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Four pairs of latents whose chosen clips are alike and whose rejected ones are noise."""
    folder, random = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    lines = []
    for number in range(4):
        arrays = {side: random.normal(size=(2, 4, 4, 4)).astype(np.float16) for side in "ab"}
        arrays["ab"[number % 2]] = np.full((2, 4, 4, 4), 0.5, np.float16)
        shown = random.normal(size=(1 + number % 2, 1, 4, 4, 4)).astype(np.float16)
        frames = np.ones(len(shown), np.int32)
        np.savez(folder / f"{number}.npz", references=shown, reference_frames=frames, **arrays)
        chosen, rejected = ("a", "b") if number % 2 == 0 else ("b", "a")
        line = {"pair": str(number), "prompt": "a cat", "latents": f"{number}.npz"}
        lines.append(json.dumps(line | {"chosen": chosen, "rejected": rejected}))
    (folder / "preferences.jsonl").write_text("\n".join(lines))
    return folder / "preferences.jsonl"


@pytest.fixture(scope="module")
def tuned(experiment, start, tmp_path_factory):
    """A run that trains a LoRA, and its state after some steps."""
    changed = dataclasses.replace(experiment, start_from=str(start), lora=LoraConfig(rank=2, alpha=4.0))
    run = prepare(changed, tmp_path_factory.mktemp("tuned"), shard_size=8)
    state, losses = run.restore()[0], []
    batch = run.source("train").batch(0)
    for _ in range(15):
        state, values = run.programs.train(state, batch, jnp.zeros((), jnp.float32))
        losses.append(float(values["loss"]))
    return run, state, losses


def test_what_is_trained(tuned, experiment):
    """Two factors for each linear map of the blocks; b starts at zero, so the first loss is the model's own."""
    run, state, losses = tuned
    names = set(state.parameters["transformer"])
    maps = {f"{a}.{m}" for a in ("self_attention", "cross_attention") for m in ("query", "key", "value", "out")}
    maps |= {"mlp.first", "mlp.second"}
    assert names == {f"blocks.{m}.low_rank.{f}" for m in maps for f in "ab"} and list(state.parameters) == [
        "transformer"
    ]
    assert not any(np.asarray(v).any() for n, v in run.initial.parameters["transformer"].items() if n.endswith(".b"))
    assert all(np.asarray(v).any() for n, v in state.parameters["transformer"].items())
    assert np.mean(losses[-3:]) < 0.97 * np.mean(losses[:3])


def test_frozen_weights_get_no_gradient(tuned, prepared):
    """No product of the compiled step makes one; that of the run that trains all weights does."""
    text = lambda run: next(p for key, p in run.programs._compiled.items() if key[0] == "train").as_text()
    prepared.programs.train(
        jax.tree.map(jnp.copy, prepared.initial), prepared.source("train").batch(0), jnp.zeros((), jnp.float32)
    )
    assert re.search(KERNEL, text(prepared)) and not re.search(KERNEL, text(tuned[0]))


def test_the_file_and_the_model_that_come_out(tuned, start, tmp_path):
    """The LoRA file, added to what training started from, is the exported model; both are what was trained."""
    run, state, _ = tuned
    run.export(state, tmp_path / "model", dtype="float32")
    exported = parameters(load_bundle(tmp_path / "model").transformer)
    before = parameters(load_bundle(start).transformer)
    for style in ("diffusers", "kohya"):
        lora_files.write(tmp_path / f"{style}.safetensors", run.lora(state), to=style)
        read = lora_files.read(tmp_path / f"{style}.safetensors", run.experiment.transformer)
        merged = lora_files.merge(before, [(read, 1.0)])
        for name, value in exported.items():
            np.testing.assert_allclose(merged[name], value, atol=1e-6, err_msg=name)
    name = "blocks.mlp.first.kernel"
    pair = [np.asarray(state.average["transformer"][f"blocks.mlp.first.low_rank.{f}"]) for f in "ab"]
    np.testing.assert_allclose(exported[name] - before[name], 2.0 * pair[0] @ pair[1], atol=1e-5)


def test_a_base_of_whole_numbers(tuned, start, tmp_path):
    """Trains as the other one does, up to rounding; what comes out is the rounded weights and the change."""
    run, _, losses = tuned
    lora = dataclasses.replace(run.experiment.lora, base="int8")
    rounded = prepare(dataclasses.replace(run.experiment, lora=lora), tmp_path, shard_size=8)
    frozen = rounded.programs.frozen["transformer"]
    before, meant = parameters(load_bundle(start).transformer), unrounded(frozen)
    assert before.keys() == meant.keys()
    kernels = {name for name in before if re.fullmatch(r"blocks\..+\.kernel", name)}
    assert len(kernels) == 10 and {name for name in frozen if frozen[name].dtype == jnp.int8} == kernels
    for name, value in before.items():
        step = np.abs(value).max(axis=1, keepdims=True) / 127 if name in kernels else 0.0
        assert (np.abs(meant[name] - value) <= 0.5001 * step).all(), name

    # Scaled after the product: the same up to the order of float32's roundings.
    x, block = jnp.asarray(np.random.default_rng(0).normal(size=(3, 24)), jnp.float32), {}
    for place, weights in (("whole", meant), ("rounded", frozen)):
        own = {name.removeprefix("blocks.mlp."): v[0] for name, v in weights.items() if name.startswith("blocks.mlp.")}
        mlp = MLP(24, 32, 24, nnx.Rngs(0), activation=jax.nn.gelu)
        if place == "rounded":
            mlp.first.int8_scale, mlp.second.int8_scale = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))
        block[place] = merge(nnx.split(mlp)[0], own)(x)
    np.testing.assert_allclose(block["rounded"], block["whole"], rtol=1e-5, atol=1e-5)

    state, batch, found = rounded.restore()[0], rounded.source("train").batch(0), []
    for _ in losses:
        state, values = rounded.programs.train(state, batch, jnp.zeros((), jnp.float32))
        found.append(float(values["loss"]))
    np.testing.assert_allclose(found, losses, rtol=0.02)
    rounded.export(state, tmp_path / "model", dtype="float32")
    exported = parameters(load_bundle(tmp_path / "model").transformer)
    name = "blocks.mlp.first.kernel"
    a, b = (np.asarray(state.average["transformer"][f"blocks.mlp.first.low_rank.{f}"]) for f in "ab")
    np.testing.assert_allclose(exported[name] - meant[name], 2.0 * a @ b, atol=1e-5)


def test_whole_numbers_are_never_made_whole(experiment, record_property):
    """Of the compiled step: what it is given, and that its temporary memory has no room for a stack of kernels."""
    wan = dataclasses.replace(
        experiment.transformer, dim=128, ffn_dim=512, heads=4, layers=6, in_channels=16, out_channels=16
    )
    train = dataclasses.replace(experiment.train, batch=1, keep="nothing")
    made = plan.abstract_step(
        dataclasses.replace(
            experiment, start_from="model", transformer=wan, train=train, lora=LoraConfig(rank=2, base="int8")
        )
    )
    kernels = sum(leaf.size for name, leaf in made.frozen["transformer"].items() if leaf.dtype == jnp.int8)
    assert kernels == 6 * (8 * 128 * 128 + 2 * 128 * 512)
    _, found = plan._compile(made, MeshConfig().make(jax.devices()[:1]), "cpu")
    record_property("bytes", {kind: int(size) for kind, size in found.items()} | {"kernels": kernels})
    assert kernels < found["weights"] < 2 * kernels  # in float32 they would be four times as many bytes
    assert found["temporary"] < 2 * kernels


def test_checkpoints_hold_the_factors_alone(tuned):
    run, state, _ = tuned
    run.save(state, 1.0)
    again, seconds = run.restore()
    assert seconds == 1.0 and set(again.parameters["transformer"]) == set(state.parameters["transformer"])
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)


def test_preference_tuning_starts_at_log_two_and_falls(experiment, start, pairs, tmp_path):
    """The model is its own reference at first; then it comes to prefer the clips that were chosen."""
    changed = dataclasses.replace(
        experiment,
        start_from=str(start),
        lora=LoraConfig(rank=2),
        preference=PreferenceConfig(pairs=str(pairs), beta=5.0),
    )
    run = prepare(changed, tmp_path, shard_size=8)
    source, state, losses = run.source("train"), run.restore()[0], []
    assert isinstance(source, PairSource)
    batch = source.batch(0)
    np.testing.assert_array_equal(batch.video, np.full((4, 2, 4, 4, 4), 0.5))
    assert sorted(batch.reference_counts) == [1, 1, 2, 2] and batch.rejected.std() > 0.5
    for step in range(12):
        state, values = run.programs.train(state, source.batch(step), jnp.zeros((), jnp.float32))
        losses.append(float(values["loss"]))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert np.mean(losses[-3:]) < 0.9 * math.log(2)


def test_the_step_of_a_plan_takes_the_same(experiment):
    """Shapes alone: the factors' state, pairs of clips, and the frozen weights beside them."""
    wider = dataclasses.replace(experiment.transformer, in_channels=16, out_channels=16)
    changed = dataclasses.replace(
        experiment,
        transformer=wider,
        start_from="model",
        lora=LoraConfig(rank=2),
        preference=PreferenceConfig(pairs="pairs.jsonl"),
    )
    made = plan.abstract_step(changed)
    progress = jax.ShapeDtypeStruct((), jnp.float32)
    state, values = jax.eval_shape(made.function, made.state, made.batch, progress, made.frozen)
    assert made.batch.rejected.shape == made.batch.video.shape and values["loss"].shape == ()
    trained, frozen = state.parameters["transformer"], made.frozen["transformer"]
    assert len(trained) == 2 * 10 and not trained.keys() & frozen.keys()
    assert "head.projection.kernel" in frozen and "text" in made.frozen

    rounded = plan.abstract_step(dataclasses.replace(changed, lora=LoraConfig(rank=2, base="int8")))
    values = jax.eval_shape(rounded.function, rounded.state, rounded.batch, progress, rounded.frozen)[1]
    assert values["loss"].shape == () and rounded.frozen["transformer"]["blocks.mlp.first.kernel"].dtype == jnp.int8


def test_a_backward_pass_costs_at_most_three_quarters():
    """Of the 14B model, by operations in the traced step: no product makes a gradient of frozen weights.

    Attention, which costs the same either way, is four fifths at 81 frames; at 17 the linear maps are most. A base of
    whole numbers is multiplied as often as any other.
    """
    recipe = configs.load(pathlib.Path(__file__).parents[2] / "configs" / "kaleido_14b_sft.py")
    changes = ["data.frames=17", "train.batch=1", "train.accumulate=1", "train.keep=everything"]
    recipe = configs.override(recipe, changes)
    backward = []
    for lora in (LoraConfig(), LoraConfig(rank=32), LoraConfig(rank=32, base="int8")):
        made = plan.abstract_step(dataclasses.replace(recipe, lora=lora))
        progress = jax.ShapeDtypeStruct((), jnp.float32)
        step = count(made.function, made.state, made.batch, progress, made.frozen)
        backward.append(step - plan.forward_flops(made)[0])
    assert backward[1] <= 0.75 * backward[0] and backward[2] <= 0.75 * backward[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora": LoraConfig(rank=2)}, "start_from is empty; name the model"),
        ({"preference": PreferenceConfig(pairs="p.jsonl")}, "lora.rank is 0, but preference.pairs are trained on"),
    ],
)
def test_experiments_that_cannot_be(experiment, changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(experiment, **changes)


def test_layers_that_there_are_not(experiment):
    with pytest.raises(UsageError, match=r"lora.layers names 'mpl'"):
        changed_kernels(experiment.transformer, LoraConfig(rank=2, layers=("mpl",)))
    with pytest.raises(ValueError, match=r"lora.rank is -1"):
        LoraConfig(rank=-1)
    made = factors(experiment.transformer, LoraConfig(rank=2, layers=("cross_attention.query",)), 0)
    assert {name: leaf.shape for name, leaf in made.items()} == {
        "blocks.cross_attention.query.low_rank.a": (2, 24, 2),
        "blocks.cross_attention.query.low_rank.b": (2, 2, 24),
    }


def test_pairs_that_do_not_fit_the_run(prepared, pairs):
    from kaleido_jax.preference.files import read_preferences

    data = dataclasses.replace(prepared.experiment.data, references=1)
    with pytest.raises(InputError, match="There are 4 preference pairs, which do not fill a batch of 5"):
        PairSource(read_preferences(pairs), prepared.tokenizer, data, 5, 0, 1)
    with pytest.raises(InputError, match=r"has 2 references of 1 latent frames; data.references is 1"):
        PairSource(read_preferences(pairs), prepared.tokenizer, data, 4, 0, 1).batch(0)
